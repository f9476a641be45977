import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from feature_store.atomic import write_json
from svp.errors import InputError
from svp.study.config import DataSection, EncoderSection, StoreSection, StudyConfig
from svp.study.curves import RESULT_COLUMNS, Cell, curve_points, curve_totals, result_rows
from svp.study.labels import import_labels
from svp.study.record import Pick, write_selection
from svp.study.report import gather_report, write_report
from svp.study.study import Study

EVIL = "cats/<script>alert(1)<script>.png"


@pytest.fixture
def study(tmp_path):
    images = tmp_path / "images"
    (images / "cats").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / "cats" / name)
    Image.new("RGB", (300, 200)).save(images / EVIL)
    config = StudyConfig(
        name="pilot",
        data=DataSection(source=(str(images),)),
        encoder=EncoderSection(spec="timm:resnet18"),
        store=StoreSection(url=str(tmp_path / "store")),
    )
    return Study.create(tmp_path / "study", config)


def add_round(study, number, ids, *, used, metrics, timings):
    folder = study.rounds_dir / f"{number:03d}"
    folder.mkdir(parents=True)
    picks = tuple(
        Pick(
            rank=place,
            id=name,
            uri=name,
            utility=1.0 / place,
            reason=f"margin {1 / place:.3g}",
            predicted=None if used == 0 else "cat",
            confidence=None if used == 0 else 0.75,
        )
        for place, name in enumerate(ids, start=1)
    )
    write_selection(folder, number, "kmeans" if used == 0 else "margin", picks)
    receipt = {
        "schema": "svp.round/1",
        "pool": {"id": "00ff", "items": 5},
        "encoder": {"id": "e1", "view": "eval"},
        "labels": {"used": used, "digest": "d"},
        "strategy": {"name": "kmeans" if used == 0 else "margin"},
        "selection": {"digest": "s"},
        "metrics": metrics,
        "timings_s": timings,
        "hardware": {"cpus": 2},
    }
    write_json(folder / "round.json", receipt)


def add_labels(study, tmp_path, rows):
    file = tmp_path / "labels.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "label"), *rows])
    import_labels(study, file)


