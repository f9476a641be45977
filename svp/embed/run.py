"""Embedding a pool: what the store lacks, chunk by chunk, each image once.

Batches never cross a chunk, and an item that fails keeps its place in its batch. So the batches of
a chunk depend on the plan alone, and a run that was killed and started again computes the same
bits as one that was not (on a CPU; on a GPU where its kernels are deterministic).

Stopping at any moment, by an exception, a signal or a kill, loses at most the chunk in work:
finished chunks are on disk, and the same call continues behind them.

Shapes: N = pool, B = batch, d = dim.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from feature_store import Chunk, Failure, FeatureStore, Pool, SegmentPlan, SegmentWriter, Table
from feature_store.index import first_occurrences
from svp.data.failure import ScanFailure
from svp.embed.result import (
    EmbedResult,
    check_rate,
    first_failures,
    item_failures,
    shard_failures,
    shard_rows,
)
from svp.encoders.encoder import Encoder, not_finite
from svp.encoders.images import Batch, ImageFailure, Reader, read_batches
from svp.errors import InputError, TemporaryError
from svp.progress import Progress, Silent, Task
from svp.provenance import hardware, versions

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
Augment = Callable[[torch.Tensor, UInt8Array], torch.Tensor]

EVAL: Final = "eval"
_OUTAGE_ROWS: Final = 16  # fewer items may all be gone without the source being gone


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """How to embed; nothing here changes a vector beyond kernel noise.

    Attributes:
        batch_size: Images per forward pass.
        workers: Decoding threads; None means one per processor.
        chunk_rows: Rows written at once, the most a kill can cost; None lets the store choose.
        segment_rows: Rows published at once; None lets the store choose.
        max_failure_rate: Share of the distinct images that may fail, in [0, 1]; those that the
            scan could not read count.
        retry: Try items again whose failure is recorded.
        shard: (i, n): embed only the i-th of n parts, from 0. Parts depend on the images alone,
            so n machines may start at different times.
    """

    batch_size: int = 256
    workers: int | None = None
    chunk_rows: int | None = None
    segment_rows: int | None = None
    max_failure_rate: float = 0.01
    retry: bool = False
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "chunk_rows", "segment_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1. Got {value}. Choose a larger one.")
        if not 0 <= self.max_failure_rate <= 1:
            raise InputError(
                f"max_failure_rate must be in [0, 1]. Got {self.max_failure_rate}. "
                "Write 0.01 for one image in a hundred."
            )
        index, count = self.shard
        if not 0 <= index < count:
            raise InputError(
                f"shard must be (i, n) with 0 <= i < n. Got {self.shard}. Count from 0."
            )


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """One batch: rows [start, stop) of a chunk."""

    writer: SegmentWriter
    chunk: Chunk
    rows: Int64Array  # of the pool, for the whole chunk
    start: int
    stop: int


def _work(
    table: Table, plans: Sequence[SegmentPlan], todo: Int64Array, batch_size: int
) -> Iterator[_Work]:
    for plan in plans:
        writer = table.writer(plan)
        for chunk in writer.pending():
            rows = todo[plan.positions[chunk.start : chunk.stop]]
            for start in range(0, len(rows), batch_size):
                yield _Work(writer, chunk, rows, start, min(start + batch_size, len(rows)))


def _rows_stored(table: Table, plans: Sequence[SegmentPlan]) -> int:
    # Segments are worked off in order, so only the first can have been left unfinished.
    if not plans:
        return 0
    return plans[0].rows - sum(map(len, table.writer(plans[0]).pending()))


class _ChunkBuffer:
    """Collects a chunk's embeddings; one batch stays on the device while the next is launched."""

    def __init__(self, encoder: Encoder, augment: Augment | None, digests_N32: UInt8Array) -> None:
        self._encoder, self._augment, self._digests = encoder, augment, digests_N32
        self._x_Md = np.empty((0, encoder.dim), encoder.storage_dtype)
        self._failures: dict[int, ImageFailure] = {}
        self._in_flight: tuple[torch.Tensor, int, int] | None = None

    def add(self, work: _Work, batch: Batch) -> None:
        if work.start == 0:
            self._x_Md = np.empty((len(work.rows), self._encoder.dim), self._x_Md.dtype)
            self._failures = {}
        self._failures |= {work.start + i: failure for i, failure in batch.failures.items()}
        if self._augment is None:
            x_Bd = self._encoder.features(batch.images)
        else:
            x_B3SS = batch.images.to(self._encoder.device, non_blocking=True).float() / 255
            digests_B32 = self._digests[work.rows[work.start : work.stop]]
            x_B3SS = self._augment(x_B3SS, digests_B32)
            x_Bd = self._encoder.features_of(self._encoder.normalise_float(x_B3SS))
        self._fetch()
        self._in_flight = x_Bd, work.start, work.stop

    def _fetch(self) -> None:
        if self._in_flight is not None:
            x_Bd, start, stop = self._in_flight
            self._x_Md[start:stop] = x_Bd.cpu().numpy()
            self._in_flight = None

    def finish(self) -> tuple[npt.NDArray[Any], dict[int, ImageFailure]]:
        self._fetch()
        self._x_Md[list(self._failures)] = 0
        if not np.isfinite(self._x_Md).all():
            raise not_finite(self._encoder)
        return self._x_Md, self._failures


