"""`svp select` and `svp labels`: what to label next, and the answers."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from svp.cli.deviation import say_deviation
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

if TYPE_CHECKING:
    from svp.label.vote import Dispute
    from svp.study.labels import ImportResult

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
    if not done.reopened:
        say_deviation(opened, "select")
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
        Path | None,
        typer.Argument(help="CSV or Parquet with columns id and label, or a tool's export."),
    ] = None,
    from_source: Annotated[
        bool,
        typer.Option(
            "--from-source", help="Take the labels that the source has: class folders, a column."
        ),
    ] = False,
    format: Annotated[
        Literal["auto", "table", "label-studio", "fiftyone", "cvat"],
        typer.Option("--format", help="What the file is; auto looks at it."),
    ] = "auto",
    annotator: Annotated[
        str, typer.Option("--annotator", help="Who answered, where the file does not say.")
    ] = "",
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="CSV with columns annotator and weight, for their votes."),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option("--field", help="Samples of FiftyOne: the field that people labelled."),
    ] = None,
    skip_unknown: Annotated[
        bool,
        typer.Option("--skip-unknown", help="List unknown ids instead of refusing the file."),
    ] = False,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Import answers. Importing the same file twice changes nothing; the newest answer wins.

    Where several annotators answered, the votes of all of them decide.

    Example:

      svp labels import mystudy answers.csv

      svp labels import mystudy label-studio-export.json --weights people.csv
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
        done = import_labels(
            opened,
            file,
            progress,
            format=format,
            annotator=annotator,
            weights=weights,
            field=field,
            skip_unknown=skip_unknown,
        )
    emit(
        "svp.labels.import/1",
        {"result": done},
        "\n".join(_import_text(done)),
        as_json=as_json,
        result_file=result_file,
    )


def _import_text(done: "ImportResult") -> Iterator[str]:
    skipped = f", {done.skipped:,} skipped" if done.skipped else ""
    yield (
        f"{done.new:,} new labels, {done.changed:,} changed, {done.unchanged:,} known, "
        f"{done.blank:,} blank{skipped}. The study has {done.labelled:,}."
    )
    if done.outdated:
        yield f"{done.outdated:,} older than the label that the study has, so not used."
    if done.unknown:
        yield f"{len(done.unknown):,} ids are no images of the study, so left out:"
        yield from _some([f"  {name}" for name in done.unknown])
    if done.new_classes:
        names = done.new_classes
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        yield (
            f"New classes: {', '.join(names[:_SHOWN])}{more}. If one is a typing error, import the "
            "right label for its images."
        )
    if done.conflicts:
        yield f"{len(done.conflicts):,} images had another label before; the newest counts:"
        yield from _some([f"  {c.id}: {c.old} -> {c.new}, kept {c.kept}" for c in done.conflicts])
    if done.agreement is not None:
        measured = done.agreement
        alpha = "undefined" if math.isnan(measured.alpha) else f"{measured.alpha:.2f}"
        yield (
            f"Images with answers of several people: {measured.items:,}. "
            f"{measured.pairwise:.0%} of pairs agree, Krippendorff's alpha {alpha}."
        )
        if len(measured.annotators) > 2:
            people = [f"{one.name or 'unnamed'} {one.agreement:.0%}" for one in measured.annotators]
            yield f"Agreement with the others: {', '.join(people[:_SHOWN])}"
    if done.disputes:
        yield f"They disagree on {len(done.disputes):,}:"
        yield from _some([_dispute_text(dispute) for dispute in done.disputes])


def _dispute_text(dispute: "Dispute") -> str:
    said = ", ".join(f"{who or 'unnamed'}: {label}" for who, label in dispute.votes)
    how = " (a tie, the newest counts)" if dispute.tie else ""
    return f"  {dispute.id}: {said}; kept {dispute.kept}{how}"


def _some(lines: list[str]) -> Iterator[str]:
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield f"  … and {len(lines) - _SHOWN:,} more, see --json"


@labels_app.command("export")
def export(
    study: StudyArgument,
    output: Annotated[Path, typer.Argument(help="The file to write; for FiftyOne a folder.")],
    waiting: Annotated[
        bool,
        typer.Option(
            "--waiting", help="Selected images without a label, with an empty label column."
        ),
    ] = False,
    number: Annotated[
        int | None,
        typer.Option("--round", min=0, help="The images of this round, labelled or not."),
    ] = None,
    format: Annotated[
        Literal["csv", "parquet", "label-studio", "fiftyone", "cvat"] | None,
        typer.Option("--format", help="What to write; default csv, or parquet by name."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class to offer besides the known ones. May be repeated."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            help="Label Studio: the folder it serves, or the address before each image; "
            "default the folder above the source.",
        ),
    ] = None,
    guesses: Annotated[
        bool,
        typer.Option("--guesses/--no-guesses", help="Whether the proxy's guesses come along."),
    ] = True,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Write the labels so far, or with --waiting or --round the images to label, in their order.

    Example:

      svp labels export mystudy todo.csv --waiting

      svp labels export mystudy tasks.json --format label-studio
    """
    from svp.study.label_export import ExportResult, export_items
    from svp.study.labels import export_labels
    from svp.study.study import Study

    if waiting and number is not None:
        raise InputError(
            "svp labels export must be given --waiting or --round. Got both. Give one of them."
        )
    named = "parquet" if output.suffix.lower() == ".parquet" else "csv"
    table_only = format in (None, "csv", "parquet")
    if table_only and (images is not None or classes):
        raise InputError(
            "--images and --class must belong to a labelling tool. Got a table. Add --format."
        )
    if format == "parquet" and named != "parquet":
        raise InputError(
            f"The name of a Parquet file must end in .parquet. Got {output}. Rename it."
        )
    opened = Study.open(study)
    labels_only = table_only and not waiting and number is None
    if labels_only:
        done = ExportResult(files=(output,), rows=export_labels(opened, output), classes=())
    else:
        done = export_items(
            opened,
            output,
            format=format or ("parquet" if named == "parquet" else "csv"),
            number=number,
            classes=tuple(classes or ()),
            images=images,
            guesses=guesses,
        )
    said = [f"Wrote {done.rows:,} {'labels' if labels_only else 'images to label'} to {output}."]
    if format == "label-studio":
        said.append(f"Labelling configuration of the project: {done.files[1]}")
    if done.document_root is not None:
        said += [
            "Label Studio has to serve the images: start it with",
            "  LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true",
            f"  LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={done.document_root}",
        ]
    emit(
        "svp.labels.export/1",
        {
            "file": output,
            "files": done.files,
            "rows": done.rows,
            "classes": done.classes,
            "document_root": done.document_root,
        },
        "\n".join(said),
        as_json=as_json,
        result_file=result_file,
    )
