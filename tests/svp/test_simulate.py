import csv
import json

import numpy as np
import pytest
from study_fixtures import config_of, truth_of, write_encoder, write_images, write_material

from svp.errors import InputError
from svp.study import simulate as simulate_module
from svp.study.cells import SimulationConfig
from svp.study.curves import RESULT_COLUMNS, Cell, curve_points, curve_totals
from svp.study.simulate import simulate, simulation_labels
from svp.study.study import Study

CONFIG = SimulationConfig(strategies=("margin",), seeds=(0, 1), batch=6, rounds=2)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        write_material(root)
    return root


@pytest.fixture
def study(material, tmp_path):
    return Study.create(tmp_path / "study", config_of(material))


def _results(result):
    with (result.folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def _scores(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]


def test_a_simulation(study):
    result = simulate(study, CONFIG)
    rows = _results(result)
    assert tuple(rows[0]) == RESULT_COLUMNS
    assert {(row["strategy"], row["seed"]) for row in rows} == {
        (strategy, seed) for strategy in ("random", "margin") for seed in "01"
    }
    assert len(rows) == 2 * 2 * 3
    assert result.evaluation["split"] == "test"
    assert result.evaluation["items"] == 30
    assert (result.cells, result.reused) == (4, 0)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert len(summary["points"]) == len(result.points) == 2 * 3
    assert summary["penalties"]["linear"]["strategies"] == ["random", "margin"]
    for point in result.points:
        own = [
            float(row["test_acc"])
            for row in rows
            if (row["strategy"], int(row["num_labeled"])) == (point.strategy, point.num_labeled)
        ]
        assert point.mean["test_acc"] == pytest.approx(np.mean(own))
        assert point.sd["test_acc"] == pytest.approx(np.std(own, ddof=1))


def test_all_strategies_of_a_seed_share_the_first_batch(study):
    result = simulate(study, CONFIG)
    cells = [json.loads(path.read_text()) for path in (result.folder / "cells").iterdir()]
    first = {seed: {tuple(c["selected"][0]) for c in cells if c["seed"] == seed} for seed in (0, 1)}
    assert len(first[0]) == len(first[1]) == 1
    assert first[0] != first[1]
    for cell in cells:
        chosen = [key for batch in cell["selected"] for key in batch]
        assert len(set(chosen)) == len(chosen) == 18
        assert all(key.startswith("train/") for key in chosen)
    start = [point for point in result.points if point.num_labeled == 6]
    assert [point.gain.mean for point in start] == [0, 0]


def test_a_simulation_is_reproducible_and_resumes_cell_by_cell(study, monkeypatch):
    whole = simulate(study, CONFIG)
    rows = _results(whole)
    removed = sorted((whole.folder / "cells").iterdir())[1:3]
    for path in removed:
        path.unlink()
    ran = []
    run_cell = simulate_module.run_cell

    def stop_after_one(*arguments):
        if ran:
            raise KeyboardInterrupt
        ran.append(arguments)
        return run_cell(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(simulate_module, "run_cell", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            simulate(study, CONFIG)
    assert sum(path.exists() for path in removed) == 1
    again = simulate(study, CONFIG)
    assert again.reused == 3
    assert again.folder == whole.folder
    assert _scores(_results(again)) == _scores(rows)
    other = simulate(study, SimulationConfig(strategies=("margin",), seeds=(0,), batch=7, rounds=1))
    assert other.folder != whole.folder


def test_both_proxies_and_a_clustered_start(study):
    config = SimulationConfig(
        strategies=("entropy",), proxies=("linear", "mlp"), seeds=(0,), batch=6, rounds=1
    )
    result = simulate(study, config)
    assert [(t.strategy, t.proxy) for t in result.totals] == [
        ("random", "linear"),
        ("entropy", "linear"),
        ("random", "mlp"),
        ("entropy", "mlp"),
    ]
    summary = (result.folder / "summary.json").read_text()
    assert "NaN" not in summary  # one seed has no deviation: null
    assert json.loads(summary)["points"][0]["sd"]["test_acc"] is None


def test_without_a_test_split_a_declared_share_is_held_out(tmp_path):
    from svp.study.embedding import embed_study

    write_images(tmp_path / "images", train=10, test=0)
    write_encoder(tmp_path / "encoder")
    study = Study.create(tmp_path / "study", config_of(tmp_path))
    embed_study(study)
    result = simulate(study, SimulationConfig(seeds=(0,), batch=5, rounds=1, test_share=0.3))
    assert result.evaluation["split"] == "held-out"
    assert (result.evaluation["items"], result.evaluation["pool"]) == (9, 21)
    with pytest.raises(InputError, match="at most 21 labels"):
        simulate(study, SimulationConfig(seeds=(0,), batch=11, rounds=1, test_share=0.3))


def test_labels_of_a_simulated_run(study):
    result = simulate(study, CONFIG)
    labels = simulation_labels(study, "margin", "linear", 1)
    truth = truth_of(study)
    assert len(labels) == 18
    assert all(truth[key] == name for key, name in labels.items())
    cell = json.loads((result.folder / "cells" / "margin-linear-1.json").read_text())
    twelve = simulation_labels(study, "margin", "linear", 1, num_labeled=12)
    assert list(twelve) == cell["selected"][0] + cell["selected"][1]
    with pytest.raises(InputError, match=r"6, 12, 18\. Got 13"):
        simulation_labels(study, "margin", "linear", 1, num_labeled=13)
    with pytest.raises(InputError, match="none of badge with linear, seed 1"):
        simulation_labels(study, "badge", "linear", 1)


def test_mistakes_write_nothing(study, material, tmp_path):
    with pytest.raises(InputError, match="margin"):
        simulate(study, SimulationConfig(strategies=("margn",), batch=6, rounds=2))
    with pytest.raises(InputError, match="at most 60 labels"):
        simulate(study, SimulationConfig(batch=31, rounds=1))
    assert not study.simulation_dir.exists()
    for wrong, message in (
        ({"batch": 0}, "batch must be at least 1"),
        ({"seeds": ()}, "seeds must be given"),
        ({"strategies": ("margin", "margin")}, "each once"),
        ({"test_share": 1.0}, "test_share"),
    ):
        with pytest.raises(InputError, match=message):
            SimulationConfig(**{"batch": 6, "rounds": 1, **wrong})


def test_a_source_without_labels(tmp_path):
    from svp.study.embedding import embed_study

    write_images(tmp_path / "labelled", train=2, test=0)
    write_encoder(tmp_path / "encoder")
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "labelled").rglob("*.png"):
        path.rename(tmp_path / "images" / path.name)
    study = Study.create(tmp_path / "study", config_of(tmp_path))
    embed_study(study)
    with pytest.raises(InputError, match="must have known labels"):
        simulate(study, CONFIG)
    assert not study.simulation_dir.exists()


def _cell(strategy, seed, accuracies):
    sizes = (200, 400, 600, 800, 1000)
    names = [name for name in RESULT_COLUMNS if name not in ("strategy", "proxy", "seed")]
    return Cell(
        strategy=strategy,
        proxy="linear",
        seed=seed,
        uses_oracle=False,
        rounds=tuple(
            {**dict.fromkeys(names, 0.0), "num_labeled": size, "test_acc": value}
            for size, value in zip(sizes, accuracies, strict=True)
        ),
        selected=(),
    )


def test_curves_by_hand():
    cells = [
        _cell("random", 0, (0.59, 0.69, 0.75, 0.79, 0.81)),
        _cell("random", 1, (0.61, 0.71, 0.77, 0.81, 0.83)),
        _cell("active", 0, (0.59, 0.74, 0.815, 0.83, 0.84)),
        _cell("active", 1, (0.61, 0.76, 0.835, 0.85, 0.86)),
    ]
    points = curve_points(cells)
    active = {point.num_labeled: point for point in points if point.strategy == "active"}
    assert active[400].saving.random_labels == pytest.approx(566.7, abs=0.05)
    assert active[400].saving.ratio == pytest.approx(0.294, abs=0.0005)
    assert (active[600].saving.ratio, active[600].saving.censored) == (0.4, "right")
    assert active[200].saving.ratio == pytest.approx(0.0)
    assert active[400].gain.mean == pytest.approx(0.05)
    totals = {total.strategy: total for total in curve_totals(cells, points)}
    assert totals["random"].saving == pytest.approx(0.0)
    assert totals["active"].censored == 3
    assert totals["active"].saving_uncensored == pytest.approx(0.294, abs=0.0005)
    assert totals["active"].mean_gain == pytest.approx((0 + 0.05 + 0.065 + 0.04 + 0.03) / 5)