def _refuse_outage(failures: dict[int, ImageFailure], rows: int, source: object) -> None:
    # A disk that vanished fails everything; recording that would need a retry of each item.
    reachable = {"corrupt", "too_large"}
    if rows >= _OUTAGE_ROWS and len(failures) == rows:
        kinds = {failure.kind for failure in failures.values()}
        if not kinds & reachable:
            example = next(iter(failures.values())).reason
            raise TemporaryError(
                f"The source must be readable. Got {rows} failures in a row ({example}) from "
                f"{getattr(source, 'uri', source)}. Check that it is mounted and was not changed "
                "since the scan, then run the same command again."
            )


def _advance(task: Task, count: int, waited_s: float, elapsed_s: float) -> float:
    share = min(1.0, waited_s / max(elapsed_s, 1e-9))
    bound = "decoding" if share > 0.5 else "the encoder"
    task.advance(count, note=f"bound by {bound} ({share:.0%} waiting for images)")
    return share


def embed(
    pool: Pool,
    source: Reader,
    encoder: Encoder,
    store: FeatureStore,
    *,
    view: str = EVAL,
    augment: Augment | None = None,
    unreadable: Sequence[ScanFailure] = (),
    config: EmbedConfig | None = None,
    progress: Progress | None = None,
) -> EmbedResult:
    """Embed the images of `pool` that `store` has no embedding of, and publish them.

    Args:
        pool: Items; equal images are embedded once.
        source: Reads their uris. Bytes that are not those the pool was made of are a failure.
        encoder: Its identity and id are stored first.
        store: Where the embeddings go.
        view: Name of the table beside the encoder; "eval" is the plain image.
        augment: Makes any other view: float images in [0, 1] (B, 3, S, S) on the encoder's device
            and their digests (B, 32) to images of the same shape. An item's result must depend on
            its image, its digest and the view alone.
        unreadable: What the scan that made the pool left out; counted and listed as failed.
        config: See `EmbedConfig`.
        progress: Where to report.

    Returns:
        Counts, failures, times and the segments published.

    Raises:
        FailureRateError: More images failed than `config` allows; the others are published.
        TemporaryError: The source cannot be read at all; finished chunks stay.
        InputError: An embedding is not finite, or view and `augment` do not go together.
        FeatureStoreError: The store is damaged or belongs to something else.
    """
    if (view == EVAL) != (augment is None):
        raise InputError(
            f"A view other than {EVAL!r} must come with its augmentation, and {EVAL!r} without. "
            f"Got {view!r}. Correct the name of the view."
        )
    config, progress = config or EmbedConfig(), progress or Silent()
    began = time.perf_counter()
    store.put_pool(pool)
    encoder_id = store.put_encoder(encoder.identity, about=encoder.provenance)
    table = store.table(encoder_id, view)
    mine = shard_rows(pool.digests, config.shard)
    todo = mine[table.missing(pool.digests[mine], retry=config.retry)]
    plans = table.plan(
        pool.digests[todo],
        dim=encoder.dim,
        dtype=encoder.storage_dtype,
        chunk_rows=config.chunk_rows,
        segment_rows=config.segment_rows,
    )
    published = _run(pool, source, encoder, table, plans, todo, augment, config, progress)
    left_out = shard_failures(unreadable, config.shard)
    seconds = time.perf_counter() - began
    return _summary(pool, encoder_id, table, mine, todo, published, left_out, config, seconds)


@dataclasses.dataclass(frozen=True, slots=True)
class _Published:
    segments: tuple[str, ...]
    tried: int
    waiting_share: float
    seconds: float


