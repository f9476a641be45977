"""The page itself: one HTML file that asks the network for nothing.

The content security policy allows pictures from data URIs and one style sheet, named by its
digest; no script, no inline style, no connection. Autoescaping is on for everything shown.
"""

import base64
import dataclasses
import hashlib
import re
from importlib import resources
from typing import Any, Final

import jinja2
from markupsafe import Markup

from svp.report import bars, quantity
from svp.report.comparison import ChartPair, chart_pair, view_comparison
from svp.report.content import Curve, CurvePoint, Gallery, GalleryItem, Report
from svp.report.headline import headline, quoted_saving

# Limits of the page's size, whatever it is given.
MAX_ITEMS: Final = 200
MAX_THUMBNAIL_BYTES: Final = 4 * 2**20
# Cards shown at once; the others fold away, and stay away in print.
OPEN_ITEMS: Final = 24

_NUMBER: Final = re.compile(r"[-−]?\d+(?:[.,]\d+)*(?:e[-+−]?\d+)?", re.IGNORECASE)


def render(report: Report) -> str:
    """Return the report as one HTML document.

    Args:
        report: The content. The same content gives the same bytes.
    """
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
    }
    style = _style_sheet()
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
        recall_bars=() if report.model is None else bars.recall_bars(report.model),
        confusion=() if report.model is None else bars.confusion_cells(report.model),
        confused=() if report.model is None else bars.confused_pairs(report.model),
        stage_bars=bars.stage_bars(report),
    )


def limit_gallery(gallery: Gallery) -> Gallery:
    """Return the gallery's first items, without the thumbnails that would not fit."""
    left = MAX_THUMBNAIL_BYTES
    kept = []
    for item in gallery.items[:MAX_ITEMS]:
        size = 0 if item.thumbnail is None else len(item.thumbnail.data)
        fits = size <= left
        left -= size if fits else 0
        kept.append(item if fits else dataclasses.replace(item, thumbnail=None))
    return dataclasses.replace(gallery, items=tuple(kept))


def shared_reason(items: tuple[GalleryItem, ...]) -> str:
    """Return the first item's reason if all items give the same one up to its numbers, else ''."""
    patterns = {_NUMBER.sub("#", item.reason) for item in items}
    return items[0].reason if len(items) > 1 and len(patterns) == 1 else ""


def _style_sheet() -> str:
    folder = resources.files("svp.report") / "templates"
    return (folder / "report.css").read_text(encoding="utf-8")


def _progress(report: Report) -> ChartPair | None:
    """Draw the study's own accuracy over its rounds, once there are two to join."""
    points = tuple(
        CurvePoint(labels=done.labels, mean=done.accuracy, sd=None, seeds=1)
        for done in report.rounds
        if done.accuracy is not None
    )
    if len(points) < 2:
        return None
    curve = Curve(strategy="this study", points=points)
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
        return {"gallery": None, "cards": (), "folded": (), "reason": ""}
    gallery = limit_gallery(report.gallery)
    return {
        "gallery": gallery,
        "cards": gallery.items[:OPEN_ITEMS],
        "folded": gallery.items[OPEN_ITEMS:],
        "reason": shared_reason(gallery.items),
    }
