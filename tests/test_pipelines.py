"""Stages run as processes, and only exit code 75 is tried again."""

import sys
from pathlib import Path

import pytest

from pipelines.stages import Stage, StageError, run_stage, study_stages


def failing(code: int, log: Path) -> tuple[str, ...]:
    body = f"import sys; open({str(log)!r}, 'a').write('x'); sys.exit({code})"
    return (sys.executable, "-c", body)


def test_stages_wait_for_one_another():
    stages = study_stages(Path("study"), budget=100)
    seen: set[str] = set()
    for stage in stages:
        assert set(stage.after) <= seen
        seen.add(stage.name)
    assert ("select", "study", "--budget", "100") in [stage.command for stage in stages]


@pytest.mark.parametrize(("code", "runs"), [(75, 3), (3, 1), (4, 1), (1, 1)])
def test_only_temporary_failures_are_tried_again(tmp_path, code, runs):
    log = tmp_path / "runs"
    pauses: list[float] = []
    with pytest.raises(StageError, match=str(code)) as caught:
        run_stage(
            Stage(name="embed", command=("x",)), program=failing(code, log), sleep=pauses.append
        )
    assert caught.value.returncode == code
    assert len(log.read_text()) == runs
    assert pauses == [30.0, 60.0][: runs - 1]


def test_success_is_quiet(tmp_path):
    run_stage(Stage(name="embed", command=("x",)), program=failing(0, tmp_path / "runs"))


def test_people_are_not_run():
    with pytest.raises(StageError, match="people"):
        run_stage(Stage(name="labels", command=()))
