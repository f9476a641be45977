"""`svp select` and `svp labels`: what to label next, and the answers."""

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from svp.cli.options import (
    DaskOption,
    DeviceOption,
    JsonOption,
    MemoryOption,
    ResultFileOption,
    SetOption,
    StudyArgument,
    parse_memory,
    parse_settings,
    resolve_device,
)
from svp.cli.output import emit, table
from svp.errors import InputError
from svp.progress import automatic

_SHOWN = 10

labels_app = typer.Typer(
    help="Import answers, export what waits for one.\n\nExample:\n\n"
    "  svp labels import mystudy answers.csv",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def select(
    study: StudyArgument,
    budget: Annotated[int, typer.Option("--budget", "-n", help="How many images to label.")],
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="Instead of the study's; see svp strategies.")
    ] = None,
    proxy: Annotated[
        Literal["linear", "mlp"] | None, typer.Option("--proxy", help="Instead of the study's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Instead of the study's.")
    ] = None,
    request: Annotated[
        str | None,
        typer.Option("--request", help="Name of this call: the same name, the same round."),
    ] = None,
    dask: DaskOption = None,
    device: DeviceOption = "auto",
    memory: MemoryOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Choose the next images to label, in the order to label them.

    Without new labels the open round is returned again: its images still wait.

    Example:

      svp select mystudy --budget 200

      svp select mystudy --budget 200 --memory 4GiB --set strategy.random_share=0.1

      svp select mystudy --budget 200 --dask local
    """
    from svp.cluster import connect
    from svp.study.rounds import select as select_round
    from svp.study.study import Study

    opened, own_device = Study.open(study, parse_settings(settings)), resolve_device(device)
    with contextlib.ExitStack() as stack:
        executor = None if dask is None else stack.enter_context(connect(dask))
        done = select_round(
            opened,
            budget,
            strategy=strategy,
            proxy=proxy,
            seed=seed,
            request=request,
            device=own_device,
            memory_bytes=parse_memory(memory),
            executor=executor,
            progress=automatic(),
        )
    selection = done.folder / "selection.csv"
    state = "is still open" if done.reopened else "selected"
    rows = [
        [str(pick.rank), pick.id, f"{pick.utility:.4g}", pick.predicted or ""]
        for pick in done.picks[:_SHOWN]
    ]
    shown = table(["rank", "id", "utility", "predicted"], rows)
    more = f"\n… and {len(done.picks) - _SHOWN:,} more" if len(done.picks) > _SHOWN else ""
    emit(
        "svp.select/1",
        {
            "round": done.number,
            "reopened": done.reopened,
            "selection": selection,
            "receipt": done.folder / "round.json",
            "strategy": done.receipt["strategy"],
            "ids": [pick.id for pick in done.picks],
        },
        f"Round {done.number} {state}: {len(done.picks):,} images by "
        f"{done.receipt['strategy']['name']}.\n{shown}{more}\n"
        f"All of them, in the order to label: {selection}\n"
        f"Then: svp labels import {study} FILE   (columns id,label)",
        as_json=as_json,
        result_file=result_file,
    )


@labels_app.command("import")
def import_(
    study: StudyArgument,
    file: Annotated[
        Path | None, typer.Argument(help="CSV or Parquet with columns id and label.")
    ] = None,
    from_source: Annotated[
        bool,
        typer.Option(
            "--from-source", help="Take the labels that the source has: class folders, a column."
        ),
    ] = False,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Import answers. Importing the same file twice changes nothing; the newest answer wins.

    Example:

      svp labels import mystudy answers.csv
    """
    from svp.study.labels import import_labels, import_source_labels
    from svp.study.study import Study

    if (file is None) is not from_source:
        raise InputError(
            "svp labels import must be given a file or --from-source. Got "
            f"{'both' if from_source else 'neither'}. Give one of them."
        )
    opened = Study.open(study)
    progress = automatic()
    if file is None:
        done = import_source_labels(opened, progress)
    else:
        done = import_labels(opened, file, progress)
    said = [
        f"{done.new:,} new labels, {done.changed:,} changed, {done.unchanged:,} known, "
        f"{done.blank:,} blank. The study has {done.labelled:,}."
    ]
    if done.outdated:
        said.append(f"{done.outdated:,} older than the label that the study has, so not used.")
    if done.conflicts:
        said.append(f"{len(done.conflicts):,} images had another label before; the newest counts:")
        said += [f"  {c.id}: {c.old} -> {c.new}, kept {c.kept}" for c in done.conflicts[:_SHOWN]]
    emit(
        "svp.labels.import/1",
        {"result": done},
        "\n".join(said),
        as_json=as_json,
        result_file=result_file,
    )


@labels_app.command("export")
def export(
    study: StudyArgument,
    output: Annotated[Path, typer.Argument(help="The CSV to write.")],
    waiting: Annotated[
        bool,
        typer.Option(
            "--waiting", help="Selected images without a label, with an empty label column."
        ),
    ] = False,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Write the labels so far, or with --waiting the images to label, as CSV.

    Example:

      svp labels export mystudy todo.csv --waiting
    """
    from svp.study.labels import export_items, export_labels
    from svp.study.study import Study

    opened = Study.open(study)
    count = export_items(opened, output) if waiting else export_labels(opened, output)
    what = "images to label" if waiting else "labels"
    emit(
        "svp.labels.export/1",
        {"file": output, "rows": count},
        f"Wrote {count:,} {what} to {output}.",
        as_json=as_json,
        result_file=result_file,
    )
