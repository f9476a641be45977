"""The page itself: one HTML file that asks the network for nothing.

The content security policy allows pictures from data URIs and one style sheet, named by its
digest; no script, no inline style, no connection. Autoescaping is on for everything shown.
"""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final, TypeVar

import jinja2
from markupsafe import Markup

from svp.report import bars, quantity
from svp.report.comparison import ChartPair, chart_pair, view_comparison
from svp.report.content import Curve, CurvePoint, Gallery, GalleryItem, Report
from svp.report.evidence import CopyGroup, CopyItem, Cost
from svp.report.headline import headline, quoted_saving
from svp.report.scatter import map_of
from svp.report.scores import ScoreChart, score_chart

# Limits of the page's size, whatever it is given.
MAX_ITEMS: Final = 200
MAX_THUMBNAIL_BYTES: Final = 4 * 2**20
MAX_EARLIER: Final = 4
MAX_EARLIER_BYTES: Final = 2**19
MAX_COPIES: Final = 8
MAX_COPIES_BYTES: Final = 2**17
# Cards shown at once; the others fold away, and stay away in print.
OPEN_ITEMS: Final = 24

_Shown = TypeVar("_Shown", GalleryItem, CopyItem)
_CENT: Final = 0.005
_NUMBER: Final = re.compile(r"[-−]?\d+(?:[.,]\d+)*(?:e[-+−]?\d+)?", re.IGNORECASE)


def page_environment() -> jinja2.Environment:
    """Return what renders this package's templates: autoescaping, and numbers as people read."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("svp.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": quantity.number,
        "percent": quantity.percent,
        "significant": quantity.significant,
        "duration": quantity.duration,
        "money": quantity.money,
    }
    return environment


def render(report: Report) -> str:
    """Return the report as one HTML document.

    Args:
        report: The content. The same content gives the same bytes.
    """
    environment = page_environment()
    style = style_sheet()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return environment.get_template("report.html").render(
        report=report,
        # Our own file, without `<`; the digest in the policy covers exactly this text.
        style=Markup(style),
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        headline=headline(report),
        progress=_progress(report),
        comparisons=[
            view_comparison(comparison, f"c{place}", quoted_saving(report))
            for place, comparison in enumerate(report.comparisons)
        ],
        **_balance(report),
        **_gallery(report),
        map=map_of(report),
        copy_groups=_copy_groups(report),
        scores=_scores(report),
        costs=_costs(report),
        recall_bars=() if report.model is None else bars.recall_bars(report.model),
        confusion=() if report.model is None else bars.confusion_cells(report.model),
        confused=() if report.model is None else bars.confused_pairs(report.model),
        stage_bars=bars.stage_bars(report),
    )


def limit_gallery(gallery: Gallery, *, most_bytes: int = MAX_THUMBNAIL_BYTES) -> Gallery:
    """Return the gallery's first items, without the thumbnails that would not fit."""
    items = _without_excess(gallery.items[:MAX_ITEMS], most_bytes)
    return dataclasses.replace(gallery, items=items)


def _without_excess(items: Sequence[_Shown], most_bytes: int) -> tuple[_Shown, ...]:
    left = most_bytes
    kept = []
    for item in items:
        size = 0 if item.thumbnail is None else len(item.thumbnail.data)
        fits = size <= left
        left -= size if fits else 0
        kept.append(item if fits else dataclasses.replace(item, thumbnail=None))
    return tuple(kept)


def shared_reason(items: tuple[GalleryItem, ...]) -> str:
    """Return the first item's reason if all items give the same one up to its numbers, else ''."""
    patterns = {_NUMBER.sub("#", item.reason) for item in items}
    return items[0].reason if len(items) > 1 and len(patterns) == 1 else ""


def style_sheet() -> str:
    """Return the style of the page and of the drawings on it."""
    folder = resources.files("svp.report") / "templates"
    return "".join(
        (folder / name).read_text(encoding="utf-8") for name in ("drawing.css", "report.css")
    )


def progress_curve(report: Report) -> Curve | None:
    """Return the study's own accuracy over its rounds, once there are two to join."""
    points = tuple(
        CurvePoint(labels=done.labels, mean=done.accuracy, sd=None, seeds=1)
        for done in report.rounds
        if done.accuracy is not None
    )
    if len(points) < 2:
        return None
    return Curve(strategy="this study", points=points)


def _progress(report: Report) -> ChartPair | None:
    curve = progress_curve(report)
    if curve is None:
        return None
    return chart_pair([curve], "own", "", f"{report.rounds[-1].split} accuracy")


def _balance(report: Report) -> dict[str, Any]:
    balance = report.balance
    if balance is None:
        return {"balance_bars": (), "sources": (), "imbalance": "", "unseen": 0}
    ratio, unseen = bars.imbalance(balance)
    return {
        "balance_bars": bars.balance_bars(balance),
        "sources": [
            (name, bars.source_level(place, len(balance.sources)), sum(balance.counts[place]))
            for place, name in enumerate(balance.sources)
        ],
        "imbalance": ratio,
        "unseen": unseen,
    }


def _gallery(report: Report) -> dict[str, Any]:
    if report.gallery is None or not report.gallery.items:
        return {"gallery": None, "cards": (), "folded": (), "reason": "", "earlier": ()}
    gallery = limit_gallery(report.gallery)
    return {
        "gallery": gallery,
        "cards": gallery.items[:OPEN_ITEMS],
        "folded": gallery.items[OPEN_ITEMS:],
        "reason": shared_reason(gallery.items),
        "earlier": [
            (shown, shared_reason(shown.items))
            for shown in (
                limit_gallery(one, most_bytes=MAX_EARLIER_BYTES)
                for one in report.earlier[:MAX_EARLIER]
            )
        ],
    }


def _copy_groups(report: Report) -> tuple[CopyGroup, ...]:
    if report.copies is None:
        return ()
    return tuple(
        dataclasses.replace(
            group, items=_without_excess(group.items[:MAX_COPIES], MAX_COPIES_BYTES)
        )
        for group in report.copies.groups[:MAX_COPIES]
    )


def _costs(report: Report) -> tuple[Cost, ...]:
    """Return the costs as listed: what is below a cent together, in one row at the end."""
    if report.money is None:
        return ()
    small = [cost for cost in report.money.costs if cost.amount < _CENT]
    if len(small) < 2:
        return report.money.costs
    together = Cost(
        name="below a cent each",
        quantity=quantity.plural(len(small), "stage"),
        amount=sum(cost.amount for cost in small),
    )
    return (*(cost for cost in report.money.costs if cost.amount >= _CENT), together)


def _scores(report: Report) -> tuple[ScoreChart, ...]:
    """Draw the refresh criterion wide and narrow, once there are two scores to join."""
    if report.refreshes is None:
        return ()
    drawn = (
        score_chart(report.refreshes, key=f"scores-{size}", width=width)
        for size, width in (("wide", 860), ("narrow", 400))
    )
    return tuple(chart for chart in drawn if chart is not None)