def _run(
    pool: Pool,
    source: Reader,
    encoder: Encoder,
    table: Table,
    plans: Sequence[SegmentPlan],
    todo: Int64Array,
    augment: Augment | None,
    config: EmbedConfig,
    progress: Progress,
) -> _Published:
    if not len(todo):
        return _Published((), 0, 0.0, 0.0)
    stored = _rows_stored(table, plans)
    buffer = _ChunkBuffer(encoder, augment, pool.digests)
    provenance = {**versions(), **hardware(), "precision": encoder.precision}
    segments: list[str] = []
    tried, waited_s, share, began = 0, 0.0, 0.0, time.perf_counter()
    asked: collections.deque[_Work] = collections.deque()

    def ask() -> Iterator[tuple[Sequence[str], UInt8Array]]:
        for work in _work(table, plans, todo, config.batch_size):
            asked.append(work)
            rows = work.rows[work.start : work.stop]
            yield [pool.uris[row] for row in rows.tolist()], pool.digests[rows]

    batches = read_batches(
        source,
        ask(),
        encoder.preprocessing,
        workers=config.workers,
        pin=encoder.device.type == "cuda",
    )
    writer: SegmentWriter | None = None
    with (
        progress.task("embedding", len(todo), "images", done=stored) as task,
        contextlib.closing(batches),
    ):
        for batch in batches:
            work = asked.popleft()
            if writer is not None and work.writer is not writer:
                segments.append(writer.seal(provenance).id)
            writer = work.writer
            waited_s += batch.waited_s
            buffer.add(work, batch)
            if work.stop == len(work.rows):
                x_Md, failures = buffer.finish()
                _refuse_outage(failures, len(work.rows), source)
                recorded = {row: Failure(f.kind, f.reason) for row, f in failures.items()}
                writer.write(work.chunk, x_Md, recorded)
            tried += work.stop - work.start
            elapsed_s = time.perf_counter() - began
            share = _advance(task, work.stop - work.start, waited_s, elapsed_s)
    # The last one, and any that a kill left with all its chunks but unpublished.
    for plan in plans:
        unsealed = table.writer(plan)
        if not unsealed.is_sealed:
            segments.append(unsealed.seal(provenance).id)
    return _Published(tuple(segments), tried, share, time.perf_counter() - began)


def _summary(
    pool: Pool,
    encoder_id: str,
    table: Table,
    mine: Int64Array,
    todo: Int64Array,
    published: _Published,
    unreadable: Sequence[ScanFailure],
    config: EmbedConfig,
    seconds: float,
) -> EmbedResult:
    # The store, not this run's memory, says what exists now.
    distinct = len(first_occurrences(pool.digests[mine]))
    failed = len(table.missing(pool.digests[mine], retry=True))
    failed_now = len(table.missing(pool.digests[todo], retry=True)) if len(todo) else 0
    failures = item_failures(pool, table, mine, unreadable)
    result = EmbedResult(
        pool_id=pool.id,
        encoder_id=encoder_id,
        view=table.view,
        embedded=len(todo) - failed_now,
        reused=distinct - failed - (len(todo) - failed_now),
        failed=failed,
        failed_now=failed_now,
        unreadable=len(unreadable),
        failed_items=len(failures),
        failures=first_failures(failures),
        segments=published.segments,
        seconds=seconds,
        images_per_s=published.tried / published.seconds if published.seconds else 0.0,
        waiting_share=published.waiting_share,
    )
    check_rate(result, distinct=distinct, allowed=config.max_failure_rate)
    return result


def load_features(
    store: FeatureStore, pool: Pool, encoder_id: str, view: str = EVAL
) -> tuple[Int64Array, npt.NDArray[Any]]:
    """Return the embeddings of a pool; items whose failure is recorded are left out.

    Args:
        store: Where they are.
        pool: Whose.
        encoder_id: By which encoder.
        view: Of which view.

    Returns:
        Rows of the pool that have an embedding, ascending (M,), and the embeddings (M, d) in the
        stored type.

    Raises:
        MissingRowsError: If other items have none; run `embed`.
        CorruptChunkError: If stored bytes are damaged.
    """
    table = store.table(encoder_id, view)
    failed = table.failures()
    if failed:
        kept = [row for row, digest in enumerate(pool.digests) if digest.tobytes() not in failed]
        rows = np.asarray(kept, np.int64)
    else:
        rows = np.arange(len(pool))
    return rows, table.read(pool.digests[rows])
