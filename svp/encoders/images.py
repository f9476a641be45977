"""Images read, checked and preprocessed by threads, in order, with what fails kept apart.

Decoding, resizing and hashing release Python's lock, so threads scale and the bytes need no trip
between processes. A batch always has the place of every item it was asked for: one that fails
leaves zeros and a reason, and no other item moves.

Shapes: N = asked items, M = kept items, B = batch, S = side of the preprocessed square.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from svp.data.failure import DecodeError, failure_of
from svp.encoders.decoders import ImageDecoder, NvJpeg, Pillow
from svp.encoders.preprocessing import Preprocessing, UInt8Array
from svp.errors import InputError
from svp.progress import Progress, Silent

Int64Array = npt.NDArray[np.int64]
FailureKind = Literal["missing", "transient", "corrupt", "too_large"]

_MAX_WORKERS: Final = 32
_SLICE: Final = 8  # images a thread takes at once: less bookkeeping, still even work
_PREFETCH: Final = 2  # batches decoded ahead of the one in use


class Reader(Protocol):
    """The part of a source that reading images needs."""

    def read(self, uri: str) -> bytes:
        """Return the encoded bytes of one item; thread-safe."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why one item gave no image.

    Attributes:
        kind: `missing`, `transient` (a retry may work), `corrupt` or `too_large`.
        reason: One line for people.
    """

    kind: FailureKind
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Preprocessed images of the items asked for, in their order.

    Attributes:
        images: uint8 (B, 3, S, S) on the CPU, stored channels-last; zeros where an item failed.
        failures: Reason by offset in the batch.
        waited_s: Seconds the consumer waited for it.
    """

    images: torch.Tensor
    failures: dict[int, ImageFailure]
    waited_s: float


