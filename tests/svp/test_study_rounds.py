import csv
import json
import shutil

import pyarrow.parquet as pq
import pytest
from study_fixtures import config_of, truth_of, write_labels, write_material

from svp.errors import InputError, TemporaryError
from svp.study import rounds as rounds_module
from svp.study.config import ProxySection, StrategySection
from svp.study.label_export import export_items
from svp.study.labels import import_labels, import_source_labels
from svp.study.lock import alone
from svp.study.record import SELECTION_COLUMNS, read_rounds
from svp.study.replay import replay
from svp.study.rounds import select
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
        shutil.copy(material / "first" / "encoder.json", study.path)
        record = json.loads((study.path / "encoder.json").read_text())
        record["spec"] = study.config.encoder.spec
        (study.path / "encoder.json").write_text(json.dumps(record))
        return study

    return make


def _label(study, ids, name="answers.csv"):
    truth = truth_of(study)
    import_labels(study, write_labels(study.path / name, {key: truth[key] for key in ids}))


def _ids(result):
    return [pick.id for pick in result.picks]


def _two_rounds(study, **options):
    first = select(study, 9, **options)
    _label(study, _ids(first))
    return first, select(study, 6, **options)


def test_two_rounds(new_study):
    study = new_study()
    first, second = _two_rounds(study)
    assert first.receipt["strategy"]["name"] == "random"
    assert first.picks[0].predicted is None
    assert not (first.folder / "proxy.safetensors").exists()
    assert second.receipt["strategy"]["name"] == "margin"
    assert second.number == 1
    assert not set(_ids(first)) & set(_ids(second))
    assert all(key.startswith("train/") for key in _ids(first) + _ids(second))
    assert [pick.rank for pick in second.picks] == [1, 2, 3, 4, 5, 6]
    utilities = [pick.utility for pick in second.picks]
    assert utilities == sorted(utilities, reverse=True)
    assert second.receipt["metrics"]["test"]["items"] == 30
    assert second.receipt["metrics"]["test"]["accuracy"] > 0.7
    assert sum(second.receipt["labels"]["classes"].values()) == 9


