"""Digests of files that have not changed, so that a pool is read once and not at every scan.

One file a source, replaced as a whole: 8 bytes of format mark, rows of 16-byte key and 32-byte
SHA-256 sorted by key, and the SHA-256 of all that. A file that does not check out is ignored:
the cache can cost time, never truth.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import platformdirs

from feature_store import atomic

UInt8Array = npt.NDArray[np.uint8]

_MARK: Final = b"svpdig01"
_KEY_BYTES: Final = 16
_DIGEST_BYTES: Final = 32
_ROW_BYTES: Final = _KEY_BYTES + _DIGEST_BYTES


class DigestCache:
    """Digests by source and file key, in a directory.

    Args:
        path: The directory; made when the first digest is stored.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def default(cls) -> "DigestCache":
        """Return the user's cache, under SVP_CACHE_DIR or the system's cache directory."""
        folder = os.environ.get("SVP_CACHE_DIR") or platformdirs.user_cache_dir("svp")
        return cls(Path(folder).expanduser() / "digests")

    def file(self, source: str) -> Path:
        """Return where the digests of `source` are kept."""
        name = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()
        return self.path / f"{name[:32]}.digests"

    def find(self, source: str, keys_NK: UInt8Array) -> tuple[npt.NDArray[np.bool_], UInt8Array]:
        """Look up digests.

        Args:
            source: Identity of the source.
            keys_NK: File keys, (N, 16) uint8.

        Returns:
            Which of them are known, (N,) bool, and their digests, (N, 32) uint8, zero elsewhere.
        """
        n = len(keys_NK)
        found_N = np.zeros(n, dtype=np.bool_)
        digests_ND = np.zeros((n, _DIGEST_BYTES), dtype=np.uint8)
        rows_MR = self._load(source)
        if not n or not len(rows_MR):
            return found_N, digests_ND
        known_M, asked_N = _words(rows_MR[:, :_KEY_BYTES]), _words(keys_NK)
        at_N = np.searchsorted(known_M[:, 0], asked_N[:, 0])
        at_N[at_N == len(known_M)] = 0
        # Two files that share the first word are a miss for the second: it is read again.
        found_N[:] = (known_M[at_N] == asked_N).all(axis=1)
        digests_ND[found_N] = rows_MR[at_N[found_N], _KEY_BYTES:]
        return found_N, digests_ND

    def put(self, source: str, keys_NK: UInt8Array, digests_ND: UInt8Array) -> None:
        """Replace everything known of `source`.

        Raises:
            OSError: If the directory cannot be written.
        """
        rows_NR = np.concatenate([keys_NK, digests_ND], axis=1)
        words_N2 = _words(keys_NK)
        body = _MARK + rows_NR[np.argsort(words_N2[:, 0], kind="stable")].tobytes()
        self.path.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(self.file(source), body + hashlib.sha256(body).digest())

    def _load(self, source: str) -> UInt8Array:
        nothing = np.zeros((0, _ROW_BYTES), dtype=np.uint8)
        try:
            data = self.file(source).read_bytes()
        except OSError:
            return nothing
        body = memoryview(data)[:-_DIGEST_BYTES]
        if (
            not data.startswith(_MARK)
            or (len(body) - len(_MARK)) % _ROW_BYTES
            or hashlib.sha256(body).digest() != data[-_DIGEST_BYTES:]
        ):
            return nothing
        return np.frombuffer(body[len(_MARK) :], dtype=np.uint8).reshape(-1, _ROW_BYTES)


def _words(keys_NK: UInt8Array) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys_NK).view(np.uint64)
