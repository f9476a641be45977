"""Decoded images kept on disk at the encoder's input size, so that no run decodes them again.

One file of bytes per pool and rendering, mapped into memory: reruns, seeds and refreshes share it,
and a pool larger than memory costs no more memory than the batches in use. A decode that was
killed continues. The folder may be deleted at any time.

```
<key>/images.u8      (M, 3, S, S) bytes, the readable images in the pool's order
<key>/state.json     how many items are done, and which of them failed; written after the bytes
```

The key is a digest over the images' own digests in order, the preprocessing and the decoder.

Shapes: N = asked items, M = readable ones, S = side in pixels.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from feature_store.atomic import write_json
from feature_store.digest import canonical_json, sha256_hex
from svp.encoders.decoders import decoder_identity
from svp.encoders.images import ImageFailure, Int64Array, Reader, read_batches
from svp.encoders.preprocessing import Preprocessing
from svp.progress import Progress, Silent

SCHEMA: Final = "svp.image-cache/1"
_BYTES: Final = "images.u8"
_STATE: Final = "state.json"
_BATCH: Final = 64
_FLUSH_BYTES: Final = 128 * 1024**2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CachedImages:
    """Images of a pool.

    Attributes:
        images_M3SS: uint8, mapped from the file; writing to them does not change it.
        kept_M: Their positions among the asked items, ascending.
        failures: Why the others have no image, by position.
        sha256: Digest of what the images are, without reading them.
        decoded: How many were decoded now; 0 = all came from the file.
    """

    images_M3SS: torch.Tensor
    kept_M: Int64Array
    failures: dict[int, ImageFailure]
    sha256: str
    decoded: int


def cached_images(
    folder: Path,
    source: Reader,
    uris: Sequence[str],
    preprocessing: Preprocessing,
    *,
    digests: npt.NDArray[np.uint8],
    workers: int | None = None,
    progress: Progress | None = None,
) -> CachedImages:
    """Return the images of a pool, decoding only what no earlier call did.

    Items that failed for a passing reason are tried again by the next call.

    Args:
        folder: Where the cache is; several pools and renderings share it.
        source: Gives the encoded bytes.
        uris: Of N items.
        preprocessing: Makes the squares.
        digests: (N, 32), SHA-256 of the encoded bytes.
        workers: Decoding threads; None means one per processor.
        progress: Where to report.
    """
    key = _key(digests, preprocessing)
    place = folder / key[:32]
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place / "lock"):
        state = _read(place, len(uris))
        started = int(state["done"])
        if started < len(uris):
            _fill(place, state, source, uris, preprocessing, digests, workers, progress or Silent())
    failures = {int(row): ImageFailure(*why) for row, why in state["failures"].items()}
    kept_M = np.setdiff1d(np.arange(len(uris)), np.fromiter(failures, np.int64, len(failures)))
    shape = (len(kept_M), 3, preprocessing.size, preprocessing.size)
    if len(kept_M):
        # Copy on write: torch wants memory it may write to, and the file must stay as it is.
        mapped = np.memmap(place / _BYTES, dtype=np.uint8, mode="c", shape=shape)
        images_M3SS = torch.from_numpy(mapped)
    else:
        images_M3SS = torch.empty(shape, dtype=torch.uint8)
    told = {"key": key, "failed": sorted(failures)}
    return CachedImages(
        images_M3SS=images_M3SS,
        kept_M=kept_M,
        failures=failures,
        sha256=sha256_hex(canonical_json(told)),
        decoded=len(uris) - started,
    )


def _key(digests: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> str:
    described = {
        "schema": SCHEMA,
        "items": len(digests),
        "digests": hashlib.sha256(np.ascontiguousarray(digests).tobytes()).hexdigest(),
        "preprocessing": preprocessing.as_json(),
        "decoder": decoder_identity("pillow"),
    }
    return sha256_hex(canonical_json(described))


def _read(place: Path, count: int) -> dict[str, Any]:
    """Return the state of an earlier call, or that of none."""
    fresh: dict[str, Any] = {"schema": SCHEMA, "done": 0, "failures": {}}
    try:
        state: dict[str, Any] = json.loads((place / _STATE).read_text(encoding="utf-8"))
        size = (place / _BYTES).stat().st_size
    except (OSError, ValueError):
        return fresh
    whole = state.get("done") == count
    passing = any(kind == "transient" for kind, _ in state.get("failures", {}).values())
    # A longer file was being written to when its writer was killed.
    short = size < state.get("bytes", 0)
    return fresh if state.get("schema") != SCHEMA or short or (whole and passing) else state


def _fill(
    place: Path,
    state: dict[str, Any],
    source: Reader,
    uris: Sequence[str],
    preprocessing: Preprocessing,
    digests: npt.NDArray[np.uint8],
    workers: int | None,
    progress: Progress,
) -> None:
    """Decode what is not done yet, in order; `state` is brought up to date with the file."""
    side = 3 * preprocessing.size**2
    done = int(state["done"])
    parts = [slice(first, first + _BATCH) for first in range(done, len(uris), _BATCH)]
    asked = ((uris[part], digests[part]) for part in parts)
    rows = done - len(state["failures"])
    path = place / _BYTES
    # Bytes written after the last state are overwritten, never believed.
    with path.open("r+b" if done else "wb") as file:
        file.truncate(rows * side)
        file.seek(rows * side)
        pending = 0
        with progress.task("decoding", len(uris), "images", done) as task:
            for batch in read_batches(source, asked, preprocessing, workers=workers):
                images = np.ascontiguousarray(batch.images.numpy())
                good = [row for row in range(len(images)) if row not in batch.failures]
                file.write(images[good].tobytes() if batch.failures else images.tobytes())
                for row, failure in batch.failures.items():
                    state["failures"][str(done + row)] = [failure.kind, failure.reason]
                done, rows = done + len(images), rows + len(good)
                pending += len(good) * side
                task.advance(len(images))
                if pending >= _FLUSH_BYTES or done == len(uris):
                    _publish(place, file, state, done, rows * side)
                    pending = 0


def _publish(place: Path, file: Any, state: dict[str, Any], done: int, size: int) -> None:
    file.flush()
    os.fsync(file.fileno())
    state["done"], state["bytes"] = done, size
    write_json(place / _STATE, state)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time decode, where the system has locks that a kill releases."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
