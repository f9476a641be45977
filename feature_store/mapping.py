"""Chunk files in memory, mapped one behind the other, so that a segment's rows are one array.

Scattered rows of one array are copied once, straight to where they belong; rows of a map per file
have to be collected file by file and then distributed.

Shapes: C = bytes of all chunks' rows.
"""

import ctypes
import functools
import mmap
import os
import platform
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from feature_store.layout import CHECKSUM_BYTES, SEGMENT_CHUNKS

Opened = TypeVar("Opened")

_OPEN: Final = 256  # below the usual limit of 1024 files: Python's mmap keeps the file open
_MOST_CHUNKS: Final = 2 * SEGMENT_CHUNKS  # times _OPEN: half the usual limit of 65,530 maps
_ALIGNMENT: Final = 2**21  # where the kernel maps large pages of its cache at once
_MAP_FIXED: Final = 0x10  # on the systems and machines below; mmap does not name it
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class Maps:
    """What was mapped, the most recently used kept open."""

    def __init__(self, limit: int = _OPEN) -> None:
        self._limit = limit
        self._maps: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, create: Callable[[], Opened]) -> Opened:
        """Return what is called `key`, made by `create` if it is not open."""
        with self._lock:
            found: Opened | None = self._maps.get(key)
            if found is None:
                found = self._maps[key] = create()
                if len(self._maps) > self._limit:
                    # Arrays over it keep it alive; it closes with the last of them.
                    self._maps.popitem(last=False)
            else:
                self._maps.move_to_end(key)
            return found


def can_join(chunks: int, payload_bytes: int) -> bool:
    """Return whether files of so many bytes of rows can be mapped one behind the other."""
    if sys.platform not in {"linux", "darwin"}:
        return False
    import resource  # not everywhere

    return (
        payload_bytes % mmap.ALLOCATIONGRANULARITY == 0
        and chunks <= _MOST_CHUNKS
        and platform.machine() in {"x86_64", "aarch64", "arm64"}
        and sys.maxsize > 2**32
        # A whole segment's addresses are taken for a single row.
        and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    )


class JoinedChunks:
    """A range of addresses in which chunk files appear as they are needed.

    Safe to use from several threads. What is not mapped yet must not be touched: it ends the
    process, rather than pass as zeros.

    Args:
        chunks: How many.
        payload_bytes: Of the rows of each, all equal; `can_join` must hold.

    Attributes:
        bytes_C: Rows of all chunks as bytes.
    """

    def __init__(self, chunks: int, payload_bytes: int) -> None:
        self._payload_bytes = payload_bytes
        self._trailers: dict[int, bytes] = {}
        self._lock = threading.Lock()
        # The array keeps the range alive, and it unmaps the files in it when it goes.
        length = chunks * payload_bytes
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        reserved = np.frombuffer(mmap.mmap(-1, length + _ALIGNMENT, flags=kind, prot=0), np.uint8)
        first = -reserved.ctypes.data % _ALIGNMENT
        self.bytes_C: NDArray[np.uint8] = reserved[first : first + length]

    def add(self, indices: Iterable[int], opened: Callable[[int], int]) -> None:
        """Map chunks unless they are.

        Args:
            indices: Of the chunks.
            opened: Opens the file of a chunk, which must hold all its bytes: touching mapped pages
                behind the end of a file kills the process. The handle is closed here.

        Raises:
            OSError: If the system does not map it.
        """
        with self._lock:
            first = self.bytes_C.ctypes.data
            for index in indices:
                if index in self._trailers:
                    continue
                handle = opened(index)
                try:
                    address = first + index * self._payload_bytes
                    _map_at(address, self._payload_bytes, handle)
                    self._trailers[index] = os.pread(handle, CHECKSUM_BYTES, self._payload_bytes)
                finally:
                    os.close(handle)

    def payload(self, index: int) -> memoryview:
        """Return the rows of a mapped chunk as bytes."""
        start = index * self._payload_bytes
        return self.bytes_C[start : start + self._payload_bytes].data

    def trailer(self, index: int) -> bytes:
        """Return what is stored behind the rows of a mapped chunk."""
        return self._trailers[index]


def _map_at(address: int, length: int, handle: int) -> None:
    """Map a file for reading at an address inside a range that is ours."""
    wanted = mmap.MAP_PRIVATE | _MAP_FIXED
    mapped = _mmap()(address, length, mmap.PROT_READ, wanted, handle, 0)
    if mapped == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@functools.cache
def _mmap() -> Any:
    # Python's own mmap cannot be told an address.
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    return function
