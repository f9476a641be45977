"""Refreshing a study's features: who asks, what is made, what every later command reads."""

import fnmatch
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from svp.errors import InputError
from svp.study.config import FinetuneSection, RefreshSection
from svp.study.finetune import finetune_study
from svp.study.labels import import_labels
from svp.study.refresh import refresh
from svp.study.refreshes import encoder_in_force, read_refreshes
from svp.study.replay import replay
from svp.study.rounds import select
from svp.study.study import Study
from tests.svp.study_fixtures import config_of, truth_of, write_labels, write_material

BUDGET = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refresh")
    write_material(folder)
    return folder


def _study(root: Path, name: str, **refresh_options: object) -> Study:
    section = RefreshSection(finetune={"steps": 3}, **refresh_options)  # type: ignore[arg-type]
    return Study.create(root / name, config_of(root, refresh=section))


def _answer(study: Study, number: int) -> None:
    truth = truth_of(study)
    folder = study.rounds_dir / f"{number:03d}"
    ids = [line.split(",")[2] for line in (folder / "selection.csv").read_text().splitlines()[1:]]
    file = study.path / f"answers{number}.csv"
    import_labels(study, write_labels(file, {key: truth[key] for key in ids}))


def test_every_round_records_a_verdict_and_nothing_happens_by_default(root: Path) -> None:
    study = _study(root, "asks")
    first = select(study, BUDGET)
    assert first.receipt["refresh"]["verdict"] is None
    for number in range(2):
        _answer(study, number)
        done = select(study, BUDGET)
    entry = done.receipt["refresh"]
    assert entry["mode"] == "ask"
    assert entry["encoder"] == done.receipt["encoder"]["id"] == study.encoder_id()
    assert entry["verdict"]["labels"] == 2 * BUDGET
    assert entry["done"] is None
    assert read_refreshes(study) == []


def test_a_fixed_position_refreshes_once_and_later_rounds_use_it(root: Path) -> None:
    study = _study(root, "fixed", mode=f"at-labels:{BUDGET}")
    select(study, BUDGET)
    _answer(study, 0)
    second = select(study, BUDGET)
    made = read_refreshes(study)
    assert [one.number for one in made] == [1]
    assert second.receipt["refresh"]["done"] == 1
    assert second.receipt["refresh"]["encoder"] == study.encoder_id()
    assert second.receipt["encoder"]["id"] == made[0].encoder_id == encoder_in_force(study)
    assert made[0].encoder_id != study.encoder_id()
    record = study.open_store().encoder(made[0].encoder_id)
    assert record["lineage"]["parent"] == study.encoder_id()
    _answer(study, 1)
    third = select(study, BUDGET)
    assert len(read_refreshes(study)) == 1
    # Scores of other features are no measure of change.
    assert third.receipt["refresh"]["encoder"] == made[0].encoder_id
    assert third.receipt["refresh"]["verdict"]["reason"] in ("first score", "classes separate")
    for number in range(3):
        assert replay(study, number).identical


def test_the_same_labels_give_the_same_encoder_whoever_asked(root: Path) -> None:
    one, two = _study(root, "one", mode="at-labels:1"), _study(root, "two", mode="never")
    for study in (one, two):
        select(study, BUDGET)
        _answer(study, 0)
    select(one, BUDGET)
    forced = refresh(two, force=True)
    assert forced.refreshed
    assert forced.refresh is not None
    assert forced.refresh.record["forced"]
    assert encoder_in_force(one) == encoder_in_force(two)


def test_refresh_does_what_the_criterion_asks_and_nothing_else(root: Path) -> None:
    study = _study(root, "quiet", mode="auto", threshold=1e-12)
    select(study, BUDGET)
    _answer(study, 0)
    done = refresh(study)
    assert not done.refreshed
    assert done.verdict is not None
    assert not done.verdict.stale
    assert read_refreshes(study) == []
    assert not study.refreshes_dir.exists()


