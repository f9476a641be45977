"""An object in a bucket as a file: read at any offset by ranged requests, or walked through.

A walk skips what nobody asks for where that is long, and reads ahead in growing steps where it is
short: a tar of small images is indexed by one pass of large requests, one of large images by its
headers alone.
"""

import errno
import io
import os
from typing import Final

from svp.data.bucket import Buckets, RemoteObject
from svp.errors import InputError, TemporaryError

_LEAST: Final = 64 * 2**10  # bytes of a request that starts somewhere new
_MOST: Final = 4 * 2**20
_NEAR: Final = 2**20  # bytes that are rather read than skipped: a request takes as long


class RemoteFile:
    """An object of a bucket, read by many threads at any offset. Can be pickled.

    Attributes:
        path: Its URL.
        size: Bytes.
        changed_ns: When it was written last, in nanoseconds since the epoch.
        stamp: Numbers that change when the object does.

    Args:
        described: What the service says of it.
        buckets: Where it is asked for.
    """

    def __init__(self, described: RemoteObject, buckets: Buckets) -> None:
        self._described, self._buckets = described, buckets
        self.path, self.size = described.url, described.size
        self.changed_ns = described.changed_ns
        self.stamp = (described.size, described.changed_ns)

    def __reduce__(self) -> tuple[type["RemoteFile"], tuple[RemoteObject, Buckets]]:
        return type(self), (self._described, self._buckets)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end of the object.

        Raises:
            OSError: As `Buckets.read`.
        """
        return self._buckets.read_range(self.path, offset, size)

    def walk(self) -> "Walk":
        """Return a view with a position of its own, for one thread."""
        return Walk(self)


class Walk(io.RawIOBase):
    """A position in a remote file, with what was read ahead of it.

    Raises:
        InputError: On reading, if the object is gone or refused.
        TemporaryError: On reading, if the service does not answer.
    """

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._at = self._start = 0
        self._window = b""
        self._ahead = _LEAST

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; nothing is read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes; fewer only at the end of the object."""
        left = max(0, self._file.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._read(wanted) if wanted else b""
        self._at += len(data)
        return data

    def _read(self, size: int) -> bytes:
        begin, held = self._at - self._start, len(self._window)
        if begin < 0 or begin + size > held:
            near = 0 <= begin <= held + _NEAR
            self._ahead = min(2 * self._ahead, _MOST) if near else _LEAST
            self._window = self._fetch(min(max(size, self._ahead), self._file.size - self._at))
            self._start, begin = self._at, 0
        return self._window[begin : begin + size]

    def _fetch(self, size: int) -> bytes:
        try:
            return self._file.read_at(self._at, size)
        except OSError as error:
            if error.errno == errno.EIO:
                raise TemporaryError(error.strerror or str(error)) from error
            raise InputError(
                f"A file in a bucket must be readable. Got {error.strerror or error} for "
                f"{self._file.path}. Check its name and the credentials."
            ) from error
