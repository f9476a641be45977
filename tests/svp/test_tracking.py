import json
import logging
import sys
import types

import pytest

from svp.errors import InputError
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

    def finish(self):
        self._log.append("finished")


def test_a_failing_tracker_warns_once_and_breaks_nothing(tmp_path, caplog, monkeypatch):
    seen = []
    # The library's own surface as svp uses it; a network that fails at the second call.
    module = types.SimpleNamespace(init=lambda **options: _Run(seen))
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracking = open_tracking(tmp_path, ["wandb"])
    with caplog.at_level(logging.WARNING):
        for step in range(4):
            tracking.log("run", step, {"test_acc": 0.1 * step})
        tracking.close()
    assert seen == [{"test_acc": 0.0, "labels": 0}, {"test_acc": 0.1, "labels": 1}]
    assert len(caplog.records) == 1
    assert "no network" in caplog.text
    assert len((tmp_path / LINES).read_text().splitlines()) == 4


def test_lines_that_cannot_be_written_break_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    tracking = open_tracking(tmp_path / "file" / "inside")
    tracking.log("run", 0, {"a": 1.0})
    tracking.close()
    assert "cannot be written" in caplog.text
