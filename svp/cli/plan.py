"""`svp plan`: what a study will take, and how far off the plan was."""

from typing import TYPE_CHECKING, Annotated

import typer

from svp.cli.options import (
    DeviceOption,
    JsonOption,
    ResultFileOption,
    SetOption,
    StudyArgument,
    parse_settings,
    resolve_device,
)
from svp.cli.output import emit, table
from svp.errors import InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.study.planning import Deviation, StudyPlan


def plan(
    study: StudyArgument,
    budget: Annotated[
        int | None, typer.Option("--budget", "-n", min=1, help="Labels per round.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of labelling.")] = 5,
    sample: Annotated[int, typer.Option("--sample", min=8, help="Images to time.")] = 512,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the stored plan with what happened.")
    ] = False,
    device: DeviceOption = "auto",
    settings: SetOption = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Time a sample on this machine and predict hours, memory, bytes and money.

    Examples:

      svp plan mystudy --budget 200 --rounds 5

      svp plan mystudy --check
    """
    from svp.study.planning import deviations, plan_study, read_plan, total_error
    from svp.study.study import Study

    opened = Study.open(study, parse_settings(settings))
    if check:
        if read_plan(opened) is None:
            raise InputError(
                f"A study must be planned before it is checked. Got no plan in {study}. "
                f"Run: svp plan {study} --budget N"
            )
        found = deviations(opened)
        emit(
            "svp.plan.check/1",
            {"deviations": found, "total_error": total_error(found)},
            check_text(found),
            as_json=as_json,
            result_file=result_file,
        )
        return
    if budget is None:
        raise InputError(
            "svp plan must know how many labels a round buys. Got no --budget. "
            f"Run: svp plan {study} --budget N"
        )
    made = plan_study(
        opened,
        budget=budget,
        rounds=rounds,
        sample=sample,
        device=resolve_device(device),
        progress=automatic(),
    )
    emit(
        "svp.plan/1",
        {"plan": made},
        plan_text(made),
        as_json=as_json,
        result_file=result_file,
    )


def plan_text(made: "StudyPlan") -> str:
    """Return a plan for people."""
    rows = [[name, _duration(seconds)] for name, seconds in _by_stage(made).items()]
    lines = [
        table(["stage", "time"], rows),
        "",
        f"{made.items:,} images at {made.images_per_s:,.0f} images/s; {made.rounds} rounds of "
        f"{made.budget:,} labels: {made.labels:,} labels.",
        f"{made.hours:.2f} hours on {made.device} ({made.gpu_hours:.2f} GPU-hours), up to "
        f"{made.memory_bytes / 1e9:.1f} GB of memory, {made.stored_bytes / 1e9:.3f} GB stored, "
        f"{made.requests:,} requests to an object store.",
    ]
    if made.money is None:
        lines.append("No prices in study.toml, so no money: add a section [prices] with as_of.")
    else:
        one = made.money
        lines.append(
            f"{one.currency} {one.total:,.2f} at the prices of {one.as_of}: labels "
            f"{one.labels:,.2f}, machine {one.machine:,.2f}, storage for a month "
            f"{one.storage_month:,.2f}, requests {one.requests:,.2f}."
        )
    return "\n".join(lines)


def check_text(found: "tuple[Deviation, ...]") -> str:
    """Return predictions beside what happened, for people."""
    if not found:
        return "No planned stage has been run yet."
    from svp.study.planning import total_error

    rows = [
        [one.name, f"{one.predicted_s:.1f}", f"{one.actual_s:.1f}", f"{one.error:+.0%}"]
        for one in found
    ]
    shown = table(["stage", "planned s", "took s", "error"], rows)
    return f"{shown}\n\nAll of them together: the plan was off by {total_error(found):+.0%}."


def _by_stage(made: "StudyPlan") -> dict[str, float]:
    """Return seconds by stage, the selections of all rounds as one."""
    seconds: dict[str, float] = {}
    for one in made.stages:
        name = one.name.split()[0]
        seconds[name] = seconds.get(name, 0.0) + one.seconds
    return seconds


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
