"""Embedding a pool: what the store lacks, chunk by chunk, each image once.

Three things go on at once: threads decode the next batches, one batch is on its way to the device,
and one is computed; a full segment is sealed beside them. With several replicas of the encoder
each does so, and chunks are dealt to whoever is ready.

Batches never cross a chunk, and an item that fails keeps its place in its batch. So the batches of
a chunk depend on the plan alone, and a run that was killed and started again computes the same
bits as one that was not, with any number of replicas (on a CPU; on a GPU where its kernels are
deterministic). A batch that was cut because memory ran out, or an encoder compiled in one of the
runs only, moves a vector by kernel noise.

Stopping at any moment, by an exception, a signal or a kill, loses at most the chunk in work, of
each replica. Finished chunks are on disk, and the same call continues behind them.

Shapes: N = pool, d = dim.
"""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from feature_store import FeatureStore, Pool, SegmentPlan, Table
from feature_store.index import first_occurrences
from svp.data.failure import ScanFailure
from svp.embed.config import EmbedConfig as EmbedConfig
from svp.embed.dealing import Dealer
from svp.embed.forward import Augment as Augment
from svp.embed.forward import Forward, automatic_batch, pays_to_compile
from svp.embed.forward import UInt8Array as UInt8Array
from svp.embed.meter import Meter, Shares, Spent
from svp.embed.publishing import Publisher
from svp.embed.replica import Replica, Shift
from svp.embed.result import (
    EmbedResult,
    check_rate,
    first_failures,
    item_failures,
    shard_failures,
    shard_rows,
)
from svp.encoders.encoder import Encoder, not_finite
from svp.encoders.images import Reader, default_workers
from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.provenance import hardware, versions

Int64Array = npt.NDArray[np.int64]

EVAL: Final = "eval"


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Published:
    segments: tuple[str, ...] = ()
    tried: int = 0
    seconds: float = 0.0
    shares: Shares = dataclasses.field(default_factory=Shares)
    batch_size: int = 0
    devices: tuple[str, ...] = ()
    compiled: bool = False


def _replicas(encoder: Encoder, devices: tuple[str, ...]) -> list[Encoder]:
    """Return one encoder per device, the given one among them where it fits."""
    own = encoder.device
    unnumbered = str(own) == "cuda"
    if not devices and unnumbered and torch.cuda.device_count() > 1:
        devices = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    if not devices:
        return [encoder]
    first = encoder if torch.device(devices[0]) == own else encoder.replica(devices[0])
    return [first, *(encoder.replica(device) for device in devices[1:])]


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
        return _Published()
    encoders = _replicas(encoder, config.devices)
    batch_size = config.batch_size or automatic_batch(encoders[0])
    compiled = pays_to_compile(config.compile, encoders[0].device, len(todo))
    dealer = Dealer(table, plans, todo)
    stored = dealer.rows_stored()
    forwards = [
        Forward(one, limit=batch_size, compiled=compiled, augment=augment, say=progress.say)
        for one in encoders
    ]
    made_by = {
        **versions(),
        **hardware(),
        "precision": encoder.precision,
        "batch_size": batch_size,
        "compiled": compiled,
    }

    def check(x_Bd: npt.NDArray[Any]) -> None:
        if not np.isfinite(x_Bd).all():
            raise not_finite(encoder)

    publisher, stop = Publisher(dealer, made_by, check), threading.Event()
    meter, began, tried, lock = Meter(len(encoders)), time.perf_counter(), 0, threading.Lock()
    with progress.task("embedding", len(todo), "images", done=stored) as task:

        def done(count: int, shares: Shares) -> None:
            nonlocal tried
            with lock:
                tried += count
                task.advance(count, note=str(shares))

        shift = Shift(
            pool=pool,
            source=source,
            dealer=dealer,
            publisher=publisher,
            meter=meter,
            batch_size=batch_size,
            done=done,
            stop=stop,
        )
        workers = max(1, (config.workers or default_workers()) // len(encoders))
        replicas = [
            Replica(shift, one, forward, workers)
            for one, forward in zip(encoders, forwards, strict=True)
        ]
        try:
            _work(replicas, stop)
            finishing = time.perf_counter()
            segments = publisher.finish()
            meter.add(Spent(write=(time.perf_counter() - finishing) * len(replicas)))
        finally:
            publisher.stop()
    return _Published(
        segments=segments,
        tried=tried,
        seconds=time.perf_counter() - began,
        shares=meter.shares(),
        batch_size=min(forward.limit for forward in forwards),
        devices=tuple(str(one.device) for one in encoders),
        compiled=all(forward.compiled for forward in forwards),
    )


def _work(replicas: Sequence[Replica], stop: threading.Event) -> None:
    if len(replicas) == 1:
        replicas[0].run()
        return
    with concurrent.futures.ThreadPoolExecutor(len(replicas), "svp-replica") as threads:
        jobs = [threads.submit(replica.run) for replica in replicas]
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        finally:
            # An error of one, or a signal, ends the others after their batch.
            stop.set()


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
        waiting_share=published.shares.decode,
        shares=published.shares,
        bottleneck=published.shares.bottleneck if published.tried else None,
        batch_size=published.batch_size,
        devices=published.devices,
        compiled=published.compiled,
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
