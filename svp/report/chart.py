"""Learning curves as geometry; the template only writes it down as SVG.

Every curve has a colour, a marker and a name beside its end, so none of the three is needed to
tell curves apart. Coordinates are SVG user units, y downwards.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Final

from svp.report.content import Curve, CurvePoint
from svp.report.quantity import number, percent

# As many as a reader can follow; the others are drawn thin and listed in the table.
EMPHASISED: Final = 6
_LABEL_GAP: Final = 17.0
_MARKS_WITHOUT_CROWDING: Final = 24
# Names beside the curves: the widest common bold face, and what stands around a name.
_NAME_CHARACTER: Final = 8.2
_BESIDE_NAME: Final = 72.0
_LABELS_SHARE: Final = 0.42

# Drawn around (0, 0); order = series number. Random always has the ring.
_RING: Final = "M4.2 0A4.2 4.2 0 1 1 -4.2 0A4.2 4.2 0 1 1 4.2 0Z"
_SYMBOLS: Final = (
    "M4.2 0A4.2 4.2 0 1 1 -4.2 0A4.2 4.2 0 1 1 4.2 0Z",
    "M-3.8 -3.8H3.8V3.8H-3.8Z",
    "M0 -5L4.8 3.8H-4.8Z",
    "M0 -5.2L5.2 0L0 5.2L-5.2 0Z",
    "M0 5L4.8 -3.8H-4.8Z",
    "M-1.6 -4.8H1.6V-1.6H4.8V1.6H1.6V4.8H-1.6V1.6H-4.8V-1.6H-1.6Z",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A linear map from data to SVG units, with ticks inside its domain."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Return the position of `value`."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A marker and what it says when pointed at."""

    x: str
    y: str
    title: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve, drawn.

    Attributes:
        name: The label beside its end.
        value: Its last value, as text.
        style: CSS class: `s1` to `s6`, `random`, or `other` for those not emphasised.
        symbol: SVG path of the marker around (0, 0).
        line: SVG path.
        band: SVG path of mean +- SD; empty without one.
        marks: Markers.
        end_x: Where the curve ends.
        end_y: Where the curve ends.
        label_y: Where its label sits; away from `end_y` where labels would overlap.
    """

    name: str
    value: str
    style: str
    symbol: str
    line: str
    band: str
    marks: tuple[Mark, ...]
    end_x: str
    end_y: str
    label_y: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LineChart:
    """A chart of curves; see `line_chart`."""

    key: str
    title: str
    description: str
    x_title: str
    y_title: str
    width: int
    height: int
    left: str
    right: str
    top: str
    bottom: str
    label_x: str
    x_ticks: tuple[tuple[str, str], ...]
    y_ticks: tuple[tuple[str, str], ...]
    series: tuple[Series, ...]


def nice_step(span: float, about: int) -> float:
    """Return the step 1, 2, 2.5 or 5 x 10^k that divides `span` into about `about` parts."""
    raw = span / max(1, about)
    scale = 10.0 ** math.floor(math.log10(raw))
    return scale * next(step for step in (1.0, 2.0, 2.5, 5.0, 10.0) if raw <= step * scale * 1.0001)


def coordinate(value: float) -> str:
    """Return a coordinate with at most two decimals, the same text on every machine."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def label_axis(counts: Sequence[int], *, start: float, end: float, about: int) -> Axis:
    """Return the axis of label counts: from the first to the last, ticks at round numbers."""
    low, high = float(min(counts)), float(max(counts))
    if low == high:
        low, high = low - 1.0, high + 1.0
    step = max(1.0, nice_step(high - low, about))
    first = math.ceil(low / step)
    ticks = tuple(step * i for i in range(first, math.floor(high / step + 1e-9) + 1))
    return Axis(low=low, high=high, start=start, end=end, ticks=ticks or (low, high))


