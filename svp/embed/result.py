"""What an embedding run did: counts of images, and every item that failed with its reason."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store import Pool, Table
from svp.data.failure import ScanFailure
from svp.embed.golden import GoldenReport
from svp.embed.meter import Shares, Step
from svp.errors import FailureRateError

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

_LISTED: Final = 100


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ItemFailure:
    """One item without an embedding: `kind` as in `svp.data.failure`, `reason` for people."""

    id: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WorkerTest:
    """What the self-test found in one process that embedded for another.

    Attributes:
        worker: Host and process id, as in `node7:4321`.
        golden: Its report.
    """

    worker: str
    golden: GoldenReport


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedResult:
    """What an embedding run did. Numbers count distinct images, of this run's shard.

    Attributes:
        pool_id: The pool.
        encoder_id: The encoder.
        view: The view.
        embedded: Embedded and published by this run.
        reused: Embedded before, by anyone.
        failed: Without an embedding after this run, their failure recorded.
        failed_now: Those of `failed` that this run tried.
        unreadable: Items that the scan could not read, so that they are in no pool.
        failed_items: Items without an embedding: those of `failed`, equal images counted one by
            one, and those of `unreadable`.
        failures: The first hundred of them by id, with reasons.
        segments: Ids of the segments this run published.
        seconds: Wall time.
        images_per_s: Images tried per second of this run; 0 when nothing was to do.
        waiting_share: Share of the time in which the encoder waited for images, in [0, 1].
        shares: Share of the time by step; see `svp.embed.meter`.
        bottleneck: Step that took most of it; None when nothing was to do.
        batch_size: Images per forward pass, at the end; 0 when nothing was to do.
        devices: Where the replicas of the encoder ran.
        compiled: Whether `torch.compile` prepared the encoder.
        workers: The self-test of every worker of a cluster; none in one process, whose caller
            runs it (`svp.embed.golden`).
    """

    pool_id: str
    encoder_id: str
    view: str
    embedded: int
    reused: int
    failed: int
    failed_now: int
    unreadable: int
    failed_items: int
    failures: tuple[ItemFailure, ...]
    segments: tuple[str, ...]
    seconds: float
    images_per_s: float
    waiting_share: float
    shares: Shares = dataclasses.field(default_factory=Shares)
    bottleneck: Step | None = None
    batch_size: int = 0
    devices: tuple[str, ...] = ()
    compiled: bool = False
    workers: tuple[WorkerTest, ...] = ()


def shard_rows(digests_N32: UInt8Array, shard: tuple[int, int]) -> Int64Array:
    """Return the rows of the i-th of n parts, which depend on the digests alone."""
    index, count = shard
    if count == 1:
        return np.arange(len(digests_N32))
    return np.flatnonzero(_keys(digests_N32) % np.uint64(count) == index)


def shard_failures(
    failures: Sequence[ScanFailure], shard: tuple[int, int]
) -> tuple[ScanFailure, ...]:
    """Return the failures of a scan that belong to a part: there are no digests, so ids decide."""
    digests = b"".join(
        hashlib.sha256(failure.id.encode(errors="surrogatepass")).digest() for failure in failures
    )
    rows = shard_rows(np.frombuffer(digests, np.uint8).reshape(-1, 32), shard)
    return tuple(failures[row] for row in rows.tolist())


def _keys(digests_N32: UInt8Array) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(digests_N32[:, :8]).view("<u8").reshape(-1)


def item_failures(
    pool: Pool, table: Table, mine: Int64Array, unreadable: Sequence[ScanFailure]
) -> list[ItemFailure]:
    """Return every item of the rows `mine` and of `unreadable` that has no embedding, by id."""
    found = [ItemFailure(id=one.id, kind=one.kind, reason=one.reason) for one in unreadable]
    recorded = table.failures()
    if recorded:
        digests_M32 = pool.digests[mine]
        failed = np.frombuffer(b"".join(recorded), np.uint8).reshape(-1, 32)
        # Eight bytes leave out almost everything; the few that remain are compared whole.
        for place in np.flatnonzero(np.isin(_keys(digests_M32), _keys(failed))).tolist():
            failure = recorded.get(digests_M32[place].tobytes())
            if failure is not None:
                item = pool.ids[int(mine[place])]
                found.append(ItemFailure(id=item, kind=failure.kind, reason=failure.reason))
    return sorted(found, key=lambda failure: failure.id)


def first_failures(failures: Sequence[ItemFailure]) -> tuple[ItemFailure, ...]:
    """Return as many failures as a result lists."""
    return tuple(failures[:_LISTED])


def check_rate(result: EmbedResult, *, distinct: int, allowed: float) -> None:
    """Refuse a result in which more failed than the run allows.

    Args:
        result: Counts of the run.
        distinct: Distinct images of the shard that could be read.
        allowed: Share that may fail.

    Raises:
        FailureRateError: With the result.
    """
    failed, total = result.failed + result.unreadable, distinct + result.unreadable
    if failed <= allowed * total:
        return
    first = result.failures[0]
    raise FailureRateError(
        f"At most {allowed:.2%} of the images may fail. Got {failed:,} of {total:,}, such as "
        f"{first.id} ({first.kind}: {first.reason}); the others are published. Repair the files "
        "and run with --retry, or raise --max-failure-rate.",
        result=result,
    )
