"""`svp report` and `svp doctor`: what there is to read."""

from pathlib import Path
from typing import Annotated

import typer

from svp.cli.deviation import say_deviation
from svp.cli.options import JsonOption, ResultFileOption, StudyArgument
from svp.cli.output import emit, table
from svp.errors import InputError
from svp.progress import automatic


def report(
    study: StudyArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: report.html in the study.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Folder for every figure as SVG and every table as CSV."),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="With --export: every figure as PNG too (extra png).")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="No search for copies, and a map by PCA instead of t-SNE."),
    ] = False,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Write one HTML file that needs no network: curves, map, selections, refreshes, model, cost.

    Example:

      svp report mystudy --export figures --png
    """
    from svp.study.report import write_report
    from svp.study.study import Study

    if png and export is None:
        raise InputError("--png must come with --export. Got it alone. Add: --export FOLDER")
    opened = Study.open(study)
    written = write_report(
        opened, output, export=export, png=png, quick=quick, progress=automatic()
    )
    say_deviation(opened)
    emit(
        "svp.report/1",
        {"report": written, "bytes": written.stat().st_size, "export": export},
        f"Wrote {written}. Open it in a browser; it needs no network."
        + ("" if export is None else f" Figures and tables are in {export}."),
        as_json=as_json,
        result_file=result_file,
    )


def doctor(as_json: JsonOption = False, result_file: ResultFileOption = None) -> None:
    """Say what svp sees here: versions, processor, GPU, threads, cache.

    Example:

      svp doctor
    """
    import torch
    import torchvision

    from svp.data import DigestCache
    from svp.provenance import hardware, versions

    # A CPU-only torch beside a stock torchvision fails here and not at import.
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    seen = {
        **{f"version of {name}": value for name, value in versions().items()},
        **hardware(),
        "torch threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "none",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "cache": str(DigestCache.default().path),
    }
    emit(
        "svp.doctor/1",
        {"seen": seen},
        table(["what", "value"], [[key, str(value)] for key, value in seen.items()]),
        as_json=as_json,
        result_file=result_file,
    )
