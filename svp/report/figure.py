"""Learning curves as a picture of its own: one SVG file with a chart per group."""

import dataclasses
from collections.abc import Sequence
from typing import Final

import jinja2

from svp.report.chart import LineChart, emphasise, line_chart
from svp.report.content import Curve
from svp.report.flatten import flatten

_HEAD: Final = 34
_GAP: Final = 22


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Curves that share axes.

    Attributes:
        title: What tells them from the other panels.
        curves: At least one with a point.
    """

    title: str
    curves: tuple[Curve, ...]


def draw_panels(panels: Sequence[Panel], *, title: str, metric: str) -> str:
    """Return an SVG document with one chart below the other, on white.

    It needs no network, no font of its own and no style sheet.

    Args:
        panels: At least one.
        title: Of the whole picture, for assistive technology.
        metric: What the vertical axes show.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("svp.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A strategy has one colour in all panels that show the same strategies.
    together: dict[frozenset[str], list[Curve]] = {}
    for panel in panels:
        together.setdefault(_names(panel), []).extend(panel.curves)
    emphasised = {names: emphasise(curves) for names, curves in together.items()}
    placed: list[tuple[int, str, LineChart]] = []
    top = 0
    for place, panel in enumerate(panels):
        chart = line_chart(
            panel.curves,
            key=f"panel-{place}",
            title=panel.title or title,
            metric=metric,
            emphasised=emphasised[_names(panel)],
        )
        placed.append((top, panel.title, chart))
        top += (_HEAD if panel.title else 0) + chart.height + _GAP
    drawn = environment.get_template("figure.svg").render(
        title=title, panels=placed, head=_HEAD, width=placed[0][2].width, height=top - _GAP
    )
    return flatten(drawn)


def _names(panel: Panel) -> frozenset[str]:
    return frozenset(curve.strategy for curve in panel.curves)
