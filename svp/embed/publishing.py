"""Writing chunks, one at a time, and sealing segments on a thread of its own.

A chunk is waited for, so that a kill costs one chunk and not two: decoding goes on meanwhile, and
writing takes a small share of the time that embedding a chunk does. Sealing, which reads a whole
segment again, is not waited for. What fails there is raised at the next hand-over, or at the end.
"""

import functools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from feature_store import Failure, SegmentWriter
from svp.embed.dealing import Deal, Dealer


class _Lane:
    """A thread that does one job after the other; a second waits until the first is done."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._job: Future[None] | None = None

    def check(self) -> None:
        """Raise what the last job raised, if it is done."""
        job = self._job
        if job is not None and job.done():
            job.result()

    def put(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._job is not None:
                self._job.result()
            self._job = self._thread.submit(job)

    def finish(self) -> None:
        with self._lock:
            if self._job is not None:
                self._job.result()

    def stop(self) -> None:
        self._thread.shutdown(wait=True)


class Publisher:
    """Takes embedded chunks from any thread; writes them and seals the segments they complete."""

    def __init__(
        self,
        dealer: Dealer,
        provenance: Mapping[str, Any],
        check: Callable[[npt.NDArray[Any]], None],
    ) -> None:
        self._dealer, self._provenance, self._check = dealer, provenance, check
        self._writing, self._seal = threading.Lock(), _Lane("svp-seal")
        self._segments: list[str] = []

    def put(self, deal: Deal, x_Bd: npt.NDArray[Any], failures: Mapping[int, Failure]) -> float:
        """Write one chunk and return when it is there.

        Args:
            deal: The chunk.
            x_Bd: Its embeddings.
            failures: Reason by row of the chunk.

        Returns:
            Seconds it took.
        """
        began = time.perf_counter()
        self._check(x_Bd)
        with self._writing:
            deal.writer.write(deal.chunk, x_Bd, failures)
        for writer in self._dealer.written(deal):
            self._seal.put(functools.partial(self._seal_one, writer))
        return time.perf_counter() - began

    def check(self) -> None:
        """Raise what went wrong, without waiting."""
        self._seal.check()

    def _seal_one(self, writer: SegmentWriter) -> None:
        # Another process may have published it meanwhile.
        if not writer.is_sealed:
            self._segments.append(writer.seal(self._provenance).id)

    def finish(self) -> tuple[str, ...]:
        """Wait for all of it; return the ids of the segments that were published, in order."""
        self._seal.finish()
        for writer in self._dealer.rest():
            self._seal_one(writer)
        return tuple(self._segments)

    def stop(self) -> None:
        """End the thread; a segment that was handed over is still sealed."""
        self._seal.stop()
