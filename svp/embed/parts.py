"""Embedding in parts: every segment that one process would write is the task of one worker.

The client plans exactly the segments that `embed` would plan, and a worker embeds the images of
one of them. So the table does not depend on how many workers there are or which of them vanish:
a segment that was left behind is continued by whoever gets it next, at most one chunk later.

Every worker proves twice that its vectors are the client's: by the encoder's id, and by the golden
images, before it writes a row. One whose vectors moved too far ends the job.
"""

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from feature_store import FeatureStore, Pool, open_store
from svp.cluster.device import worker_device
from svp.cluster.executor import Advance, Executor
from svp.data.failure import ScanFailure
from svp.embed.config import EmbedConfig
from svp.embed.golden import DriftError, check_golden, golden_warning
from svp.embed.result import EmbedResult, WorkerTest, check_rate
from svp.embed.run import EVAL, embed
from svp.encoders.encoder import Encoder
from svp.encoders.images import Reader
from svp.errors import IdentityError, InputError
from svp.progress import Progress, Silent, Task
from svp.provenance import versions

Int64Array = npt.NDArray[np.int64]

_PARTS: Final = 64  # of a pool, about: more than there are workers, so that they end together
_LEAST_ROWS: Final = 256
_MOST_ROWS: Final = 65_536  # minutes of a GPU, a quarter of an hour of some cores


class OpenEncoder(Protocol):
    """Opens an encoder; must be picklable, such as a `functools.partial` of `open_encoder`."""

    def __call__(self, *, device: str) -> Encoder:
        """Return the encoder on `device`."""


