"""`svp refresh`: new features when the old ones have gone stale."""

from typing import TYPE_CHECKING, Annotated

import typer

from svp.cli.deviation import say_deviation
from svp.cli.options import (
    BatchSizeOption,
    DaskOption,
    DeviceOption,
    JsonOption,
    ResultFileOption,
    SetOption,
    StudyArgument,
    WorkersOption,
    dask_workers,
    parse_settings,
    resolve_device,
)
from svp.cli.output import emit
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.alignment import Verdict


def refresh(
    study: StudyArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Refresh whatever the criterion says.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it costs.")
    ] = False,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    device: DeviceOption = "auto",
    settings: SetOption = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Fine-tune on the labels so far and embed again, if the criterion asks for it.

    `svp select` does it by itself where the study says refresh.mode = "auto". Killed? Run it
    again. With --dask the fine-tune runs here and the workers embed.

    Examples:

      svp refresh mystudy --dry-run

      svp refresh mystudy --dask tcp://scheduler:8786
    """
    from svp.study.refresh import refresh as refresh_study
    from svp.study.study import Study

    given = {"encoder.batch_size": batch_size, "encoder.workers": workers}
    of_this_run = {key: value for key, value in given.items() if value is not None}
    opened = Study.open(study, {**of_this_run, **parse_settings(settings)})
    with dask_workers(None if dry_run else dask, device) as extra:
        done = refresh_study(
            opened,
            force=force,
            dry_run=dry_run,
            device=resolve_device(device),
            progress=automatic(),
            **extra,
        )
    said = [verdict_text(done.verdict)]
    if done.refresh is not None:
        say_deviation(opened, "refresh")
        seconds = done.refresh.record["seconds"]
        said.append(
            f"Refreshed in {seconds['total']:,.0f} s: encoder {done.refresh.encoder_id[:12]} is in "
            f"force. Next: svp select {study} --budget N"
        )
    elif dry_run:
        said.append(f"A refresh would take {done.cost.text}.")
    else:
        said.append("Nothing to do.")
    emit(
        "svp.refresh.result/1",
        {"result": done},
        "\n".join(said),
        as_json=as_json,
        result_file=result_file,
    )


def verdict_text(verdict: "Verdict | None") -> str:
    """Return what the criterion said, for people."""
    if verdict is None:
        return "No labels yet, so nothing to judge the features by."
    measured = [f"{verdict.labels:,} labels of {verdict.classes} classes"]
    if verdict.ped_steps is not None:
        measured.append(f"{verdict.ped_steps} steps of PED")
    if verdict.score is not None:
        measured.append(f"LogME {verdict.score:.4f}")
    if verdict.change is not None:
        measured.append(f"changed by {verdict.change:.3g} (threshold {verdict.threshold:g})")
    state = "stale" if verdict.stale else "not stale"
    return f"Features are {state}: {verdict.reason} ({', '.join(measured)})."
