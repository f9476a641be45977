"""Identities: canonical JSON and SHA-256. Content of stored objects: BLAKE3.

BLAKE3 (O'Connor, Aumasson, Neves and Wilcox-O'Hearn, 2020) takes a third of SHA-256's time on one
core, and that time was most of a durable write. Both find any change, deliberate ones included.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol

from blake3 import blake3

Algorithm = Literal["blake3", "sha256"]


class Hasher(Protocol):
    """Takes bytes piece by piece."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return the hash of all that came, in hexadecimal."""


HASHES: Final[Mapping[Algorithm, Callable[[], Hasher]]] = {
    "blake3": blake3,
    "sha256": hashlib.sha256,
}


def canonical_json(obj: Any) -> bytes:
    """Return the one JSON encoding of `obj`: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        ValueError: If `obj` holds NaN or infinity.
        TypeError: If `obj` holds something JSON cannot say.
    """
    text = json.dumps(
        obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def sha256_hex(data: bytes | memoryview) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def content_digest(*parts: bytes | memoryview) -> str:
    """Return the BLAKE3 of the joined parts as 64 lower-case hexadecimal characters."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return str(hasher.hexdigest())
