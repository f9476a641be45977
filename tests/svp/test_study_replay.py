"""A round computed again: identical, or whatever was touched is named; and why an item is there."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from study_fixtures import config_of, truth_of, write_labels, write_material

from svp.cli import run
from svp.errors import InputError
from svp.study.config import StrategySection
from svp.study.evidence import seal, sums_digest, vector_sums
from svp.study.labels import import_labels, import_source_labels
from svp.study.record import read_rounds, selection_digest
from svp.study.replay import replay
from svp.study.rounds import select
from svp.study.study import Study
from svp.study.why import why


def _campaign(root, name="study", *, budgets=(9, 6, 6), **changes):
    """Select and label `budgets`, all but the last one answered."""
    study = Study.create(root / name, config_of(root, **changes))
    for number, budget in enumerate(budgets):
        done = select(study, budget)
        if number < len(budgets) - 1:
            truth = truth_of(study)
            answers = {pick.id: truth[pick.id] for pick in done.picks}
            import_labels(study, write_labels(root / f"{name}-{number}.csv", answers))
    return study


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        write_material(root)
        _campaign(root)
    return root


@pytest.fixture
def study(material, tmp_path):
    """A copy that a test may tamper with."""
    shutil.copytree(material, tmp_path / "copy")
    return Study.open(tmp_path / "copy" / "study")


def _changes(result, what):
    return {change.name: (change.before, change.after) for change in result.changes
            if change.what == what}  # fmt: skip


def _edit(path, **changes):
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


def test_an_untouched_round_is_identical_whatever_came_later(study):
    import_source_labels(study)
    toml = study.path / "study.toml"
    toml.write_text(toml.read_text().replace('name = "margin"', 'name = "entropy"'))
    study = Study.open(study.path)
    for number in range(3):
        result = replay(study, number)
        assert (result.identical, result.recomputed) == (True, True)
        assert (result.changes, result.differing) == ((), ())
        assert [note.name for note in result.notes if note.what == "setting"] == ["strategy.name"]
    with pytest.raises(InputError, match=r"one of: 0, 1, 2\. Got 7"):
        replay(study, 7)


def test_a_changed_label_is_named(study):
    path = next(study.labels_dir.glob("*0000-*.csv"))
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    other = next(name for name in ("red", "blue") if name != rows[0]["label"])
    old, rows[0]["label"] = rows[0]["label"], other
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert replay(study, 0).identical  # it knew no labels
    for number in (1, 2):
        result = replay(study, number)
        assert not result.identical
        assert _changes(result, "label") == {rows[0]["id"]: (old, other)}


def test_changed_missing_and_new_images_are_named(study):
    images = study.path.parent / "images" / "train"
    gone, changed = sorted((images / "red").glob("*.png"))[:2]
    gone.unlink()
    shutil.copy(images / "blue" / "blue000.png", changed)
    shutil.copy(images / "blue" / "blue000.png", images / "red" / "new.png")
    result = replay(study, 1)
    assert (result.identical, result.recomputed) == (False, False)
    found = _changes(result, "item")
    assert set(found) == {"train/red/new.png", *(f"train/red/{p.name}" for p in (gone, changed))}
    assert found["train/red/new.png"][0] is None
    assert found[f"train/red/{gone.name}"][1] is None
    assert None not in found[f"train/red/{changed.name}"]


def test_another_seed_is_named_and_differs(study):
    _edit(study.rounds_dir / "000" / "round.json", seed=8)
    result = replay(study, 0)
    assert not result.identical
    assert result.differing
    assert _changes(result, "receipt") == {"seed": (None, "8")}
    assert set(_changes(result, "pick")) == {f"rank {rank}" for rank in result.differing}
    assert replay(study, 1).identical


def test_another_proxy_file_is_named(study):
    path = study.rounds_dir / "001" / "proxy.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = replay(study, 1)
    assert not result.identical
    assert not result.differing  # the proxy is fitted again, not read
    assert set(_changes(result, "proxy")) == {"proxy.safetensors"}


def test_an_edited_selection_is_named(study):
    path = study.rounds_dir / "001" / "selection.csv"
    rows = path.read_text().splitlines()
    rows[1], rows[2] = rows[2], rows[1]
    path.write_text("\n".join(rows) + "\n")
    result = replay(study, 1)
    assert result.differing == (1, 2)
    assert set(_changes(result, "selection")) == {"ids in selection.csv", "selection.csv"}
    # Round 2 left out what round 1 picked, so it rests on that file too.
    assert set(_changes(replay(study, 2), "selection")) == {"001/selection.csv"}


def test_a_utility_that_differs_in_its_last_bit_is_named(study):
    found = read_rounds(study)[1]
    path = found.folder / "selection.csv"
    value = found.picks[0].utility
    other = float(np.nextafter(np.float32(value), np.float32(2)))
    path.write_text(path.read_text().replace(repr(value), repr(other), 1))
    result = replay(study, 1)
    assert result.differing == (1,)


def test_changed_embeddings_are_named_by_item(study):
    path = study.rounds_dir / "000" / "vectors.npy"
    sums_M = np.load(path)
    assert len(sums_M) == 60
    assert not (study.rounds_dir / "001" / "vectors.npy").exists()  # the same: kept once
    sums_M[5] ^= np.uint64(1)  # as if that image had had another embedding then
    np.save(path, sums_M)
    for folder in ("000", "001"):
        receipt = json.loads((study.rounds_dir / folder / "round.json").read_text())
        receipt["evidence"]["vectors"]["digest"] = sums_digest(sums_M)
        receipt["seal"] = seal(receipt)
        _edit(study.rounds_dir / folder / "round.json", **receipt)
    train = sorted(key for key in truth_of(study) if key.startswith("train/"))
    for number in (0, 1):
        result = replay(study, number)
        assert not result.identical
        assert set(_changes(result, "embedding")) == {train[5]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [7, 8])
def test_a_checksum_sees_every_value(dtype, dim):
    x = torch.randn(5, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = vector_sums(x)
    assert len(set(before.tolist())) == 5
    for column in range(dim):
        changed = x.clone()
        changed[3, column] = -changed[3, column]
        assert (vector_sums(changed) != before).tolist() == [False, False, False, True, False]
    assert vector_sums(x[:0]).shape == (0,)


def test_replay_on_the_command_line(study, capsys):
    assert run(["replay", str(study.path), "--all", "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == "svp.replay/1"
    assert printed["identical"]
    assert [one["number"] for one in printed["rounds"]] == [0, 1, 2]
    _edit(study.rounds_dir / "001" / "round.json", budget=5)
    assert run(["replay", str(study.path), "--round", "1", "--device", "cpu"]) == 4
    assert "budget was edited, now 5" in capsys.readouterr().out
    assert run(["replay", str(study.path)]) == 3


def test_why_an_item_was_picked(study):
    _, second, last = read_rounds(study)
    pick = second.picks[2]
    found = why(study, pick.id)
    assert (found.state, found.round, found.rank) == ("picked", 1, 3)
    assert (found.utility, found.reason) == (pick.utility, pick.reason)
    assert found.classes[0].name == pick.predicted
    assert found.classes[0].probability == pytest.approx(pick.confidence, abs=1e-6)
    assert sum(one.probability for one in found.classes) == pytest.approx(1, abs=1e-5)
    first = {done.id for done in read_rounds(study)[0].picks}
    assert {other.id for other in found.labelled} <= first
    cosines = [other.cosine for other in found.labelled]
    assert cosines == sorted(cosines, reverse=True)
    # Margin scores each item alone: without one, the next in the ranking moves up.
    assert len(found.instead) == 1
    assert not found.also_changed
    assert found.instead[0] not in {done.id for done in second.picks}
    missed = why(study, found.instead[0], number=1)
    assert (missed.state, missed.rank) == ("candidate", 7)
    assert missed.utility <= second.picks[-1].utility
    assert why(study, last.picks[0].id).round == 2


def test_why_an_item_was_not_picked(study):
    first, second, _ = read_rounds(study)
    known = why(study, first.picks[0].id, number=1)
    assert known.state == "labelled"
    assert known.label in known.answer
    assert (
        why(study, next(k for k in truth_of(study) if k.startswith("test"))).state == "evaluation"
    )
    with pytest.raises(InputError, match="item of the study"):
        why(study, "train/none.png")
    with pytest.raises(InputError, match="one of: 0, 1, 2"):
        why(study, first.picks[0].id, number=9)
    assert why(study, second.picks[0].id, number=0).state == "candidate"


def test_why_of_a_strategy_that_weighs_items_together(material, tmp_path):
    shutil.copytree(material, tmp_path / "copy")
    study = _campaign(
        tmp_path / "copy", "other", strategy=StrategySection(name="coreset", first_round="random")
    )
    _, second, last = read_rounds(study)
    assert selection_digest(second.picks) == second.receipt["selection"]["digest"]
    taken = {pick.id for done in read_rounds(study) for pick in done.picks}
    free = next(k for k in truth_of(study) if k.startswith("train/") and k not in taken)
    found = why(study, free)
    assert (found.state, found.rank) == ("candidate", None)
    assert "no rank" in found.answer
    assert found.density.sampled > 0
    assert 0 <= found.density.share_denser <= 1
    picked = why(study, last.picks[0].id)
    assert picked.instead


def test_why_on_the_command_line(study, capsys):
    name = read_rounds(study)[1].picks[0].id
    assert run(["why", str(study.path), name, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Round 1 picked it" in said
    assert "Without it" in said
    assert run(["why", str(study.path), name, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "svp.why/1"
