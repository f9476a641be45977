"""`svp curves`: what learning curves of any tool say against a baseline."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from svp.cli.options import JsonOption, ResultFileOption
from svp.cli.output import emit, table
from svp.errors import InputError

if TYPE_CHECKING:
    from svp.study.curve_file import CurveFile
    from svp.study.curve_measures import CurveRow, MeasuredGroup

_BOUND = {"measured": "", "at least": "≥", "at most": "≤", "unknown": "?"}


def curves(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.csv",
            help="Columns strategy, seed, num_labeled, test_acc; further ones group the runs.",
        ),
    ],
    baseline: Annotated[
        str, typer.Option("--baseline", help="The strategy to measure against.")
    ] = "random",
    metric: Annotated[
        str, typer.Option("--metric", help="Column to read: a share or percent, higher = better.")
    ] = "test_acc",
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="A column that groups the runs. May be repeated."),
    ] = None,
    smoothing: Annotated[
        Literal["max", "none"],
        typer.Option("--smoothing", help="Of the baseline, inside savings: its running maximum."),
    ] = "max",
    skip: Annotated[
        int,
        typer.Option("--skip", min=0, help="Recorded sizes to leave out of savings at the start."),
    ] = 0,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw the curves: .svg, or .png (extra png).")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the rows of the table to this file.")
    ] = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Measure learning curves, of svp or of any other tool: savings, gains, efficiency, wins.

    Example:

      svp curves results.csv --baseline random --figure curves.png
    """
    from svp.study.curve_file import read_curves
    from svp.study.curve_measures import measure_curves

    if figure is not None:
        _check_figure(figure)
    read = read_curves(file, metric=metric, by=by)
    groups = measure_curves(read, baseline, smoothing=smoothing, skip=skip)
    rows = [{**group.key, **_fields(row)} for group in groups for row in group.rows]
    if csv_file is not None:
        _write_csv(csv_file, rows)
    if figure is not None:
        _draw(figure, groups, read, str(file.stem))
    emit(
        "svp.curves/1",
        {
            "baseline": baseline,
            "metric": metric,
            "unit": "share" if read.scale == 1 else "percent",
            "smoothing": smoothing,
            "groups": read.columns,
            "ignored": read.ignored,
            "blank": read.blank,
            "repeated": read.repeated,
            "rows": rows,
            "points": [
                {**group.key, "strategy": row.strategy, **_plain(point)}
                for group in groups
                for row in group.rows
                for point in row.points
            ],
            "penalties": [_penalties(group) for group in groups if group.penalties is not None],
        },
        _text(groups, read),
        as_json=as_json,
        result_file=result_file,
    )


def _plain(value: Any) -> dict[str, Any]:
    import dataclasses

    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _fields(row: "CurveRow") -> dict[str, Any]:
    fields = _plain(row)
    del fields["points"]
    return fields


def _penalties(group: "MeasuredGroup") -> dict[str, Any]:
    found = group.penalties
    assert found is not None
    return {
        **group.key,
        "strategies": found.names,
        "share_won": found.share_KK,
        "unseen_variance": found.constant_KK,
        "mean_lost": found.share_KK.mean(axis=0),
        "rounds": found.rounds,
    }


def _text(groups: "tuple[MeasuredGroup, ...]", read: "CurveFile") -> str:
    parts = []
    for group in groups:
        title = ", ".join(f"{name} {value}" for name, value in group.key.items())
        against = f"against {group.baseline}" if group.baseline else "(no baseline here)"
        header = [
            "strategy", "seeds", "labels", "final ±SD", "API", "saved ±SD", "measured", "bounds",
            "efficiency", "better/worse",
        ]  # fmt: skip
        body = table(header, [_cells(row, read.scale) for row in group.rows])
        parts.append(f"{title or 'all runs'} {against}\n{body}")
    notes = [
        f"{count:,} rows {what} were left out."
        for count, what in ((read.blank, "without a value"), (read.repeated, "that repeat another"))
        if count
    ]
    if read.ignored:
        notes.append(f"Columns that do not group: {', '.join(read.ignored)}.")
    explained = (
        "API: mean gain over the baseline in points. saved: mean share of labels saved, bounds as "
        "they are; measured: without the rounds that are bounds. efficiency: labels of the "
        "baseline over own. better/worse: share of rounds, paired t test at 5%."
    )
    return "\n\n".join([*parts, "\n".join([explained, *notes])])


def _cells(row: "CurveRow", scale: float) -> list[str]:
    points = 100 / scale
    saved = _share(row.saving_mean)
    if math.isfinite(row.saving_sd):
        saved += f" ±{100 * row.saving_sd:.1f}"
    efficiency = (
        f"{_BOUND[row.efficiency_bound]}{row.efficiency:.2f}"
        if math.isfinite(row.efficiency)
        else "–"
    )
    return [
        row.strategy + (" *" if row.is_baseline else ""),
        str(row.seeds),
        f"{row.final_labels:,.0f}",
        f"{points * row.final_mean:.2f}"
        + (f" ±{points * row.final_sd:.2f}" if math.isfinite(row.final_sd) else ""),
        f"{points * row.api:+.2f}" if math.isfinite(row.api) else "–",
        saved,
        _share(row.saving_mean_uncensored),
        f"{row.rounds_censored}/{row.rounds}",
        efficiency,
        f"{row.wins:.0%}/{row.losses:.0%}" if math.isfinite(row.wins) else "–",
    ]


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "–"


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    from feature_store.atomic import write_bytes

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        unknown = {k: "" for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        writer.writerow({**row, **unknown})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.getvalue().encode())


def _check_figure(path: Path) -> None:
    from svp.report.raster import require_png

    if path.suffix.lower() not in (".svg", ".png"):
        raise InputError(f"--figure must end in .svg or .png. Got {path}. Rename it.")
    if path.suffix.lower() == ".png":
        require_png()


def _draw(path: Path, groups: "tuple[MeasuredGroup, ...]", read: "CurveFile", title: str) -> None:
    from feature_store.atomic import write_bytes
    from svp.report.content import Curve, CurvePoint
    from svp.report.figure import Panel, draw_panels
    from svp.report.raster import rasterise

    panels = [
        Panel(
            title=", ".join(f"{name} {value}" for name, value in group.key.items()),
            curves=tuple(
                Curve(
                    strategy=row.strategy,
                    is_random=row.is_baseline,
                    points=tuple(
                        CurvePoint(
                            labels=round(point.num_labeled),
                            mean=point.mean / read.scale,
                            sd=point.sd / read.scale if math.isfinite(point.sd) else None,
                            seeds=row.seeds,
                        )
                        for point in row.points
                    ),
                )
                for row in group.rows
            ),
        )
        for group in groups
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_panels(panels, title=title, metric=read.metric)
    write_bytes(path, rasterise(drawn) if path.suffix.lower() == ".png" else drawn.encode())
