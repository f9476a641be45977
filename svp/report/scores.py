"""The history of the refresh criterion as geometry: score above, its change below.

Coordinates are SVG user units, y downwards.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

from svp.report.chart import Axis, coordinate, label_axis, nice_step
from svp.report.evidence import Judgement, RefreshHistory
from svp.report.quantity import number, plural, significant

_LEFT: Final = 58.0
_RIGHT_MARGIN: Final = 16.0
_TOP: Final = 34.0
_PANEL: Final = 120.0
_BETWEEN: Final = 46.0
_BELOW: Final = 46.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScoreMark:
    """A round's marker; `is_stale` asks for a refresh."""

    x: str
    y: str
    is_stale: bool
    title: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One quantity over the labels.

    Attributes:
        title: What it is.
        top: Where the panel begins.
        bottom: Where it ends.
        y_ticks: Position and text.
        lines: SVG paths, one for each encoder.
        marks: One for each round with a value.
        threshold: Height of the threshold; empty without one.
    """

    title: str
    top: str
    bottom: str
    y_ticks: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    marks: tuple[ScoreMark, ...]
    threshold: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScoreChart:
    """A laid out history; see `score_chart`."""

    key: str
    title: str
    description: str
    width: int
    height: int
    left: str
    right: str
    bottom: str
    x_ticks: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]
    refreshes: tuple[tuple[str, str], ...]


def score_chart(history: RefreshHistory, *, key: str, width: int = 860) -> ScoreChart | None:
    """Draw score and change against labels; None before two rounds have a score.

    Args:
        history: What the criterion said.
        key: Makes ids inside the page unique.
        width: Of the drawing.
    """
    scored = [one for one in history.judgements if one.score is not None]
    if len(scored) < 2:
        return None
    right = width - _RIGHT_MARGIN
    x = label_axis(
        [one.labels for one in history.judgements],
        start=_LEFT,
        end=right,
        about=7 if width > 600 else 3,
    )
    changed = [one for one in scored if one.change is not None]
    panels = [_panel("LogME score", [(one, one.score or 0.0) for one in scored], x, top=_TOP)]
    if changed:
        panels.append(
            _panel(
                "change since the round before",
                [(one, one.change or 0.0) for one in changed],
                x,
                top=_TOP + _PANEL + _BETWEEN,
                threshold=changed[-1].threshold,
            )
        )
    height = round(_TOP + len(panels) * _PANEL + (len(panels) - 1) * _BETWEEN + _BELOW)
    return ScoreChart(
        key=key,
        title="Score of the features over the rounds",
        description=_describe(scored, history),
        width=width,
        height=height,
        left=coordinate(_LEFT),
        right=coordinate(right),
        bottom=coordinate(height - _BELOW),
        x_ticks=tuple((coordinate(x(tick)), number(tick)) for tick in x.ticks),
        panels=tuple(panels),
        refreshes=tuple(
            (coordinate(min(max(x(one.labels), _LEFT), right)), f"refresh {one.number}")
            for one in history.done
        ),
    )


def value_axis(values: Sequence[float], *, start: float, end: float, about: int) -> Axis:
    """Return an axis with round ends that holds all values."""
    low, high = min(values), max(values)
    step = nice_step(max(high - low, abs(high) * 1e-3, 1e-9), about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(step * place for place in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], start=start, end=end, ticks=ticks)


def _panel(
    title: str,
    values: Sequence[tuple[Judgement, float]],
    x: Axis,
    *,
    top: float,
    threshold: float | None = None,
) -> Panel:
    held = [value for _, value in values]
    if threshold is not None:
        held = [*held, threshold, 0.0]
    y = value_axis(held, start=top + _PANEL, end=top, about=4)
    by_encoder: dict[str, list[str]] = {}
    for one, value in values:
        at = f"{coordinate(x(one.labels))} {coordinate(y(value))}"
        by_encoder.setdefault(one.encoder, []).append(at)
    step = y.ticks[1] - y.ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (f"{step:.0e}"[0] == "2")
    return Panel(
        title=title,
        top=coordinate(top),
        bottom=coordinate(top + _PANEL),
        y_ticks=tuple((coordinate(y(tick)), number(tick, digits)) for tick in y.ticks),
        lines=tuple(f"M{'L'.join(at)}" for at in by_encoder.values() if len(at) > 1),
        marks=tuple(
            ScoreMark(
                x=coordinate(x(one.labels)),
                y=coordinate(y(value)),
                is_stale=one.stale,
                title=f"round {one.round}, {plural(one.labels, 'label')}: "
                f"{significant(value)}{', stale' if one.stale else ''}",
            )
            for one, value in values
        ),
        threshold="" if threshold is None else coordinate(y(threshold)),
    )


def _describe(scored: Sequence[Judgement], history: RefreshHistory) -> str:
    values = "; ".join(
        f"{significant(one.score)} at {plural(one.labels, 'label')}" for one in scored
    )
    made = plural(len(history.done), "refresh", "refreshes")
    return f"LogME of the features against the number of labels: {values}. {made} made."
