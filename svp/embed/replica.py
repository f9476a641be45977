"""One replica of the encoder at work: images in, chunks of embeddings out, nothing waits twice.

Shapes: B = batch, d = dim.
"""

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_store import Failure, Pool
from svp.embed.dealing import Deal, Dealer
from svp.embed.forward import Forward, Launched, on_device
from svp.embed.meter import Meter, Shares, Spent
from svp.embed.publishing import Publisher
from svp.encoders.encoder import Encoder
from svp.encoders.images import ImageFailure, Reader, read_batches
from svp.errors import TemporaryError

UInt8Array = npt.NDArray[np.uint8]

_OUTAGE_ROWS: Final = 16  # fewer items may all be gone without the source being gone


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """What all replicas of a run share.

    Attributes:
        pool: Whose images.
        source: Reads them.
        dealer: Deals chunks.
        publisher: Takes them back.
        meter: Adds up the seconds.
        batch_size: Images decoded, and at first computed, at once.
        done: Told how many more images are done, and the shares of late.
        stop: Set when another replica failed.
    """

    pool: Pool
    source: Reader
    dealer: Dealer
    publisher: Publisher
    meter: Meter
    batch_size: int
    done: Callable[[int, Shares], None]
    stop: threading.Event


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """Rows [start, stop) of a chunk, and those that gave no image."""

    deal: Deal
    start: int
    stop: int
    failures: dict[int, ImageFailure] = dataclasses.field(default_factory=dict)


class Replica:
    """Embeds chunks until none is left."""

    def __init__(
        self, shift: Shift, encoder: Encoder, forward: Forward, workers: int | None
    ) -> None:
        self._shift, self._encoder, self._forward = shift, encoder, forward
        self._workers = workers
        self._asked: collections.deque[_Part] = collections.deque()
        self._x_Md = np.empty((0, encoder.dim), encoder.storage_dtype)
        self._failures: dict[int, ImageFailure] = {}
        self._write_s = 0.0

    def _ask(self) -> Iterator[tuple[Sequence[str], UInt8Array]]:
        pool = self._shift.pool
        while not self._shift.stop.is_set() and (deal := self._shift.dealer.next()) is not None:
            count, size = len(deal.rows), self._shift.batch_size
            for start in range(0, count, size):
                part = _Part(deal, start, min(start + size, count))
                self._asked.append(part)
                rows = deal.rows[part.start : part.stop]
                yield [pool.uris[row] for row in rows.tolist()], pool.digests[rows]

    def run(self) -> None:
        """Embed what the dealer deals.

        Raises:
            TemporaryError: The source cannot be read at all, or memory ran out.
            FeatureStoreError: What the publisher met.
        """
        encoder, shift = self._encoder, self._shift
        gpu = encoder.device.type == "cuda"
        batches = read_batches(
            shift.source,
            self._ask(),
            encoder.preprocessing,
            workers=self._workers,
            pin=gpu,
            decoder=encoder.image_decoder(),
        )
        flying: tuple[_Part, Launched, Spent] | None = None
        with on_device(encoder.device), contextlib.closing(batches):
            for batch in batches:
                shift.publisher.check()
                if shift.stop.is_set():
                    return
                part = dataclasses.replace(self._asked.popleft(), failures=batch.failures)
                digests_B32 = shift.pool.digests[part.deal.rows[part.start : part.stop]]
                launched = self._forward.launch(batch.images, digests_B32)
                waited = Spent(decode=batch.waited_s, write=self._write_s)
                self._write_s = 0.0
                if flying is not None:
                    self._land(*flying)
                flying = part, launched, waited
                if not gpu:  # it is computed already
                    self._land(*flying)
                    flying = None
            if flying is not None:
                self._land(*flying)
        shift.meter.add(Spent(write=self._write_s))

    def _land(self, part: _Part, launched: Launched, waited: Spent) -> None:
        deal = part.deal
        if part.start == 0:
            self._x_Md = np.empty((len(deal.rows), self._encoder.dim), self._x_Md.dtype)
            self._failures = {}
        self._failures |= {part.start + i: failure for i, failure in part.failures.items()}
        self._x_Md[part.start : part.stop], spent = launched.fetch(waited)
        if part.stop == len(deal.rows):
            self._x_Md[list(self._failures)] = 0
            _refuse_outage(self._failures, len(deal.rows), self._shift.source)
            recorded = {row: Failure(f.kind, f.reason) for row, f in self._failures.items()}
            self._write_s += self._shift.publisher.put(deal, self._x_Md, recorded)
        self._shift.done(part.stop - part.start, self._shift.meter.add(spent))


def _refuse_outage(failures: dict[int, ImageFailure], rows: int, source: Any) -> None:
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
