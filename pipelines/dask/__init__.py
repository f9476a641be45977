"""Embedding and selection on Dask clusters, for code that has a client of its own."""

from pipelines.dask.stages import embed, select

__all__ = ["embed", "select"]
