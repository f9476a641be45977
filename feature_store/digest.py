"""Identities: canonical JSON and SHA-256."""

import hashlib
import json
from typing import Any


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
