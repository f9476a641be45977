"""Rounds of a study with wrappers, state between rounds, and a cap on memory."""

import csv
import json
import shutil

import pyarrow.parquet as pq
import pytest
from study_fixtures import config_of, truth_of, write_labels, write_material
from typer.testing import CliRunner

from svp.cli.app import app
from svp.cli.options import parse_memory
from svp.errors import InputError
from svp.strategies.catalog import build_strategy
from svp.strategies.cost import PoolShape
from svp.strategies.wrapping import Wrapping
from svp.study.cells import SimulationConfig
from svp.study.config import DataSection, StrategySection
from svp.study.features import StoredRows, read_features, split_rows, standardiser_of
from svp.study.labels import import_labels
from svp.study.record import read_rounds
from svp.study.replay import replay
from svp.study.rounds import select
from svp.study.simulate import simulate
from svp.study.study import Study


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        write_material(root)
    return root


@pytest.fixture
def new_study(material, tmp_path):
    def make(name="study", **changes):
        study = Study.create(tmp_path / name, config_of(material, **changes))
        record = json.loads((material / "first" / "encoder.json").read_text())
        record["spec"] = study.config.encoder.spec
        (study.path / "encoder.json").write_text(json.dumps(record))
        return study

    return make


def _label(study, result, name):
    truth = truth_of(study)
    import_labels(study, write_labels(study.path / name, {p.id: truth[p.id] for p in result.picks}))


def _rounds(study, budgets, **options):
    for number, budget in enumerate(budgets):
        result = select(study, budget, **options)
        yield result
        _label(study, result, f"{number}.csv")


def _ids(result):
    return [pick.id for pick in result.picks]


def test_wrappers_of_a_study_are_recorded_and_replayed(new_study):
    section = StrategySection(
        first_round="random",
        random_share=0.25,
        collapse_duplicates=0.9999,
        class_balance=True,
        prefilter="entropy:3",
    )
    study = new_study(strategy=section)
    assert Study.open(study.path).config.strategy == section
    first, second = _rounds(study, (9, 8))
    # Nothing is predicted in the first round: no balance, no prefilter.
    assert first.receipt["strategy"]["name"] == "random"
    assert second.receipt["strategy"]["exactness"] == "approx:prefilter"
    assert second.receipt["strategy"]["wrapping"] == {
        "random_share": 0.25,
        "collapse_duplicates": 0.9999,
        "class_balance": True,
        "prefilter": "entropy:3",
    }
    drawn = [pick for pick in second.picks if pick.probability is not None]
    assert len(drawn) == 2
    assert all(pick.probability == 2 / second.receipt["pool"]["candidates"] for pick in drawn)
    assert all("so that the batch can be judged" in pick.reason for pick in drawn)
    table = pq.read_table(second.folder / "selection.parquet")
    assert table["probability"].to_pylist() == [pick.probability for pick in second.picks]
    assert replay(study, 0).identical
    assert replay(study, 1).identical


def test_rounds_without_the_column_are_still_read(new_study):
    study = new_study()
    done = select(study, 5)
    path = done.folder / "selection.csv"
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    kept = [key for key in rows[0] if key != "probability"]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    receipt = json.loads((done.folder / "round.json").read_text())
    del receipt["strategy"]["wrapping"], receipt["strategy"]["state"]
    del receipt["evidence"], receipt["seal"]  # earlier versions kept neither
    (done.folder / "round.json").write_text(json.dumps(receipt))
    assert _ids(read_rounds(study)[0]) == _ids(done)
    assert replay(study, 0).identical


def test_groups_are_those_of_the_manifest(new_study, material, tmp_path):
    manifest = tmp_path / "manifest.csv"
    pool = truth_of(new_study("other"))
    lines = ["id,path,label,split,group"]
    for number, (key, label) in enumerate(sorted(pool.items())):
        site = "big" if number % 5 else "small"
        lines.append(f"{key},{key},{label},{key.split('/')[0]},{site}")
    manifest.write_text("\n".join(lines) + "\n")
    source = DataSection(source=(str(manifest),), root=str(material / "images"))
    study = new_study(data=source, strategy=StrategySection(first_round="random", groups="equal"))
    result = select(study, 10)
    scanned = study.scan().pool
    group = dict(zip(scanned.ids, scanned.groups, strict=True))
    assert sorted(group[key] for key in _ids(result)) == ["big"] * 5 + ["small"] * 5
    assert replay(study, 0).identical
    without = new_study("without", strategy=StrategySection(groups="equal"))
    with pytest.raises(InputError, match='column "group"'):
        select(without, 10)


def test_wrong_wrappers_are_refused_before_any_work(new_study):
    study = new_study()
    for key, value in (
        ("random_share", 1.5),
        ("collapse_duplicates", 0.0),
        ("prefilter", "coreset:5"),
    ):
        opened = Study.open(study.path, {f"strategy.{key}": value})
        with pytest.raises(InputError):
            select(opened, 5)
    assert not study.rounds_dir.exists()


def test_a_strategy_gets_back_what_it_kept(new_study):
    study = new_study(strategy=StrategySection(name="albl", first_round="random"))
    results = list(_rounds(study, (9, 5, 5, 5)))
    states = [done.folder / "state.json" for done in results]
    assert not states[0].exists()  # the first-round strategy keeps none
    kept = [json.loads(path.read_text())["state"]["bought"] for path in states[1:]]
    assert [len(bought) for bought in kept] == [1, 2, 3]
    assert kept[2][:2] == kept[1]
    for number in range(4):
        assert replay(study, number).identical
    # What was kept belongs to the round: a changed file is found out.
    stored = json.loads(states[2].read_text())
    stored["state"]["weights"] = [0.5, 0.5]
    states[2].write_text(json.dumps(stored))
    result = replay(study, 3)
    assert not result.identical
    assert any("another digest" in (change.after or "") for change in result.changes)


