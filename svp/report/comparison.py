"""A simulation as the page shows it: charts, the table of savings, the numbers behind."""

import dataclasses
from collections.abc import Sequence

from svp.report.chart import LineChart, display_name, emphasise, line_chart
from svp.report.content import Comparison, Curve, CurvePoint, Saving
from svp.report.quantity import number, percent, plural

# On which side of the printed value the true one lies.
_BOUND = {"measured": "", "at least": "≥ ", "at most": "≤ "}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChartPair:
    """One chart in a wide and a narrow drawing; the style sheet shows the one that fits.

    Attributes:
        proxy: Whose curves it shows.
        wide: For screens and paper.
        narrow: For phones.
        others: How many curves are drawn without a name.
    """

    proxy: str
    wide: LineChart
    narrow: LineChart
    others: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SavingRow:
    """A row of the table of savings, as text."""

    strategy: str
    proxy: str
    final: str
    gain: str
    gain_interval: str
    accuracy: str
    labels: str
    random_labels: str
    saved: str
    mean: str
    sd: str
    measured: str
    censored: str
    is_best: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NumberTable:
    """Mean and SD of every point of one chart: a row a number of labels, a column a strategy."""

    proxy: str
    seeds: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonView:
    """Everything the template writes for one simulation."""

    name: str
    note: str
    metric: str
    charts: tuple[ChartPair, ...]
    numbers: tuple[NumberTable, ...]
    savings: tuple[SavingRow, ...]
    has_proxies: bool
    has_gains: bool
    reads_labels: bool


def view_comparison(comparison: Comparison, key: str, best: Saving | None) -> ComparisonView:
    """Lay a simulation out.

    Args:
        comparison: The simulation.
        key: Makes ids of its charts unique.
        best: The saving the headline quotes, marked in the table.
    """
    by_proxy: dict[str, list[Curve]] = {}
    for curve in comparison.curves:
        if curve.points:
            by_proxy.setdefault(curve.proxy, []).append(curve)
    emphasised = emphasise(comparison.curves)
    return ComparisonView(
        name=comparison.name,
        note=comparison.note,
        metric=comparison.metric,
        charts=tuple(
            chart_pair(curves, f"{key}-{place}", proxy, comparison.metric, emphasised)
            for place, (proxy, curves) in enumerate(by_proxy.items())
        ),
        numbers=tuple(_numbers(proxy, curves) for proxy, curves in by_proxy.items()),
        savings=tuple(_saving_row(comparison, saving, best) for saving in comparison.savings),
        has_proxies=len(by_proxy) > 1,
        has_gains=any(saving.gain is not None for saving in comparison.savings),
        reads_labels=any(curve.reads_labels for curve in comparison.curves),
    )


def chart_pair(
    curves: Sequence[Curve],
    key: str,
    proxy: str,
    metric: str,
    emphasised: Sequence[str] | None = None,
) -> ChartPair:
    """Draw curves twice, for wide and for narrow screens; one curve needs less height."""
    title = f"Learning curves, {proxy} proxy" if proxy else "Learning curves"
    wide, narrow = (
        line_chart(
            curves,
            key=f"{key}-{size}",
            title=title,
            metric=metric,
            emphasised=emphasised,
            width=width,
            height=240 if len(curves) == 1 else height,
        )
        for size, width, height in (("wide", 860, 440), ("narrow", 400, 380))
    )
    others = sum(1 for series in wide.series if series.style == "other")
    return ChartPair(proxy=proxy, wide=wide, narrow=narrow, others=others)


def signed_saving(saving: Saving) -> str:
    """Return the saving with its bound, such as a lower bound `≥ 38%`."""
    return f"{_BOUND[saving.bound]}{percent(saving.ratio, 0)}"


def _saving_row(comparison: Comparison, saving: Saving, best: Saving | None) -> SavingRow:
    peeks = any(
        curve.reads_labels
        for curve in comparison.curves
        if (curve.strategy, curve.proxy) == (saving.strategy, saving.proxy)
    )
    return SavingRow(
        strategy=f"{saving.strategy} †" if peeks else saving.strategy,
        proxy=saving.proxy,
        labels=f"{'≤ ' if saving.bound == 'at least' else ''}{number(saving.labels)}",
        final=percent(saving.final_accuracy),
        accuracy=percent(saving.accuracy),
        random_labels=f"{'≤ ' if saving.bound == 'at most' else ''}{number(saving.random_labels)}",
        saved=signed_saving(saving),
        mean=percent(saving.mean_ratio),
        sd="" if saving.sd_ratio is None else f"± {number(100 * saving.sd_ratio, 1)}",
        measured=percent(saving.mean_measured),
        censored=f"{saving.censored} of {saving.rounds}",
        gain="–" if saving.gain is None else _signed(100 * saving.gain),
        gain_interval=""
        if saving.gain_half_width is None
        else f"± {number(100 * saving.gain_half_width, 1)}",
        is_best=saving == best,
    )


def _signed(points: float) -> str:
    text = number(points, 1)
    return f"+{text}" if points > 0 and text != "0.0" else text


def _numbers(proxy: str, curves: list[Curve]) -> NumberTable:
    counts = sorted({point.labels for curve in curves for point in curve.points})
    by_end = sorted(curves, key=lambda curve: (-curve.points[-1].mean, curve.strategy))
    at = [{point.labels: point for point in curve.points} for curve in by_end]
    seeds = {point.seeds for curve in curves for point in curve.points}
    few = "" if len(seeds) == 1 else f"{number(min(seeds))} to "
    return NumberTable(
        proxy=proxy,
        seeds=few + plural(max(seeds), "seed"),
        columns=tuple(display_name(curve) for curve in by_end),
        rows=tuple(
            (number(count), tuple(_cell(points.get(count)) for points in at)) for count in counts
        ),
    )


def _cell(point: CurvePoint | None) -> tuple[str, str]:
    if point is None:
        return "", ""
    spread = "" if point.sd is None else f"±{number(100 * point.sd, 2)}"
    return number(100 * point.mean, 2), spread