def share_axis(points: Sequence[CurvePoint], *, start: float, end: float, about: int) -> Axis:
    """Return the axis of accuracies: round ends that hold every mean +- SD, within [0, 1]."""
    low = max(0.0, min(point.mean - (point.sd or 0.0) for point in points))
    high = min(1.0, max(point.mean + (point.sd or 0.0) for point in points))
    step = nice_step(max(high - low, 0.01), about)
    first = math.floor(low / step + 1e-9)
    last = min(math.ceil(high / step - 1e-9), math.floor(1.0 / step + 1e-9))
    last = max(last, first + 1)
    ticks = tuple(step * i for i in range(first, last + 1))
    # 100% need not be a multiple of the step.
    top = max(ticks[-1], high)
    return Axis(low=ticks[0], high=top, start=start, end=end, ticks=ticks)


def emphasise(curves: Sequence[Curve], limit: int = EMPHASISED) -> tuple[str, ...]:
    """Return the `limit` strategies with the highest mean accuracy, best first; never random.

    A strategy's place is its colour and marker, the same in every chart of a comparison.
    """
    heights: dict[str, list[float]] = {}
    for curve in curves:
        if not curve.is_random:
            heights.setdefault(curve.strategy, []).extend(point.mean for point in curve.points)
    means = {name: sum(at) / len(at) for name, at in heights.items() if at}
    return tuple(sorted(means, key=lambda name: (-means[name], name))[:limit])


