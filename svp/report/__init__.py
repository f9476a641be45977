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
)
from svp.report.evidence import (
    Copies,
    CopyGroup,
    CopyItem,
    Cost,
    EmbeddingMap,
    Judgement,
    MapPoint,
    Money,
    RefreshDone,
    RefreshHistory,
)
from svp.report.page import render
from svp.report.thumbnail import Thumbnail, make_thumbnail

__all__ = [
    "Balance",
    "Comparison",
    "Copies",
    "CopyGroup",
    "CopyItem",
    "Cost",
    "Curve",
    "CurvePoint",
    "EmbeddingMap",
    "Fact",
    "Gallery",
    "GalleryItem",
    "Judgement",
    "MapPoint",
    "Money",
    "RefreshDone",
    "RefreshHistory",
    "Report",
    "Round",
    "Saving",
    "Stage",
    "TargetModel",
    "Thumbnail",
    "make_thumbnail",
    "render",
]
