"""`svp pool`: what a study's pool is made of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svp.cli.options import (
    DeviceOption,
    JsonOption,
    ResultFileOption,
    StudyArgument,
    resolve_device,
)
from svp.cli.output import emit, table
from svp.errors import InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.study.duplicates import Duplicates

_SHOWN = 10

pool_app = typer.Typer(
    help=(
        "What a study's pool is made of.\n\nExample:\n\n"
        "  svp pool duplicates mystudy --threshold 0.98"
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@pool_app.callback()
def _pool() -> None:
    """Keep `svp pool` a group, whatever the number of its commands."""


@pool_app.command("duplicates")
def duplicates(
    study: StudyArgument,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Least cosine of a near copy, above 0, at most 1.")
    ] = 0.98,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write every group to this CSV file, too.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Find copies: images with equal bytes, and images whose embeddings almost agree.

    Example:

      svp pool duplicates mystudy --threshold 0.98 --out copies.csv
    """
    from svp.study.duplicates import find_duplicates, write_duplicates
    from svp.study.study import Study

    # Known before the work starts: the result must not meet a path that cannot hold it.
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise InputError(
            f"--out must be a file in a folder that exists. Got {out}. Correct the path."
        )
    found = find_duplicates(
        Study.open(study),
        threshold=threshold,
        device=resolve_device(device),
        progress=automatic(),
    )
    if out is not None:
        write_duplicates(found, out)
    emit(
        "svp.pool.duplicates/1",
        {"duplicates": found, "file": out},
        _text(found, out),
        as_json=as_json,
        result_file=result_file,
    )


def _text(found: "Duplicates", out: Path | None) -> str:
    lines = []
    if found.groups:
        rows = [
            [
                group.representative,
                str(sum(copy.kind == "exact" for copy in group.copies)),
                str(sum(copy.kind == "near" for copy in group.copies)),
                group.copies[0].id,
            ]
            for group in found.groups[:_SHOWN]
        ]
        lines.append(table(["keep", "exact", "near", "such as"], rows))
        if len(found.groups) > _SHOWN:
            hint = "--out FILE lists them all" if out is None else f"all are in {out}"
            lines.append(f"… and {len(found.groups) - _SHOWN:,} more groups; {hint}.")
    lines.append(
        f"{len(found.groups):,} groups among {found.items:,} items: {found.exact:,} exact copies, "
        f"{found.near:,} near ones (cosine at least {found.threshold:g})."
    )
    lines.append(f"Labelling everything would spend {found.waste:,} labels on copies.")
    if found.labels_differ:
        lines.append(f"{found.labels_differ:,} groups have items with different labels.")
    if found.sides_differ:
        lines.append(
            f"{found.sides_differ:,} groups have items on both sides of a split: evaluation would "
            "be on images trained on."
        )
    return "\n".join(lines)
