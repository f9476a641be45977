"""Digest the items of one or several sources on threads, reading only what is not known yet."""

import abc
import concurrent.futures
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.pool import Pool
from svp.data.digest_cache import DigestCache
from svp.data.failure import DecodeError, ScanFailure, failure_of
from svp.data.listing import Entry, Listing
from svp.data.source import Scan
from svp.errors import InputError
from svp.progress import Progress, Silent

_BATCH: Final = 64  # items a thread takes at once: amortises the hand-over of small files
_SAVE_EVERY_S: Final = 60.0
# A file changed twice within one tick of its clock looks unchanged, so nothing is read before
# the tick of its listing is over. Whole seconds betray a file system without finer times.
_TICK_NS: Final = 20_000_000
_COARSE_TICK_NS: Final = 2_000_000_000

Read = Callable[[str], bytes]
UInt8Array = npt.NDArray[np.uint8]
SILENT: Final = Silent()


class SingleSource(abc.ABC):
    """A source that is one folder, one manifest or one archive.

    Attributes:
        read_threads: Reads at a time while digesting; None lets the processors decide.
    """

    read_threads: int | None = None

    @property
    @abc.abstractmethod
    def uri(self) -> str:
        """Where it is; also the name of its digests in the cache."""

    @abc.abstractmethod
    def list_items(self, progress: Progress) -> Listing:
        """List the items without reading their bytes."""

    @abc.abstractmethod
    def read(self, uri: str) -> bytes:
        """Return one item's encoded bytes; see `Source.read`."""

    def scan(self, *, cache: DigestCache | None = None, progress: Progress = SILENT) -> Scan:
        """List the items and digest their encoded bytes; see `Source.scan`."""
        return scan_sources([("", self)], cache, progress)


def scan_sources(
    sources: Sequence[tuple[str, SingleSource]], cache: DigestCache | None, progress: Progress
) -> Scan:
    """Scan `sources` into one pool.

    Args:
        sources: Pairs of the prefix of the source's URIs and the source.
        cache: Remembers digests, or None.
        progress: Where to report.

    Raises:
        InputError: If two sources hold the same id.
    """
    listings = [source.list_items(progress) for _, source in sources]
    owner: dict[str, int] = {}
    if len(sources) > 1:
        for number, listing in enumerate(listings):
            for item_id in listing.ids():
                if owner.setdefault(item_id, number) != number:
                    first, second = sources[owner[item_id]][1].uri, sources[number][1].uri
                    raise InputError(
                        f"Ids must be unique across sources. Got {item_id!r} in both {first} and "
                        f"{second}. Join them in one manifest with ids of your own, or give the "
                        "folder that holds both."
                    )
    entries: list[Entry] = []
    uris: list[str] = []
    digests: list[UInt8Array] = []
    failures: list[ScanFailure] = []
    reread = 0
    for (prefix, source), listing in zip(sources, listings, strict=True):
        work = _Digests(listing.entries, source, cache, progress)
        work.run()
        keep_M = np.flatnonzero(work.known_N)
        kept = [listing.entries[row] for row in keep_M.tolist()]
        entries += kept
        uris += [prefix + entry.uri for entry in kept]
        digests.append(work.digests_ND[keep_M])
        failures += listing.failures + work.failures
        reread += work.reread
    pool = Pool.create(
        tuple(entry.id for entry in entries),
        tuple(uris),
        np.concatenate(digests),
        labels=_column(entry.label for entry in entries),
        splits=_column(entry.split for entry in entries),
        groups=_column(entry.group for entry in entries),
    )
    return Scan(pool, tuple(sorted(failures, key=lambda failure: failure.id)), reread)


def _column(values: Iterator[str | None]) -> tuple[str | None, ...] | None:
    column = tuple(values)
    return None if all(value is None for value in column) else column


def _digest_batch(read: Read, entries: Sequence[Entry]) -> list[bytes | ScanFailure]:
    results: list[bytes | ScanFailure] = []
    for entry in entries:
        try:
            results.append(hashlib.sha256(read(entry.uri)).digest())
        except (OSError, DecodeError) as error:
            kind, reason = failure_of(error)
            results.append(ScanFailure(entry.id, reason, kind))
    return results


class _Digests:
    """The digests of one source's entries, filled from the cache and then by reading."""

    def __init__(
        self,
        entries: list[Entry],
        source: SingleSource,
        cache: DigestCache | None,
        progress: Progress,
    ) -> None:
        self._entries, self._source, self._cache, self._progress = entries, source, cache, progress
        joined = b"".join(entry.key for entry in entries)
        self._keys_NK: UInt8Array = np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)
        self.known_N = np.zeros(len(entries), dtype=np.bool_)
        self.digests_ND: UInt8Array = np.zeros((len(entries), 32), dtype=np.uint8)
        self.failures: list[ScanFailure] = []
        self.reread = 0
        self._saved_at = time.monotonic()

    def run(self) -> None:
        if self._cache is not None:
            self.known_N, self.digests_ND = self._cache.find(self._source.uri, self._keys_NK)
        missing_M = np.flatnonzero(~self.known_N)
        if not len(missing_M):
            return
        self._settle(missing_M)
        try:
            self._read(missing_M)
        finally:
            # Also when interrupted: the next scan goes on from here.
            self._save()

    def _settle(self, rows_M: npt.NDArray[np.int64]) -> None:
        now_ns = time.time_ns()
        wait_ns = 0
        for row in rows_M.tolist():
            changed_ns = self._entries[row].changed_ns
            tick_ns = _TICK_NS if changed_ns % 1_000_000_000 else _COARSE_TICK_NS
            if now_ns - tick_ns < changed_ns <= now_ns:
                wait_ns = max(wait_ns, changed_ns + tick_ns - now_ns)
        time.sleep(wait_ns / 1e9)

    def _read(self, rows_M: npt.NDArray[np.int64]) -> None:
        rows = rows_M.tolist()
        batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        workers = self._source.read_threads or min(32, (os.cpu_count() or 1) + 4)
        with (
            self._progress.task("reading", len(rows), unit="images") as task,
            concurrent.futures.ThreadPoolExecutor(min(workers, len(batches))) as executor,
        ):
            futures = {
                executor.submit(
                    _digest_batch, self._source.read, [self._entries[row] for row in batch]
                ): batch
                for batch in batches
            }
            try:
                for future in concurrent.futures.as_completed(futures):
                    batch = futures.pop(future)
                    self._take(batch, future.result())
                    task.advance(len(batch))
            except BaseException:
                executor.shutdown(cancel_futures=True)
                for future, batch in futures.items():
                    if not future.cancelled() and future.exception() is None:
                        self._take(batch, future.result())
                raise

    def _take(self, rows: list[int], results: list[bytes | ScanFailure]) -> None:
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, ScanFailure):
                self.failures.append(result)
            else:
                self.digests_ND[row] = np.frombuffer(result, dtype=np.uint8)
                self.known_N[row] = True
                self.reread += 1
        if time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        if self._cache is None:
            return
        try:
            self._cache.put(
                self._source.uri, self._keys_NK[self.known_N], self.digests_ND[self.known_N]
            )
        except OSError as error:
            self._progress.say(
                f"The digest cache in {self._cache.path} cannot be written "
                f"({error.strerror or error}); the next scan reads these files again."
            )
        self._saved_at = time.monotonic()
