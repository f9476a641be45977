"""Runs in processes that tests kill; imports little, so that they start fast."""

import time
from pathlib import Path

import torch

from feature_store import open_store
from svp.data.opening import open_source
from svp.embed import EmbedConfig, embed
from svp.encoders.encoder import open_encoder

CONFIG = EmbedConfig(batch_size=8, workers=2, chunk_rows=20, segment_rows=50, max_failure_rate=1)


class Slow:
    """A source whose reads take a while, so that a kill finds the run at work."""

    def __init__(self, folder: Path) -> None:
        self._source = open_source(folder)

    def read(self, uri: str) -> bytes:
        time.sleep(0.004)
        return self._source.read(uri)


def embed_slowly(folder: Path, encoder: Path, store: Path) -> None:
    torch.set_num_threads(1)
    pool = open_source(folder).scan().pool
    embed(pool, Slow(folder), open_encoder(str(encoder)), open_store(store), config=CONFIG)


def nothing() -> None:
    """Makes the server of processes start."""
