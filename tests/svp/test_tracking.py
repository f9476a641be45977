import json
import logging
import os
import subprocess
import sys
import time
import types

import pytest
from study_fixtures import config_of, truth_of, write_images, write_labels, write_material

from svp.errors import InputError
from svp.study.config import TrackingSection
from svp.study.finetune import finetune_study
from svp.study.labels import import_labels
from svp.study.pretraining import pretrain_source
from svp.study.rounds import select
from svp.study.study import Study
from svp.study.tracking import LINES, open_tracking


def test_json_lines_always(tmp_path):
    tracking = open_tracking(tmp_path / "new")
    tracking.log("margin-linear-0", 100, {"test_acc": 0.5, "gain": float("nan")})
    tracking.log("margin-linear-0", 200, {"test_acc": 0.6})
    tracking.close()
    lines = [json.loads(line) for line in (tmp_path / "new" / LINES).read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200]
    assert (lines[0]["run"], lines[0]["test_acc"], lines[0]["gain"]) == (
        "margin-linear-0", 0.5, None,
    )  # fmt: skip


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(InputError, match="tensorboard, mlflow, wandb"):
        open_tracking(tmp_path, ["paper"])


def test_a_tracker_that_is_not_installed_is_one_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with caplog.at_level(logging.WARNING):
        tracking = open_tracking(tmp_path, ["mlflow"])
        tracking.log("run", 1, {"a": 1.0})
    assert [record.getMessage() for record in caplog.records] == [
        'mlflow is not installed: pip install "svp[mlflow]"'
    ]
    assert (tmp_path / LINES).is_file()


class _Run:
    def __init__(self, log):
        self._log = log

    def log(self, numbers):
        self._log.append(numbers)
        if len(self._log) == 2:
            raise ConnectionError("no network")

    def define_metric(self, name, **options):
        pass

    def finish(self):
        self._log.append("finished")