def spread_labels(ideal: Sequence[float], *, low: float, high: float, gap: float) -> list[float]:
    """Return label positions near `ideal`, at least `gap` apart where [low, high] has the room.

    Labels that would overlap form a block around their common centre (the pool-adjacent-violators
    solution of least squares under spacing), so no label is dragged far by others.
    """
    if not ideal:
        return []
    gap = min(gap, (high - low) / max(1, len(ideal) - 1))
    order = sorted(range(len(ideal)), key=lambda i: (ideal[i], i))
    blocks: list[tuple[float, int]] = []  # (sum of ideal - gap * place, members)
    for place, index in enumerate(order):
        blocks.append((ideal[index] - gap * place, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            (sum_b, n_b), (sum_a, n_a) = blocks.pop(), blocks.pop()
            blocks.append((sum_a + sum_b, n_a + n_b))
    base = [total / members for total, members in blocks for _ in range(members)]
    highest = high - gap * (len(ideal) - 1)
    placed = [0.0] * len(ideal)
    for place, index in enumerate(order):
        placed[index] = min(max(base[place], low), highest) + gap * place
    return placed


def display_name(curve: Curve) -> str:
    """Return the strategy's name, marked with a dagger when it reads labels inside a batch."""
    return f"{curve.strategy} †" if curve.reads_labels else curve.strategy


def line_chart(
    curves: Sequence[Curve],
    *,
    key: str,
    title: str,
    metric: str,
    emphasised: Sequence[str] | None = None,
    width: int = 860,
    height: int = 440,
) -> LineChart:
    """Lay out learning curves with mean +- SD bands.

    Args:
        curves: At least one with a point; random is drawn dashed and first.
        key: Makes ids inside the page unique; letters, digits and hyphens.
        title: Short name of the chart, for assistive technology and as a caption.
        metric: What the vertical axis shows.
        emphasised: Strategies drawn in colour, by place; default: the best of these curves.
        width: Of the drawing, SVG units.
        height: Of the drawing, SVG units.
    """
    drawn = [curve for curve in curves if curve.points]
    longest = max(len(display_name(curve)) for curve in drawn)
    characters = min(longest, int((_LABELS_SHARE * width - _BESIDE_NAME) / _NAME_CHARACTER))
    label_width = _BESIDE_NAME + _NAME_CHARACTER * characters
    points = list(itertools.chain.from_iterable(curve.points for curve in drawn))
    left, top, right, bottom = 52.0, 30.0, width - label_width, float(height - 46)
    counts = [point.labels for point in points]
    x = label_axis(counts, start=left, end=right, about=7 if width > 600 else 3)
    y = share_axis(points, start=bottom, end=top, about=8 if height > 300 else 5)
    places = {
        name: i for i, name in enumerate(emphasise(drawn) if emphasised is None else emphasised)
    }

    def depth(curve: Curve) -> int:
        """Order of painting: what matters most comes last, on top."""
        if curve.is_random:
            return -1
        return len(places) - places[curve.strategy] if curve.strategy in places else -2

    ordered = sorted(drawn, key=depth)
    named = [curve for curve in ordered if depth(curve) >= -1]
    spread = spread_labels(
        [y(curve.points[-1].mean) for curve in named], low=top, high=bottom, gap=_LABEL_GAP
    )
    label_at = {id(curve): at for curve, at in zip(named, spread, strict=True)}
    series = tuple(
        _series(
            curve,
            x,
            y,
            name=_shorten(display_name(curve), characters),
            place=places.get(curve.strategy),
            label_y=label_at.get(id(curve)),
        )
        for curve in ordered
    )
    digits = max(0, -math.floor(math.log10(100 * (y.ticks[1] - y.ticks[0])) + 1e-9))
    return LineChart(
        key=key,
        title=title,
        description=_describe(drawn, metric),
        x_title="labels",
        y_title=metric,
        width=width,
        height=height,
        left=coordinate(left),
        right=coordinate(right),
        top=coordinate(top),
        bottom=coordinate(bottom),
        label_x=coordinate(right + 16),
        x_ticks=tuple((coordinate(x(tick)), number(tick)) for tick in x.ticks),
        y_ticks=tuple((coordinate(y(tick)), percent(tick, digits)) for tick in y.ticks),
        series=series,
    )


def _series(
    curve: Curve, x: Axis, y: Axis, *, name: str, place: int | None, label_y: float | None
) -> Series:
    style, symbol = "other", ""
    if curve.is_random:
        style, symbol = "random", _RING
    elif place is not None:
        style, symbol = f"s{place + 1}", _SYMBOLS[place]
    at = [(coordinate(x(p.labels)), coordinate(y(p.mean))) for p in curve.points]
    every = math.ceil(len(at) / _MARKS_WITHOUT_CROWDING)
    marks = tuple(
        Mark(x=px, y=py, title=_describe_point(curve, point))
        for place, ((px, py), point) in enumerate(zip(at, curve.points, strict=True))
        if (len(at) - 1 - place) % every == 0
    )
    band = ""
    if style != "other" and any(point.sd for point in curve.points) and len(at) > 1:
        upper = [(x(p.labels), y(min(y.high, p.mean + (p.sd or 0.0)))) for p in curve.points]
        lower = [(x(p.labels), y(max(y.low, p.mean - (p.sd or 0.0)))) for p in curve.points]
        corners = (f"{coordinate(px)} {coordinate(py)}" for px, py in [*upper, *reversed(lower)])
        band = f"M{'L'.join(corners)}Z"
    return Series(
        name=name,
        value=percent(curve.points[-1].mean),
        style=style,
        symbol=symbol,
        line="M" + "L".join(f"{px} {py}" for px, py in at),
        band=band,
        marks=marks if symbol else (),
        end_x=at[-1][0],
        end_y=at[-1][1],
        label_y="" if label_y is None else coordinate(label_y),
    )


def _shorten(name: str, characters: int) -> str:
    return name if len(name) <= characters else f"{name[: max(1, characters - 1)]}…"


def _describe_point(curve: Curve, point: CurvePoint) -> str:
    spread = "" if point.sd is None else f" ± {number(100 * point.sd, 2)}"
    return (
        f"{display_name(curve)}: {percent(point.mean, 2)}{spread} at {number(point.labels)} labels"
    )


def _describe(curves: Sequence[Curve], metric: str) -> str:
    """Say in words what the chart shows, for those who do not see it."""
    by_end = sorted(curves, key=lambda curve: (-curve.points[-1].mean, curve.strategy))
    ends = "; ".join(
        f"{display_name(c)} {percent(c.points[-1].mean)} at {number(c.points[-1].labels)}"
        for c in by_end
    )
    return f"Mean {metric} against the number of labels. At the last round: {ends}."
