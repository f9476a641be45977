"""Memory that a computation has freed, given back to the system while it runs.

A C library keeps freed blocks to hand them out again. Older glibc, such as 2.36, often cannot (its
bug 30723): torch asks for blocks that begin at a multiple of 64 bytes, the rest in front of one
goes to a cache of small pieces where it is not merged again, and the block freed behind it is then
a few bytes too short for the next one of the same size. So a loop that holds one block at a time
can grow by all blocks it ever held.

Making the library map every block by itself also ends that, but every block is then paid for with
fresh pages. Here pages are given back only when the process has grown.
"""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_STEP_BYTES: Final = 32 * 2**20
_PAUSE_S: Final = 0.01
_STATM: Final = Path("/proc/self/statm")


@contextlib.contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Let the process hold little more than is in use while the body runs.

    A thread looks at the resident memory every few milliseconds and has freed pages returned when
    it has grown by `_STEP_BYTES`. Only with glibc on Linux; elsewhere nothing happens.
    """
    trim = _trim()
    if trim is None:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(trim, done), name="svp-heap", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux" or not _STATM.exists():
        return None
    # Other C libraries do not have it.
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


def _watch(trim: Callable[[int], int], done: threading.Event) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    with _STATM.open("rb", buffering=0) as stream:

        def private_bytes() -> int:
            """Resident, without mapped files."""
            fields = os.pread(stream.fileno(), 128, 0).split()
            return (int(fields[1]) - int(fields[2])) * page

        trim(0)
        low = private_bytes()
        while not done.wait(_PAUSE_S):
            held = private_bytes()
            if held - low >= _STEP_BYTES:
                trim(0)
                low = private_bytes()
            else:
                low = min(low, held)