def test_a_simulation_hands_state_on(new_study):
    config = SimulationConfig(
        strategies=("albl",), seeds=(0,), batch=5, rounds=3, params={"albl": {"delta": 0.2}}
    )
    done = simulate(new_study(), config)
    assert len(done.points) == 8


@pytest.mark.parametrize("name", ["margin", "coreset", "badge", "typiclust"])
def test_a_capped_pool_is_streamed_and_gives_the_same(new_study, monkeypatch, name):
    section = {"strategy.name": name, "strategy.collapse_duplicates": 0.9999}
    free, capped = (Study.open(new_study(one).path, section) for one in ("free", "capped"))
    _, second = _rounds(free, (9, 6))
    _label(capped, select(capped, 9), "answers.csv")
    dim = free.open_store().table(free.encoder_id()).dim
    shape = PoolShape(
        pool=60,
        candidates=51,
        labelled=9,
        dim=dim,
        hidden=dim,
        classes=len(second.receipt["labels"]["classes"]),
        budget=6,
        tile_rows=4096,
    )
    strategy = build_strategy(name, wrapping=Wrapping(collapse_duplicates=0.9999))
    # Enough for the strategy, not for the strategy and the embeddings.
    enough = strategy.cost(shape).bytes
    monkeypatch.setattr(StoredRows, "load", lambda self: pytest.fail("read at once"))
    streamed = select(capped, 6, memory_bytes=enough)
    assert _ids(streamed) == _ids(second)
    assert [p.utility for p in streamed.picks] == [p.utility for p in second.picks]
    assert streamed.receipt["memory_bytes"] == enough
    assert replay(capped, 1).identical


def test_unread_rows_are_those_of_the_store(new_study, monkeypatch):
    study = new_study()
    pool = study.scan().pool
    rows = split_rows(pool)["train"]
    store, encoder = study.open_store(), study.encoder_id()
    whole = read_features(study, store, pool, encoder, rows)
    unread = read_features(study, store, pool, encoder, rows, unread=True)
    assert isinstance(unread.x_Md, StoredRows)
    assert unread.ids == whole.ids
    assert (unread.x_Md.load() == whole.x_Md).all()
    assert unread.x_Md.nbytes == whole.x_Md.nbytes
    one, two = standardiser_of(whole.x_Md), standardiser_of(unread.x_Md)
    assert (one.mean_d == two.mean_d).all()
    assert (one.std_d == two.std_d).all()
    # Never loaded where the cap leaves no room.
    monkeypatch.setattr(StoredRows, "load", lambda self: pytest.fail("read at once"))
    with pytest.raises(InputError, match="memory cap"):
        select(study, 5, strategy="coreset", memory_bytes=1000)


def test_a_simulation_under_a_cap_gives_the_same(new_study, tmp_path):
    config = SimulationConfig(strategies=("margin",), seeds=(0,), batch=6, rounds=2)
    free = simulate(new_study("free"), config)
    shutil.rmtree(tmp_path / "free")
    capped = simulate(new_study("capped"), config, memory_bytes=2**28)
    assert [p.mean["test_acc"] for p in free.points] == [p.mean["test_acc"] for p in capped.points]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 2**32), ("500 MB", 5 * 10**8), ("1.5kib", 1536), ("100", 100), (None, None)],
)
def test_sizes(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["much", "-1GiB", "4 GiBs", "0GiB"])
def test_sizes_that_are_none(text):
    with pytest.raises(InputError, match="--memory"):
        parse_memory(text)


def _command(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_strategy_that_reads_labels_is_refused_to_people(new_study):
    study = new_study(strategy=StrategySection(name="balancing", first_round="random"))
    _label(study, select(study, 9), "answers.csv")
    refused = _command("select", study.path, "--budget", 5, "--device", "cpu")
    assert isinstance(refused.exception, InputError)
    assert "must be given known labels" in str(refused.exception)
    assert "balancing.pseudo = true" in str(refused.exception)
    pseudo = ("--set", "strategy.params={ pseudo = true }")
    done = _command("select", study.path, "--budget", 5, "--device", "cpu", *pseudo)
    assert done.exit_code == 0, done.exception
    # A wrapper does not hide it.
    other = new_study("other", strategy=StrategySection(name="balancing", random_share=0.2))
    _label(other, select(other, 9), "answers.csv")
    refused = _command("select", other.path, "--budget", 5, "--device", "cpu")
    assert "must be given known labels" in str(refused.exception)


def test_wrappers_and_memory_on_the_command_line(new_study):
    study = new_study()
    options = ("--device", "cpu", "--memory", "1GiB", "--set", "strategy.random_share=0.5")
    done = _command("select", study.path, "--budget", 6, *options)
    assert done.exit_code == 0, done.exception
    (result,) = read_rounds(study)
    assert sum(pick.probability is not None for pick in result.picks) == 3
    assert result.receipt["memory_bytes"] == 2**30
    simulated = _command("simulate", study.path, "-n", 6, "--rounds", 1, "--seeds", 1, *options)
    assert simulated.exit_code == 0, simulated.exception
    small = _command("select", new_study("small").path, "-n", 6, "--memory", "1kB")
    assert "memory cap" in str(small.exception)
