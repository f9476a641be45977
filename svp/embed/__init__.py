"""Embedding a pool into a feature store, and reading the embeddings back."""

from svp.embed.golden import DriftError, GoldenReport, check_golden, worst_report
from svp.embed.result import EmbedResult, ItemFailure, WorkerTest
from svp.embed.run import EVAL, EmbedConfig, embed, load_features
from svp.embed.views import StoredView, ViewConfig, embed_views, parse_views

__all__ = [
    "EVAL",
    "DriftError",
    "EmbedConfig",
    "EmbedResult",
    "GoldenReport",
    "ItemFailure",
    "StoredView",
    "ViewConfig",
    "WorkerTest",
    "check_golden",
    "embed",
    "embed_views",
    "load_features",
    "parse_views",
    "worst_report",
]