def add_simulation(study, accuracies, *, sizes=(10, 20, 30), name="abc", created="2025-01-01"):
    """Write a simulation with the study's own writers; accuracies by strategy, then by seed."""
    numbers = dict.fromkeys(RESULT_COLUMNS[3:], 0.5)
    cells = [
        Cell(
            strategy=strategy,
            proxy="linear",
            seed=seed,
            uses_oracle=strategy == "peek",
            rounds=tuple(
                {**numbers, "num_labeled": size, "test_acc": accuracy}
                for size, accuracy in zip(sizes, row, strict=True)
            ),
            selected=(),
        )
        for strategy, rows in accuracies.items()
        for seed, row in enumerate(rows)
    ]
    folder = study.simulation_dir / name
    folder.mkdir(parents=True)
    points = curve_points(cells)
    summary = {
        "created": created,
        "simulation": {"batch": 10},
        "evaluation": {"split": "test", "items": 50},
        "points": [to_json(point) for point in points],
        "totals": [to_json(total) for total in curve_totals(cells, points)],
    }
    write_json(folder / "summary.json", summary)
    with (folder / "results.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, RESULT_COLUMNS)
        writer.writeheader()
        writer.writerows(result_rows(cells))


def to_json(value):
    text = json.dumps(dataclasses.asdict(value))
    return json.loads(text, parse_constant=lambda _: None)


def add_model(study):
    study.model_dir.mkdir()
    scores = {
        "examples": 4,
        "accuracy": 0.75,
        "balanced_accuracy": 0.7,
        "macro_f1": 0.72,
        "confusion": [[2, 0], [1, 1]],
    }
    seconds = {"probe": 0.5, "train": 30.0, "predict": 0.0}
    write_json(
        study.model_dir / "metrics.json",
        {"evaluation": scores, "pool": None, "seconds": seconds, "steps": 100},
    )
    write_json(
        study.model_dir / "config.json",
        {
            "class_names": ["cat", "dog"],
            "labelled": 3,
            "config": {"mode": "lp-ft", "method": "flexmatch"},
        },
    )


def fill(study, tmp_path):
    add_round(study, 0, ("cats/a.png", "cats/b.png"), used=0, metrics={}, timings={"select": 1.0})
    add_labels(
        study, tmp_path, [("cats/a.png", "cat"), ("cats/b.png", "dog"), ("cats/c.png", "cat")]
    )
    scores = {"val": {"accuracy": 0.6}, "test": {"accuracy": 0.5}}
    timings = {"proxy": 0.5, "select": 2.0}
    add_round(study, 1, (EVIL, "cats/gone.png"), used=3, metrics=scores, timings=timings)


def test_an_empty_study_has_a_report(study):
    report = gather_report(study)
    assert (report.labels, report.rounds, report.comparisons) == (0, (), ())
    assert report.balance is None
    assert report.gallery is None
    assert report.model is None
    assert any(fact.value == "timm:resnet18" for fact in report.configuration)
    path = write_report(study, generated="2025-11-21T01:13:00+00:00")
    assert path == study.path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert "21 November 2025, 01:13 UTC" in text
    assert f"svp select {study.path}" in text


def test_rounds_and_labels_are_gathered(study, tmp_path):
    fill(study, tmp_path)
    report = gather_report(study)
    assert report.labels == 3
    assert report.pool_size == 5
    assert [r.strategy for r in report.rounds] == ["kmeans", "margin"]
    assert [r.accuracy for r in report.rounds] == [None, 0.6]
    assert report.rounds[1].split == "validation"
    assert report.rounds[1].seconds == 2.5
    assert report.balance.classes == ("cat", "dog")
    assert report.balance.sources == ("imported", "round 0")
    assert report.balance.counts == ((1, 0), (1, 1))
    assert [(s.name, s.seconds) for s in report.stages] == [
        ("train proxies", 0.5),
        ("select", 3.0),
    ]


def test_the_gallery_shows_the_last_round_even_where_images_are_gone(study, tmp_path):
    fill(study, tmp_path)
    gallery = gather_report(study).gallery
    assert (gallery.round, gallery.total) == (1, 2)
    shown, gone = gallery.items
    assert (shown.thumbnail.width, shown.thumbnail.mime) == (160, "image/jpeg")
    assert (shown.predicted, shown.confidence, shown.label) == ("cat", 0.75, "")
    assert gone.thumbnail is None
    text = write_report(study).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "alert(1)" in text
    (tmp_path / "images").rename(tmp_path / "moved")
    assert all(item.thumbnail is None for item in gather_report(study).gallery.items)


def test_a_simulation_becomes_curves_and_savings(study):
    add_simulation(
        study,
        {
            "random": [(0.5, 0.6, 0.7), (0.5, 0.6, 0.7)],
            "margin": [(0.5, 0.65, 0.68), (0.5, 0.65, 0.72)],
            "peek": [(0.5, 0.7, 0.9), (0.5, 0.7, 0.9)],
        },
    )
    (comparison,) = gather_report(study).comparisons
    by_name = {curve.strategy: curve for curve in comparison.curves}
    assert by_name["random"].is_random
    assert by_name["peek"].reads_labels
    assert [p.labels for p in by_name["margin"].points] == [10, 20, 30]
    assert by_name["margin"].points[2].mean == pytest.approx(0.70)
    assert by_name["margin"].points[2].sd == pytest.approx(0.02 * 2**0.5)
    peek, margin = comparison.savings
    # Random's best, 0.7, is reached by margin with all 30 labels and by the other with 20.
    assert (peek.strategy, peek.labels, peek.random_labels) == ("peek", 20, 30)
    assert (peek.accuracy, peek.bound, peek.exceeds) == (0.7, "measured", True)
    assert (peek.final_accuracy, peek.censored) == (0.9, 1)
    assert (margin.labels, margin.random_labels) == (pytest.approx(30), pytest.approx(30))
    assert not margin.exceeds
    # 0.65 with 20 labels: random needs 25, so 0.2 are saved; at 30 nothing.
    assert margin.mean_ratio == pytest.approx(0.1)
    # Seed 0 ends at 0.68, random needs 28: 0.2 and -1/14; seed 1 ends beyond random: 0.2 and 0.
    assert margin.sd_ratio == pytest.approx(np.std([(0.2 - 1 / 14) / 2, 0.1], ddof=1))
    assert (margin.rounds, margin.censored) == (2, 0)
    assert margin.gain == pytest.approx(0.0)
    assert comparison.note == (
        "Known labels answered 2 rounds of 10 labels, with 2 seeds; "
        "tested on 50 items, the test split."
    )


def test_a_strategy_that_falls_short_is_compared_where_it_got(study):
    add_simulation(study, {"random": [(0.5, 0.6, 0.7)], "margin": [(0.5, 0.55, 0.6)]})
    (margin,) = gather_report(study).comparisons[0].savings
    assert (margin.accuracy, margin.labels, margin.random_labels) == (0.6, 30, 20)
    assert margin.ratio == pytest.approx(-0.5)
    assert "It saved nothing" in write_report(study).read_text(encoding="utf-8")


def test_one_seed_has_no_deviation(study):
    add_simulation(study, {"random": [(0.5, 0.6, 0.7)], "margin": [(0.5, 0.65, 0.7)]})
    (comparison,) = gather_report(study).comparisons
    assert all(point.sd is None for curve in comparison.curves for point in curve.points)
    (margin,) = comparison.savings
    assert margin.sd_ratio is None
    assert margin.gain_half_width is None
    assert "margin" in write_report(study).read_text(encoding="utf-8")


def test_the_newest_simulation_comes_last(study):
    runs = {"random": [(0.5, 0.6, 0.7)], "margin": [(0.5, 0.65, 0.7)]}
    add_simulation(study, runs, name="aaa", created="2025-02-01")
    add_simulation(study, runs, name="zzz", created="2025-01-01")
    assert [c.name for c in gather_report(study).comparisons] == ["zzz", "aaa"]


def test_the_target_model_is_gathered(study, tmp_path):
    fill(study, tmp_path)
    add_model(study)
    report = gather_report(study)
    assert report.model.accuracy == 0.75
    assert report.model.method == "lp-ft, flexmatch, trained with 3 labels"
    assert report.model.confusion == ((2, 0), (1, 1))
    assert [fact.name for fact in report.model.metrics] == ["Balanced accuracy", "Macro F1"]
    assert ("fine-tune: train", 30.0) in [(s.name, s.seconds) for s in report.stages]
    assert "75.00%" in write_report(study).read_text(encoding="utf-8")


def test_a_model_without_held_out_labels_says_so(study):
    study.model_dir.mkdir()
    write_json(study.model_dir / "metrics.json", {"evaluation": None, "seconds": {}, "steps": 1})
    assert "no labels were held out" in write_report(study).read_text(encoding="utf-8")


def test_the_same_study_gives_the_same_page(study, tmp_path):
    fill(study, tmp_path)
    one = write_report(study, tmp_path / "one.html", generated="2025-01-01").read_bytes()
    two = write_report(study, tmp_path / "two.html", generated="2025-01-01").read_bytes()
    assert one == two


def test_damaged_files_are_named(study):
    study.model_dir.mkdir()
    (study.model_dir / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json must be JSON"):
        gather_report(study)
    (study.model_dir / "metrics.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        gather_report(study)