def default_workers() -> int:
    """Return how many threads decode: one per processor this process may use, at most 32."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        usable = os.cpu_count() or 1
    return min(_MAX_WORKERS, usable)


def _read(source: Reader, uri: str, digest: bytes | None) -> bytes | ImageFailure:
    # Bytes that changed since the scan would file another image's embedding under this digest.
    try:
        data = source.read(uri)
    except (OSError, DecodeError) as error:
        return _failure(error)
    if digest is not None and hashlib.sha256(data).digest() != digest:
        return ImageFailure("transient", "the file changed since the pool was scanned")
    return data


def _failure(error: OSError | DecodeError) -> ImageFailure:
    kind, reason = failure_of(error)
    return ImageFailure("corrupt" if kind == "refused" else kind, reason)


def _fill(
    source: Reader,
    uris: Sequence[str],
    digests: npt.NDArray[np.uint8] | None,
    preprocessing: Preprocessing,
    places: UInt8Array,
    decoder: ImageDecoder,
) -> dict[int, ImageFailure]:
    wanted = [None] * len(uris) if digests is None else [row.tobytes() for row in digests]
    # Read one by one as they are decoded, unless the decoder is better at several.
    read: Iterable[bytes | ImageFailure] = map(functools.partial(_read, source), uris, wanted)
    images: Sequence[Image.Image | None] = [None] * len(uris)
    if isinstance(decoder, NvJpeg):
        read = list(read)
        images = decoder.ahead([data if isinstance(data, bytes) else b"" for data in read])
    failures = {}
    for offset, (data, image) in enumerate(zip(read, images, strict=True)):
        try:
            if isinstance(data, ImageFailure):
                failures[offset] = data
            else:
                places[offset] = preprocessing.array(image or decoder(data))
        except (OSError, DecodeError) as error:
            failures[offset] = _failure(error)
        if offset in failures:
            places[offset] = 0
    return failures


@contextlib.contextmanager
def _threads(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    count = default_workers() if workers is None else workers
    if count < 1:
        raise InputError(
            f"workers must be at least 1. Got {count}. Leave it out for one per processor."
        )
    threads = ThreadPoolExecutor(count, thread_name_prefix="svp-decode")
    try:
        yield threads
    finally:
        # Stopping early must not first decode everything that was queued.
        threads.shutdown(wait=True, cancel_futures=True)


def read_batches(
    source: Reader,
    batches: Iterable[tuple[Sequence[str], npt.NDArray[np.uint8]]],
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    pin: bool = False,
    decoder: ImageDecoder | None = None,
) -> Generator[Batch]:
    """Yield the images of each batch in turn, decoding the next ones meanwhile.

    Args:
        source: Gives the encoded bytes.
        batches: Uris (B) and digests (B, 32) of each; consumed as far ahead as is decoded.
        preprocessing: Makes the squares.
        workers: Threads; None means one per processor.
        pin: Allocate page-locked memory, from which copies to a GPU do not wait.
        decoder: Makes the pixels; None means whole images by Pillow.

    Yields:
        As many `Batch`es as asked, in order. Three at most are in memory.
    """
    size, chosen = preprocessing.size, decoder or Pillow()
    asked = iter(batches)
    with _threads(workers) as threads:
        ahead: collections.deque[tuple[torch.Tensor, list[tuple[int, Future[Any]]]]]
        ahead = collections.deque()

        def start(uris: Sequence[str], digests: npt.NDArray[np.uint8]) -> None:
            buffer = torch.empty((len(uris), size, size, 3), dtype=torch.uint8, pin_memory=pin)
            places = buffer.numpy()
            futures = [
                (
                    first,
                    threads.submit(
                        _fill,
                        source,
                        uris[first : first + _SLICE],
                        digests[first : first + _SLICE],
                        preprocessing,
                        places[first : first + _SLICE],
                        chosen,
                    ),
                )
                for first in range(0, len(uris), _SLICE)
            ]
            ahead.append((buffer, futures))

        for uris, digests in itertools.islice(asked, 1 + _PREFETCH):
            start(uris, digests)
        while ahead:
            buffer, futures = ahead.popleft()
            began = time.perf_counter()
            failures = {}
            for first, future in futures:
                for offset, failure in future.result().items():
                    failures[first + offset] = failure
            waited = time.perf_counter() - began
            yield Batch(images=buffer.permute(0, 3, 1, 2), failures=failures, waited_s=waited)
            following = next(asked, None)
            if following is not None:
                start(*following)


def decode_pool(
    source: Reader,
    uris: Sequence[str],
    preprocessing: Preprocessing,
    *,
    digests: npt.NDArray[np.uint8] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    decoder: ImageDecoder | None = None,
) -> tuple[torch.Tensor, Int64Array, dict[int, ImageFailure]]:
    """Decode images once into memory, for training that reads them every epoch.

    Args:
        source: Gives the encoded bytes.
        uris: Of N items.
        preprocessing: Makes the squares.
        digests: (N, 32) that the bytes must have, or None.
        workers: Threads; None means one per processor.
        progress: Where to report.
        decoder: Makes the pixels; None means whole images by Pillow.

    Returns:
        Images uint8 (M, 3, S, S), contiguous, 3 S^2 bytes each; positions (M,) of the kept items
        in `uris`, ascending; the failures of the others by position.

    Raises:
        InputError: If the images do not fit in memory.
    """
    count, size = len(uris), preprocessing.size
    try:
        images = torch.empty((count, 3, size, size), dtype=torch.uint8)
    except RuntimeError as error:
        raise InputError(
            f"{count:,} images of {size} px must fit in memory. Got {3 * count * size**2:,} bytes "
            "to hold. Use fewer or smaller images."
        ) from error
    places = images.numpy().transpose(0, 2, 3, 1)
    failures: dict[int, ImageFailure] = {}
    with (
        (progress or Silent()).task("decoding", count, "images") as task,
        _threads(workers) as threads,
    ):
        step = 64
        futures = [
            threads.submit(
                _fill,
                source,
                uris[first : first + step],
                None if digests is None else digests[first : first + step],
                preprocessing,
                places[first : first + step],
                decoder or Pillow(),
            )
            for first in range(0, count, step)
        ]
        for first, future in zip(range(0, count, step), futures, strict=True):
            for offset, failure in future.result().items():
                failures[first + offset] = failure
            task.advance(min(step, count - first))
    kept = np.setdiff1d(np.arange(count), np.fromiter(failures, np.int64, len(failures)))
    if failures:
        images = _compact(images, kept)
    return images, kept, failures


def _compact(images: torch.Tensor, kept: Int64Array) -> torch.Tensor:
    # In place: indexing would hold a second copy of the pool. Rows only ever move forward.
    for row, position in enumerate(kept.tolist()):
        if row != position:
            images[row] = images[position]
    return images[: len(kept)]
