"""A file that many threads read at any offset, at once."""

import os
import threading
import weakref
from pathlib import Path


def stamp_of(status: os.stat_result) -> tuple[tuple[int, int, int], int]:
    """Return numbers that change when a file does, and when it changed last, in nanoseconds."""
    numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return numbers, max(status.st_mtime_ns, status.st_ctime_ns)


class RandomFile:
    """Reads of one open file that share no position. Pickles as its path.

    Attributes:
        path: The file.
        size: Bytes.
        changed_ns: When it changed last, in nanoseconds since the epoch.
        stamp: Numbers that change when the file does.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = path.open("rb", buffering=0)
        weakref.finalize(self, self._handle.close)
        # Systems without pread move the one position under a lock.
        self._lock = None if hasattr(os, "pread") else threading.Lock()
        status = os.fstat(self._handle.fileno())
        self.size = status.st_size
        self.stamp, self.changed_ns = stamp_of(status)

    def __reduce__(self) -> tuple[type["RandomFile"], tuple[Path]]:
        return type(self), (self.path,)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end of the file."""
        data = self._once(offset, size)
        if len(data) == size or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < size:
            piece = self._once(offset + got, size - got)
            if not piece:
                break
            pieces.append(piece)
            got += len(piece)
        return b"".join(pieces)

    def _once(self, offset: int, size: int) -> bytes:
        if self._lock is None:
            return os.pread(self._handle.fileno(), size, offset)
        with self._lock:
            self._handle.seek(offset)
            return self._handle.read(size) or b""