def test_auto_refreshes_when_the_score_settles(root: Path) -> None:
    study = _study(root, "auto", mode="auto", threshold=1e9, labels_per_class=0.0, n_sigma=3.0)
    select(study, BUDGET)
    for number in range(2):
        _answer(study, number)
        done = select(study, BUDGET)
    assert done.receipt["refresh"]["verdict"]["reason"] == "score settled"
    assert done.receipt["refresh"]["done"] == 1
    tuned = finetune_study(study)
    assert tuned.model.description["config"]["mode"] == "ft"


def test_the_final_training_starts_from_a_probe_without_a_refresh(root: Path) -> None:
    options = {"steps": 2, "batch_size": 8, "uratio": 1, "ema": 0.5, "method": "supervised"}
    config = config_of(
        root,
        refresh=RefreshSection(mode="auto", threshold=1e-12),
        finetune=FinetuneSection(options=options),
    )
    study = Study.create(root / "probe", config)
    select(study, BUDGET)
    _answer(study, 0)
    assert finetune_study(study).model.description["config"]["mode"] == "lp-ft"


def test_a_dry_run_says_the_cost_and_does_nothing(root: Path) -> None:
    study = _study(root, "dry")
    select(study, BUDGET)
    _answer(study, 0)
    done = refresh(study, force=True, dry_run=True)
    assert not done.refreshed
    assert done.cost.steps == 3
    assert "3 training steps" in done.cost.text
    assert read_refreshes(study) == []


def test_without_labels_there_is_nothing_to_refresh(root: Path) -> None:
    study = _study(root, "empty")
    assert refresh(study).verdict is None
    with pytest.raises(InputError, match="at least two classes"):
        refresh(study, force=True)


@pytest.mark.parametrize("mode", ["sometimes", "at-labels:", "at-labels:0", "at-labels:x"])
def test_unknown_modes_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match=r"refresh\.mode must be"):
        RefreshSection(mode=mode)


def _refresh_until(path: str, published: str) -> None:
    """Refresh a study; die when the file whose path matches is complete but not yet in its place.

    An audit hook sees each file before it gets its name, so the instant does not depend on timing.
    """

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.rename", "os.link") and fnmatch.fnmatch(str(arguments[1]), published):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    refresh(Study.open(Path(path)), force=True)


@pytest.mark.slow
def test_a_killed_refresh_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    write_material(tmp_path)
    whole = _study(tmp_path, "whole")
    select(whole, BUDGET)
    _answer(whole, 0)
    # Stores of their own: what another refresh embedded is not to be found there.
    shutil.copytree(tmp_path / "store", tmp_path / "other-store")
    shutil.copytree(whole.path, tmp_path / "killed")
    settings = tmp_path / "killed" / "study.toml"
    settings.write_text(settings.read_text().replace('"../store"', '"../other-store"'))
    killed = Study.open(tmp_path / "killed")
    assert killed.store_url != whole.store_url
    refresh(whole, force=True)
    made = encoder_in_force(whole)

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "svp.finetune.run"])
    for published in (
        "*/001/model/model.safetensors",  # trained, nothing of it kept
        "*/001/model/metrics.json",  # the model is there, but not finished
        "*/001/encoder/encoder.json",  # weights without their description
        f"*/encoders/{made}/encoder.json",  # the store does not know the encoder yet
        f"*/encoders/{made}/eval/segments/*/embeddings/c.*",  # not one vector is stored
        f"*/encoders/{made}/eval/segments/*.json",  # vectors that no manifest names
        "*/001/refresh.json",  # everything but the record
    ):
        process = context.Process(target=_refresh_until, args=(str(killed.path), published))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, published
        process.close()
        assert read_refreshes(killed) == []
        assert encoder_in_force(killed) == killed.encoder_id()

    assert refresh(killed, force=True).refreshed
    assert encoder_in_force(killed) == made
    for file in ("model/model.safetensors", "encoder/weights.safetensors"):
        theirs, ours = (one.refreshes_dir / "001" / file for one in (whole, killed))
        assert theirs.read_bytes() == ours.read_bytes()
    assert read_refreshes(killed)[0].record["forced"]
    digests = whole.scan().pool.digests
    x_theirs, x_ours = (one.open_store().table(made).read(digests) for one in (whole, killed))
    assert x_theirs.tobytes() == x_ours.tobytes()
