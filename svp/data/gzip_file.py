"""Random access inside a gzip file: resume points of the decompressor, kept while indexing.

A gzip stream can only be inflated from its beginning, or from where somebody kept a copy of the
decompressor's state (32 KiB of window and a little more). One pass keeps such copies at even
distances; a read then inflates from the last one before its offset.
"""

import bisect
import threading
import zlib
from typing import Any, Final

from svp.data.failure import DecodeError
from svp.data.random_file import RandomFile

_STEP: Final = 16 * 1024  # compressed bytes fed at once; bounds one step's output to 16 MiB
_SPAN: Final = 2 * 2**20  # first distance between resume points, in inflated bytes
_MAX_POINTS: Final = 1024  # about 50 MiB of states; then the distance doubles
_MAX_IDLE: Final = 32  # cursors kept for reads that go on where an earlier one stopped
_GZIP: Final = 16 + zlib.MAX_WBITS


class _Cursor:
    """A decompressor somewhere in the stream, with the piece it inflated last."""

    __slots__ = ("decoder", "packed_at", "piece", "piece_at")

    def __init__(self, packed_at: int, piece_at: int, decoder: Any) -> None:
        self.packed_at = packed_at  # next compressed byte to feed
        self.piece_at = piece_at  # offset of `piece` in the inflated stream
        self.piece = b""
        self.decoder = decoder

    @property
    def end(self) -> int:
        return self.piece_at + len(self.piece)

    def fork(self) -> "_Cursor":
        return _Cursor(self.packed_at, self.end, self.decoder.copy())

    def step(self, file: RandomFile) -> bool:
        """Inflate the next piece; return False at the end of the stream."""
        if self.decoder.eof:
            # Members may follow each other; zeros behind the last one are padding.
            if not file.read_at(self.packed_at, _STEP).strip(b"\0"):
                return False
            self.decoder = zlib.decompressobj(_GZIP)
        packed = file.read_at(self.packed_at, _STEP)
        if not packed:
            raise EOFError("the gzip stream ends too early")
        self.piece_at, self.piece = self.end, self.decoder.decompress(packed)
        self.packed_at += len(packed) - len(self.decoder.unused_data)
        return True


class GzipFile:
    """An indexed gzip file, read by many threads at any offset.

    Call `read` until it returns nothing, once, to index the file; then `read_at`.

    Args:
        file: The compressed file.
    """

    def __init__(self, file: RandomFile) -> None:
        self._file = file
        self._span = _SPAN
        self._first = _Cursor(0, 0, zlib.decompressobj(_GZIP))
        self._indexed = 0  # inflated bytes that the indexing pass has handed out
        self._points = [self._first.fork()]
        self._idle: list[_Cursor] = []
        self._lock = threading.Lock()

    def read(self, size: int) -> bytes:
        """Return the next bytes of the indexing pass, at most `size`; nothing at the end.

        Raises:
            EOFError, zlib.error: If the file is damaged.
        """
        cursor = self._first
        while self._indexed == cursor.end:
            if cursor.end - self._points[-1].end >= self._span and not cursor.decoder.eof:
                self._keep(cursor.fork())
            if not cursor.step(self._file):
                return b""
        skip = self._indexed - cursor.piece_at
        data = cursor.piece[skip : skip + size]
        self._indexed += len(data)
        return data

    def read_at(self, offset: int, size: int) -> bytes:
        """Return `size` inflated bytes from `offset`; fewer only at the end of the stream.

        Raises:
            DecodeError: If the stream is damaged there.
        """
        cursor = self._borrow(offset)
        parts: list[bytes] = []
        wanted = size
        try:
            while wanted:
                skip = offset - cursor.piece_at
                part = cursor.piece[skip : skip + wanted]
                if part:
                    parts.append(part)
                    offset += len(part)
                    wanted -= len(part)
                elif not cursor.step(self._file):
                    break
        except (EOFError, zlib.error) as error:
            raise DecodeError("corrupt", f"the archive is damaged here: {error}") from error
        with self._lock:
            self._idle.append(cursor)
            del self._idle[:-_MAX_IDLE]
        return b"".join(parts)

    def _keep(self, point: _Cursor) -> None:
        self._points.append(point)
        if len(self._points) > _MAX_POINTS:
            del self._points[1::2]
            self._span *= 2

    def _borrow(self, offset: int) -> _Cursor:
        """Return a cursor at or before `offset` that nobody else holds, the nearest there is."""
        at = bisect.bisect_right(self._points, offset, key=lambda point: point.end) - 1
        point = self._points[at]
        with self._lock:
            usable = [cursor for cursor in self._idle if cursor.piece_at <= offset]
            nearest = max(usable, key=lambda cursor: cursor.end, default=None)
            if nearest is not None and nearest.end >= point.end:
                self._idle.remove(nearest)
                return nearest
            return point.fork()
