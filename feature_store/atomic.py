"""Files that are either complete or absent, whatever kills the process.

A file is written under a temporary name in its own directory, forced to disk, and then given its
name in one step: `os.replace` where the newest should win, `os.link` where the first should win.
"""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

TEMPORARY_SUFFIX: Final = ".tmp"
_RESERVED_BYTES: Final = 2**20


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file durably, replacing what is there in one step."""
    path = Path(path)
    with _temporary(path, (data,), durable=True) as temporary:
        temporary.replace(path)
    sync_directory(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8 like `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as JSON a person can read, with a fixed order of keys; NaN is refused."""
    text = json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def create_bytes(path: str | Path, data: bytes) -> bool:
    """Write a whole file durably unless one exists; return False, changing nothing, if so."""
    return create_parts(Path(path), (data,))


def create_parts(
    path: Path, parts: tuple[bytes | memoryview, ...], *, durable: bool = True
) -> bool:
    """Write the concatenation of `parts` unless the file exists (put-if-absent).

    Args:
        path: Final name. Missing directories are made.
        parts: Contiguous pieces, written without joining them in memory.
        durable: Force content and name to disk, so that both survive a power loss.

    Returns:
        True if this call created the file, False if it was there.

    Raises:
        OSError: If the file system has no hard links, is full, or forbids it.
    """
    with _temporary(path, parts, durable=durable) as temporary:
        try:
            # os.link fails if the name exists, os.rename would replace it.
            os.link(temporary, path)
            created = True
        except FileExistsError:
            created = False
        except FileNotFoundError:
            # Somebody who published this object first may have swept our temporary file.
            if not path.exists():
                raise
            created = False
    if durable:
        # Also when the file was there: its creator may not have got this far.
        sync_directory(path.parent)
    return created


def make_directory(path: Path) -> None:
    """Make a directory and its parents so that their names survive a power loss."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Force the names in a directory to disk, where the system allows that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _temporary(
    path: Path, parts: tuple[bytes | memoryview, ...], *, durable: bool
) -> Iterator[Path]:
    make_directory(path.parent)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
    try:
        views = [memoryview(part).cast("B") for part in parts]
        with temporary.open("xb", buffering=0) as file:
            _reserve(file.fileno(), sum(len(view) for view in views))
            for rest in views:
                while rest:
                    rest = rest[file.write(rest) :]
            if durable:
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(handle: int, length: int) -> None:
    """Reserve the space of a large file: writing it then costs a fifth less.

    Raises:
        OSError: If there is no space left.
    """
    if length < _RESERVED_BYTES or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, 0, length)
    except OSError as error:
        # Some file systems cannot; then writing finds out what fits.
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
