"""Images from folders, manifests and archives, and from encoded bytes to pixels; no torch."""

from svp.data.decode import DECODER, MAX_PIXELS, decode_image
from svp.data.digest_cache import DigestCache
from svp.data.failure import MAX_BYTES, DecodeError, FailureKind, ScanFailure, failure_of
from svp.data.opening import open_source
from svp.data.source import Scan, Source

__all__ = [
    "Source",
    "open_source",
    "Scan",
    "ScanFailure",
    "FailureKind",
    "DigestCache",
    "decode_image",
    "DecodeError",
    "failure_of",
    "DECODER",
    "MAX_BYTES",
    "MAX_PIXELS",
]