def test_a_failing_tracker_warns_once_and_breaks_nothing(tmp_path, caplog, monkeypatch):
    seen = []
    # The library's own surface as svp uses it; a network that fails at the second call.
    module = types.SimpleNamespace(init=lambda **options: _Run(seen), Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracking = open_tracking(tmp_path, ["wandb"])
    with caplog.at_level(logging.WARNING):
        for step in range(4):
            tracking.log("run", step, {"test_acc": 0.1 * step})
        tracking.close()
    assert seen == [{"test_acc": 0.0, "step": 0}, {"test_acc": 0.1, "step": 1}]
    assert len(caplog.records) == 1
    assert "no network" in caplog.text
    assert len((tmp_path / LINES).read_text().splitlines()) == 4


def test_lines_that_cannot_be_written_break_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    tracking = open_tracking(tmp_path / "file" / "inside")
    tracking.log("run", 0, {"a": 1.0})
    tracking.close()
    assert "cannot be written" in caplog.text


# The real trackers, where they are installed


RUNS = {"random-linear-0": [0.5, 0.5625, 0.625], "margin-linear-0": [0.5, 0.75, 0.875]}


def _log(folder, name):
    with open_tracking(folder, [name]) as tracking:
        for run, values in RUNS.items():
            for place, value in enumerate(values):
                tracking.log(run, 10 * (place + 1), {"test_acc": value, "gain": float("nan")})
        return set(tracking.trackers)


def _scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_shows_the_curves(tmp_path):
    pytest.importorskip("tensorboard")
    assert _log(tmp_path, "tensorboard") == {"json lines", "tensorboard"}
    for run, values in RUNS.items():
        found = _scalars(tmp_path / "tensorboard" / run)
        assert found["test_acc"] == [(10, values[0]), (20, values[1]), (30, values[2])]


def test_tensorboard_that_cannot_write_breaks_nothing(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    assert _log(tmp_path, "tensorboard") == {"json lines"}
    assert len([r for r in caplog.records if "tensorboard" in r.getMessage()]) == 1
    assert len((tmp_path / LINES).read_text().splitlines()) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_the_curves_and_goes_on_with_a_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    for _ in range(2):
        assert _log(tmp_path / "study", "mlflow") == {"json lines", "mlflow"}
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("svp study")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == set(RUNS)
    assert len(runs) == len(RUNS)
    for run in runs:
        assert run.info.status == "FINISHED"
        seen = client.get_metric_history(run.info.run_id, "test_acc")
        assert sorted({(one.step, one.value) for one in seen}) == [
            (10 * (place + 1), value) for place, value in enumerate(RUNS[run.info.run_name])
        ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_mlflow_server_that_is_gone_costs_seconds_and_a_warning(tmp_path, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    began = time.monotonic()
    assert _log(tmp_path, "mlflow") == {"json lines"}
    assert time.monotonic() - began < 60
    assert len([r for r in caplog.records if r.name == "svp.study.tracking"]) == 1
    assert len((tmp_path / LINES).read_text().splitlines()) == 6


def _wandb_history(file):
    """Read an offline run: records in blocks of 32 KiB, each with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, part, name, seen = file.read_bytes(), 7, b"", "", []
    while at < len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record.FromString(part)
            part = b""
            name = record.run.display_name or name
            items = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
            if items:
                seen.append((int(items["step"]), float(items["test_acc"])))
    return name, seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_the_curves_without_a_network(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert _log(tmp_path, "wandb") == {"json lines", "wandb"}
    expected = {
        run: [(10 * (place + 1), value) for place, value in enumerate(values)]
        for run, values in RUNS.items()
    }
    # A process of wandb's own writes the files, a moment later.
    until, found = time.monotonic() + 120, {}
    while found != expected and time.monotonic() < until:
        time.sleep(0.2)
        found = dict(map(_wandb_history, tmp_path.glob("wandb/offline-run-*/*.wandb")))
    assert found == expected
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_wandb_server_that_is_gone_costs_seconds_and_a_warning(tmp_path):
    pytest.importorskip("wandb")
    # A process of its own: wandb reads its settings once.
    code = f"""
import logging, pathlib
from svp.study.tracking import open_tracking
logging.basicConfig(level=logging.WARNING)
with open_tracking(pathlib.Path({str(tmp_path)!r}), ["wandb"]) as tracking:
    for step in range(3):
        tracking.log("run", step, {{"loss": 1.0}})
    print(*tracking.trackers)
"""
    gone = {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": "0" * 40,
    }
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **gone}, capture_output=True, text=True,
        check=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert ended.stdout == "json lines\n"
    assert ended.stderr.count("no longer receives numbers") == 1
    assert time.monotonic() - began < 240
    assert len((tmp_path / LINES).read_text().splitlines()) == 3


# What a study logs


def test_rounds_and_trainings_are_logged(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path / "cache"))
    write_material(tmp_path, train=6, test=2)
    tracked = TrackingSection(to=("tensorboard",))
    study = Study.create(tmp_path / "study", config_of(tmp_path, tracking=tracked))
    truth = truth_of(study)
    first = select(study, 6, strategy="random")
    labels = {pick.id: truth[pick.id] for pick in first.picks}
    import_labels(study, write_labels(tmp_path / "labels.csv", labels))
    select(study, 3)
    finetune_study(study)
    lines = [json.loads(line) for line in (study.path / LINES).read_text().splitlines()]
    rounds = [line for line in lines if line["run"] == "rounds"]
    assert [(line["step"], line["selected"]) for line in rounds] == [(0, 6), (6, 3)]
    trained = [line for line in lines if line["run"] == "model"]
    assert [line["step"] for line in trained] == [1, 2, 2]
    assert all("loss" in line for line in trained[:2])
    assert 0 <= trained[-1]["accuracy"] <= 1
    shown = _scalars(study.path / "tensorboard" / "model")
    assert [step for step, _ in shown["loss"]] == [1, 2]
    assert shown["loss"][0][1] == pytest.approx(trained[0]["loss"])
    assert set(_scalars(study.path / "tensorboard" / "rounds")) > {"selected", "select_s"}
    # A finished training is returned, not logged again.
    finetune_study(study)
    assert len((study.path / LINES).read_text().splitlines()) == len(lines)


def test_a_study_refuses_a_tracker_nobody_knows(tmp_path):
    with pytest.raises(InputError, match="tensorboard, mlflow, wandb"):
        TrackingSection(to=("paper",))


def test_pretraining_logs_every_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path / "cache"))
    write_images(tmp_path / "images", train=6, test=1)
    made = {"arch": "resnet8", "image_size": 16, "epochs": 2, "batch_size": 8}
    pretrain_source(tmp_path / "images", tmp_path / "encoder", overrides=made)
    lines = [json.loads(line) for line in (tmp_path / "encoder" / LINES).read_text().splitlines()]
    assert [(line["run"], line["step"]) for line in lines] == [("pretrain", 1), ("pretrain", 2)]
    assert all(line["loss"] > 0 and line["spread"] > 0 for line in lines)