def test_files_of_a_round_agree(new_study):
    _, second = _two_rounds(new_study())
    with (second.folder / "selection.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    table = pq.read_table(second.folder / "selection.parquet")
    assert tuple(rows[0]) == tuple(table.column_names) == SELECTION_COLUMNS
    assert [row["id"] for row in rows] == table.column("id").to_pylist() == _ids(second)
    assert [float(row["utility"]) for row in rows] == table.column("utility").to_pylist()
    assert {row["predicted"] for row in rows} <= {"blue", "green", "red"}
    assert all("{utility}" not in row["reason"] for row in rows)

    from svp.proxies import load_proxy

    assert load_proxy(second.folder / "proxy.safetensors").n_classes == 3


def test_same_seed_same_selection_and_another_seed_another(new_study):
    one = _two_rounds(new_study("one"))
    two = _two_rounds(new_study("two"))
    assert [_ids(result) for result in one] == [_ids(result) for result in two]
    other = select(new_study("three", seed=8), 9)
    assert set(_ids(other)) != set(_ids(one[0]))
    assert _ids(select(new_study("four"), 9, seed=8)) == _ids(other)


def test_an_open_round_is_returned_again(new_study):
    study = new_study()
    first = select(study, 5)
    before = {path: path.read_bytes() for path in study.rounds_dir.rglob("*.*")}
    again = select(study, 5)
    assert again.reopened
    assert not first.reopened
    assert again.picks == first.picks
    assert {path: path.read_bytes() for path in study.rounds_dir.rglob("*.*")} == before
    for options in ({"strategy": "entropy"}, {"seed": 99}, {"proxy": "mlp"}):
        with pytest.raises(InputError, match=r"Round 0 must be labelled .*Import labels"):
            select(study, 5, **options)
    with pytest.raises(InputError, match=r"budget 5 and its items wait\. Got budget 6"):
        select(study, 6)


def test_pending_items_are_not_selected_again(new_study):
    study = new_study()
    first = select(study, 9)
    _label(study, _ids(first)[:5])
    second = select(study, 51)
    assert not set(_ids(first)) & set(_ids(second))
    assert export_items(study, study.path / "todo.csv").rows == 4 + 51
    with (study.path / "todo.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows[:4]] == _ids(first)[5:]
    truth = truth_of(study)
    for row in rows:
        row["label"] = truth[row["id"]]
    with (study.path / "done.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert import_labels(study, study.path / "done.csv").labelled == 60
    assert export_items(study, study.path / "todo.csv").rows == 0
    with pytest.raises(InputError, match="items left to label"):
        select(study, 1)


def test_budgets_that_cannot_be(new_study):
    study = new_study()
    with pytest.raises(InputError, match=r"at most 60.*Got 61"):
        select(study, 61)
    with pytest.raises(InputError, match="at least 1"):
        select(study, 0)
    assert not study.rounds_dir.exists()


def test_one_class_still_uses_the_first_round_strategy(new_study):
    study = new_study()
    truth = truth_of(study)
    ids = [key for key, name in truth.items() if name == "red" and key.startswith("train/")][:3]
    _label(study, ids)
    assert select(study, 4).receipt["strategy"]["first_round"]


def test_an_explicit_strategy_is_used_or_refused(new_study):
    study = new_study()
    with pytest.raises(InputError, match="proxy"):
        select(study, 3, strategy="entropy")
    with pytest.raises(InputError, match=r"Did you mean .*entropy"):
        select(study, 3, strategy="entropie")
    with pytest.raises(InputError, match="linear, mlp or a published recipe"):
        select(study, 3, proxy="forest")
    assert not study.rounds_dir.exists()
    import_source_labels(study)  # everything labelled: nothing left
    with pytest.raises(InputError, match="items left to label"):
        select(study, 3, strategy="entropy")


def test_mlp_proxy(new_study):
    study = new_study(proxy=ProxySection(kind="mlp", options={"epochs": 5, "hidden": 8}))
    _, second = _two_rounds(study)
    assert second.receipt["proxy"]["kind"] == "mlp"
    assert second.receipt["proxy"]["config"]["hidden"] == 8
    assert replay(study, 1).identical


def test_wrong_options_are_found_before_anything_is_written(new_study):
    study = new_study(proxy=ProxySection(options={"l3": 1.0}))
    with pytest.raises(InputError, match=r"proxy\.l3"):
        select(study, 3)
    study = new_study("other", strategy=StrategySection(name="margn"))
    with pytest.raises(InputError, match="margin"):
        select(study, 3)
    assert not study.rounds_dir.exists()


def test_select_before_embed(material, tmp_path):
    from svp.study.config import StoreSection

    config = config_of(material, store=StoreSection(url=str(tmp_path / "empty")))
    study = Study.create(tmp_path / "study", config)
    with pytest.raises(InputError, match=r"Run: svp embed .*study"):
        select(study, 3)
    study.open_store(create=True)
    with pytest.raises(InputError, match=r"Run: svp embed .*study"):
        select(study, 3)
    assert not study.rounds_dir.exists()


def test_new_images_must_be_embedded(material, tmp_path):
    shutil.copytree(material, tmp_path / "copy")
    study = Study.open(tmp_path / "copy" / "first")
    from study_fixtures import write_images

    write_images(tmp_path / "copy" / "images", train=22, test=10, seed=5)
    with pytest.raises(InputError, match=r"Got \d+ of 66 without an embedding.*svp embed"):
        select(study, 3)


def test_a_killed_select_leaves_nothing_that_counts(new_study, monkeypatch):
    study = new_study()

    def die(path, document):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rounds_module, "write_json", die)
        with pytest.raises(KeyboardInterrupt):
            select(study, 5)
    assert (study.rounds_dir / "000" / "selection.csv").exists()
    (study.rounds_dir / "000" / "left-over").touch()
    assert read_rounds(study) == []
    result = select(study, 5)
    assert result.number == 0
    assert not (result.folder / "left-over").exists()
    assert _ids(result) == _ids(select(new_study("other"), 5))


def test_replay(new_study):
    study = new_study()
    _two_rounds(study)
    # Later labels and settings must not change what a receipt says of its time.
    import_source_labels(study)
    toml = study.path / "study.toml"
    toml.write_text(toml.read_text().replace('name = "margin"', 'name = "entropy"'))
    study = Study.open(study.path)
    for number in (0, 1):
        result = replay(study, number)
        assert (result.identical, result.differing) == (True, ())
    with pytest.raises(InputError, match=r"one of: 0, 1\. Got 7"):
        replay(study, 7)


def test_a_study_that_was_embedded_by_others_finds_the_encoder(material, tmp_path):
    study = Study.create(tmp_path / "study", config_of(material))
    assert study.embedded() is None
    assert study.encoder_id() == Study.open(material / "first").encoder_id()


def test_unreadable_items_are_left_out(tmp_path):
    from study_fixtures import write_encoder, write_images

    from svp.study.embedding import embed_study

    write_images(tmp_path / "images", train=3, test=1)
    (tmp_path / "images" / "train" / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    write_encoder(tmp_path / "encoder")
    study = Study.create(tmp_path / "study", config_of(tmp_path))
    embed_study(study, max_failure_rate=0.5)
    result = select(study, 9)
    assert "train/red/broken.png" not in _ids(result)
    assert result.receipt["pool"]["unreadable"] == 1


def test_two_selections_at_once_write_one_round(new_study):
    study = new_study()
    with alone(study.path, "svp select"), pytest.raises(TemporaryError, match="svp select"):
        select(study, 9)
    assert read_rounds(study) == []
    assert _ids(select(study, 9)) == _ids(select(study, 9))
