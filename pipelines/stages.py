"""A study as stages: commands a scheduler can run, kill, retry and run twice.

Every stage reads immutable inputs and publishes its output in one atomic step, so a scheduler
needs to know three things only: the command, what it waits for, and which exit codes are worth
another try.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from svp.errors import SvpError, TemporaryError

# A process that the machine killed (137, 143) or interrupted (130) goes on where it was stopped.
STOPPED: Final = frozenset({130, 137, 143})
RETRYABLE: Final = frozenset({TemporaryError.exit_code}) | STOPPED
NEEDS_PEOPLE: Final = "labels"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One command of a study.

    Attributes:
        name: Unique within the study, such as `select`.
        command: Arguments behind the program's name; empty for the stage that waits for people.
        after: Names of the stages that must have ended well.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()


def study_stages(study: Path, *, budget: int) -> tuple[Stage, ...]:
    """Return the stages of one round of a study and its end, in an order that may be run.

    Args:
        study: The study's folder.
        budget: Labels to buy in the round.

    Returns:
        Embed, select, labels (done by people: its command is empty), fine-tune, report.
    """
    folder = str(study)
    return (
        Stage(name="embed", command=("embed", folder)),
        Stage(name="select", command=("select", folder, "--budget", str(budget)), after=("embed",)),
        Stage(name=NEEDS_PEOPLE, command=(), after=("select",)),
        Stage(name="finetune", command=("finetune", folder), after=(NEEDS_PEOPLE,)),
        Stage(name="report", command=("report", folder), after=("finetune",)),
    )


def worth_another_try(exit_code: int) -> bool:
    """Return whether the same command may succeed later.

    Args:
        exit_code: As a shell gives it, or negative for a signal, as Python does.
    """
    return (128 - exit_code if exit_code < 0 else exit_code) in RETRYABLE


def run_stage(
    stage: Stage,
    *,
    tries: int = 3,
    pause_s: float = 30.0,
    program: tuple[str, ...] = (sys.executable, "-m", "svp"),
    environment: Mapping[str, str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Run a stage as a process; try again only when the exit code says that it may help.

    Args:
        stage: The stage; one without a command is done by people and refused here.
        tries: Runs at most.
        pause_s: Seconds before the second run; doubled before each further one.
        program: How svp is started.
        environment: Variables added to those of this process.
        sleep: Waits; replaced by tests.

    Raises:
        StageError: If the stage failed for good; carries the exit code.
    """
    if not stage.command:
        raise StageError(
            f"The stage {stage.name!r} must be done by people. Got a request to run it. "
            "Wait for their labels, then run the stages after it.",
            exit_code=2,
        )
    for attempt in range(tries):
        done = subprocess.run(
            [*program, *stage.command], env={**os.environ, **(environment or {})}, check=False
        )
        if done.returncode == 0:
            return
        if not worth_another_try(done.returncode) or attempt == tries - 1:
            raise StageError(
                f"The stage {stage.name!r} must end with exit code 0. Got {done.returncode} after "
                f"{attempt + 1} run(s). Its last line on stderr says why.",
                exit_code=done.returncode,
            )
        sleep(pause_s * 2**attempt)


class StageError(SvpError, RuntimeError):
    """A stage failed and another try would not help.

    Attributes:
        returncode: The exit code of the stage's last run.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.returncode = exit_code
