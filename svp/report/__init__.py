"""One offline HTML page for a study: `render` turns plain data into a file to hand on."""

from svp.report.content import (
    Balance,
    Comparison,
    Curve,
    CurvePoint,
    Fact,
    Gallery,
    GalleryItem,
    Report,
    Round,
    Saving,
    Stage,
    TargetModel,
    Thumbnail,
)
from svp.report.page import render
from svp.report.thumbnail import make_thumbnail

__all__ = [
    "Balance",
    "Comparison",
    "Curve",
    "CurvePoint",
    "Fact",
    "Gallery",
    "GalleryItem",
    "Report",
    "Round",
    "Saving",
    "Stage",
    "TargetModel",
    "Thumbnail",
    "make_thumbnail",
    "render",
]
