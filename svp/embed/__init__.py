"""Embedding a pool into a feature store, and reading the embeddings back."""

from svp.embed.result import EmbedResult, ItemFailure
from svp.embed.run import EVAL, EmbedConfig, embed, load_features

__all__ = ["EVAL", "EmbedConfig", "EmbedResult", "ItemFailure", "embed", "load_features"]