def part_rows(pool_rows: int) -> int:
    """Return how many images a worker gets at once, a power of two.

    It follows from the pool alone: run again with other workers, or after a part of the pool is
    published, the rest is cut as before, and unfinished segments are found and continued.
    """
    wanted = max(_LEAST_ROWS, min(_MOST_ROWS, pool_rows // _PARTS))
    return 1 << (wanted.bit_length() - 1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Images of one segment: a piece of the pool, and how its segment is cut."""

    pool: Pool
    chunk_rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    encoder: Encoder
    store: FeatureStore
    test: WorkerTest


class _PartStore(FeatureStore):
    """The store for a worker: the whole pool is stored already, its pieces are nobody's pool."""

    def put_pool(self, pool: Pool) -> str:
        return pool.id


@dataclasses.dataclass(frozen=True, slots=True)
class _Report:
    """Hands the progress of `embed` on."""

    count: Advance

    @contextlib.contextmanager
    def task(
        self, label: str, total: int | None, unit: str = "items", done: int = 0
    ) -> Iterator[Task]:
        del label, total, unit
        self.advance(done)
        yield self

    def advance(self, amount: int = 1, note: str = "") -> None:
        del note
        self.count(amount)

    def say(self, message: str) -> None:
        del message


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedJob:
    """Embedding as a `svp.cluster.executor.Job`.

    Attributes:
        open_encoder: Opens the encoder on a worker.
        device: Where it runs there: `auto` takes a GPU if the worker has one.
        encoder_id: Whose vectors these must be.
        store_url: The store, as workers reach it.
        source: Reads the images, as workers reach them.
        view: Of the table.
        augment: As in `embed`.
        config: As in `embed`.
        accept_drift: Whether a worker whose golden images moved too far goes on.
    """

    open_encoder: OpenEncoder
    device: str
    encoder_id: str
    store_url: str
    source: Reader
    view: str
    augment: Callable[..., Any] | None
    config: EmbedConfig
    accept_drift: bool = False

    def open(self) -> _Opened:
        """Load the encoder and prove that it is the client's, and gives its vectors.

        Raises:
            IdentityError: If this machine's encoder has another id.
            DriftError: If it gives other vectors than those stored with the encoder.
        """
        encoder = self.open_encoder(device=worker_device(self.device))
        if encoder.id != self.encoder_id:
            raise IdentityError(
                f"Every worker must load the encoder {self.encoder_id}. Got {encoder.id} from a "
                f"worker with {versions()}. Give all workers the same weights and versions."
            )
        store = _PartStore(open_store(self.store_url).storage)
        worker = f"{socket.gethostname()}:{os.getpid()}"
        try:
            golden = check_golden(store, encoder, accept_drift=self.accept_drift)
        except DriftError as error:
            raise DriftError(f"On worker {worker}: {error}", report=error.report) from None
        return _Opened(encoder, store, WorkerTest(worker=worker, golden=golden))

    def run(self, state: _Opened, part: _Part, advance: Advance) -> EmbedResult:
        """Embed the images of one segment; continues what another worker left unfinished."""
        config = dataclasses.replace(
            self.config,
            chunk_rows=part.chunk_rows,
            segment_rows=len(part.pool),
            max_failure_rate=1.0,  # of the whole pool, so the client decides
            shard=(0, 1),
        )
        result = embed(
            part.pool,
            self.source,
            state.encoder,
            state.store,
            view=self.view,
            augment=self.augment,
            config=config,
            progress=_Report(advance),
        )
        return dataclasses.replace(result, workers=(state.test,))


def embed_in_parts(
    executor: Executor,
    open_encoder: OpenEncoder,
    pool: Pool,
    source: Reader,
    encoder: Encoder,
    store: FeatureStore,
    *,
    device: str = "auto",
    view: str = EVAL,
    augment: Callable[..., Any] | None = None,
    unreadable: Sequence[ScanFailure] = (),
    config: EmbedConfig | None = None,
    accept_drift: bool = False,
    progress: Progress | None = None,
) -> EmbedResult:
    """Embed what `store` lacks of `pool` on the workers of `executor`; see `embed`.

    Args:
        executor: Where the work is done.
        open_encoder: Opens the same encoder on a worker.
        pool: Items.
        source: Reads their uris, on the workers: its paths must exist there. Picklable.
        encoder: The client's own, which says whose vectors these are; it computes nothing.
        store: Where the embeddings go; workers open its URL.
        device: Where the encoder runs on a worker; `auto` takes a GPU if there is one.
        view: Name of the table.
        augment: Makes any view but the plain one; picklable.
        unreadable: What the scan left out.
        config: As in `embed`, without a shard. `segment_rows` is what a worker gets at once.
        accept_drift: Whether workers go on whose golden images moved too far.
        progress: Where to report; also told of every worker whose golden images moved.

    Returns:
        What one process would return, as seen from here: wall time, images/s of all workers.

    Raises:
        FailureRateError: More images failed than `config` allows; the others are published.
        IdentityError: A worker loads another encoder under the same name.
        DriftError: A worker's golden images give other vectors than those stored.
        TemporaryError: Workers were lost again and again, or the scheduler is gone.
    """
    config, progress = config or EmbedConfig(), progress or Silent()
    if config.shard != (0, 1):
        raise InputError(
            f"A shard must belong to a run without a cluster. Got {config.shard}. Leave out "
            "--shard or --dask."
        )
    store.put_pool(pool)
    store.put_encoder(encoder.identity, about=encoder.provenance)
    table = store.table(encoder.id, view)
    todo = table.missing(pool.digests, retry=config.retry)
    plans = table.plan(
        pool.digests[todo],
        dim=encoder.dim,
        dtype=encoder.storage_dtype,
        chunk_rows=config.chunk_rows,
        segment_rows=config.segment_rows or part_rows(len(pool)),
    )
    job = EmbedJob(
        open_encoder=open_encoder,
        device=device,
        encoder_id=encoder.id,
        store_url=_absolute(store.url),
        source=source,
        view=view,
        augment=augment,
        config=config,
        accept_drift=accept_drift,
    )
    parts = (
        _Part(pool=_bare(pool, todo[plan.positions]), chunk_rows=plan.chunk_rows) for plan in plans
    )
    results: list[EmbedResult] = []
    tests: dict[str, WorkerTest] = {}
    began = time.perf_counter()
    with progress.task("embedding", len(todo), "images") as task:
        if plans:
            for _, result in executor.run(job, parts, task):
                tests |= _heard(result.workers, tests, encoder.id, progress)
                results.append(result)
    seconds = time.perf_counter() - began
    failed_now = len(table.missing(pool.digests[todo], retry=True)) if len(todo) else 0
    # Nothing is left to do, so this counts, by the rules of one process, what there is now.
    now = embed(
        pool,
        source,
        encoder,
        store,
        view=view,
        augment=augment,
        unreadable=unreadable,
        config=dataclasses.replace(config, retry=False, max_failure_rate=1.0),
    )
    merged = dataclasses.replace(
        _merged(results, now, embedded=len(todo) - failed_now, failed_now=failed_now),
        workers=tuple(test for _, test in sorted(tests.items())),
        seconds=seconds,
        images_per_s=len(todo) / seconds if results else 0.0,
    )
    distinct = merged.embedded + merged.reused + merged.failed
    check_rate(merged, distinct=distinct, allowed=config.max_failure_rate)
    return merged


def _heard(
    reported: Sequence[WorkerTest],
    known: Mapping[str, WorkerTest],
    encoder_id: str,
    progress: Progress,
) -> dict[str, WorkerTest]:
    """Return the workers that were not heard of before, and say what moved there."""
    new = {test.worker: test for test in reported if test.worker not in known}
    for test in new.values():
        warning = golden_warning(test.golden, encoder_id)
        if warning is not None:
            progress.say(f"Worker {test.worker}: {warning}")
    return new


def _merged(
    results: Sequence[EmbedResult], now: EmbedResult, *, embedded: int, failed_now: int
) -> EmbedResult:
    seconds = sum(result.seconds for result in results)
    waited = sum(result.waiting_share * result.seconds for result in results)
    # What is said of a machine is said of the one that worked longest.
    longest = max(results, key=lambda result: result.seconds, default=now)
    return dataclasses.replace(
        longest,
        pool_id=now.pool_id,
        embedded=embedded,
        reused=now.reused + now.embedded - embedded,
        failed=now.failed,
        failed_now=failed_now,
        unreadable=now.unreadable,
        failed_items=now.failed_items,
        failures=now.failures,
        segments=tuple(segment for result in results for segment in result.segments),
        waiting_share=waited / seconds if seconds else 0.0,
    )


def _bare(pool: Pool, rows: Int64Array) -> Pool:
    """Return the items of some rows without what only a study needs: it travels."""
    rows = np.sort(rows)
    return Pool(
        ids=tuple(pool.ids[row] for row in rows.tolist()),
        uris=tuple(pool.uris[row] for row in rows.tolist()),
        digests=pool.digests[rows],
    )


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().resolve())
