"""Where bytes live: the only seam between the store and a disk or a bucket.

Every object is written once, whole, and never changed. That needs little of a storage: reading an
object or a range of it, creating an object unless it exists, listing one level, deleting. A bucket
offers the same (conditional PUT), so an object store is another class here and nothing else.
"""

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from feature_store import atomic
from feature_store.errors import StoreInputError

OBJECT_SCHEMES: Final = ("s3", "gs", "az")
_PROBE: Final = ".probe-"
_FORBIDDEN: Final = (errno.EACCES, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name directly under a prefix."""

    name: str
    size: int | None
    """Bytes of an object, None for a prefix that holds further objects."""


@dataclass(frozen=True, slots=True)
class Found:
    """One object of a walk."""

    key: str
    size: int
    modified_s: float
    """When it was written, in seconds since 1970 by the storage's clock."""
    unfinished: bool
    """Whether an interrupted writer left it: no object, and `list` does not show it."""


class Storage(Protocol):
    """Immutable objects under keys such as "pools/ab12.parquet"."""

    url: str
    parallel: int
    """Requests at a time that hide the way to the storage; 1 where there is no way."""
    waits: bool
    """Whether creating an object leaves the processor idle, for a disk or a network."""

    def get(self, key: str) -> bytes:
        """Return a whole object; FileNotFoundError if there is none."""

    def get_range(self, key: str, start: int, length: int) -> bytes | memoryview:
        """Return `length` bytes from `start` on, fewer at the end of the object."""

    def get_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]]
    ) -> Sequence[bytes | memoryview]:
        """Return several ranges (start, length) of one object."""

    def create(self, key: str, *parts: bytes | memoryview) -> bool:
        """Create the object from the joined parts unless it exists; return whether it did."""

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None if there is none."""

    def list(self, prefix: str) -> list[Entry]:
        """Return what lies directly under a prefix, by name; unfinished writes are left out."""

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens if there is none."""

    def tidy(self, prefix: str) -> None:
        """Remove what interrupted writers left of objects whose key starts with `prefix`.

        What a living writer has not finished is lost, too: only for objects that are published.
        """

    def walk(self, prefix: str) -> Iterator[Found]:
        """Yield all that lies below a prefix ("" for everything) at any depth, in any order."""

    def local_path(self, key: str) -> Path | None:
        """Return the file that holds the object, None where there are no files."""


class LocalStorage:
    """A directory. Objects are files, put-if-absent is a hard link, all forced to disk.

    Args:
        root: The directory; made on the first write.
        durable: Force files to disk. Without it a killed process loses nothing, a power loss may.
    """

    parallel = 1

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self._root = root
        self._durable = durable
        self.waits = durable
        self._probed = False
        self._probe_lock = threading.Lock()
        self.url = str(root)

    def get(self, key: str) -> bytes:
        """Return a whole file."""
        return self._file(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of a file."""
        with self._file(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return parts of a file."""
        return [self.get_range(key, start, length) for start, length in ranges]

    def create(self, key: str, *parts: bytes | memoryview) -> bool:
        """Create a file unless it exists; the first write probes the file system."""
        if not self._probed:
            with self._probe_lock:
                if not self._probed:
                    self._probe()
                    self._probed = True
        return atomic.create_parts(self._file(key), parts, durable=self._durable)

    def size(self, key: str) -> int | None:
        """Return the bytes of a file."""
        try:
            return self._file(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, prefix: str) -> list[Entry]:
        """Return the names in a directory, hidden and temporary ones left out."""
        try:
            with os.scandir(self._file(prefix)) as found:
                entries = [
                    Entry(entry.name, None if entry.is_dir() else entry.stat().st_size)
                    for entry in found
                    if not entry.name.startswith(".")
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(entries, key=lambda entry: entry.name)

    def delete(self, key: str) -> None:
        """Delete a file."""
        self._file(key).unlink(missing_ok=True)

    def tidy(self, prefix: str) -> None:
        """Remove temporary files of killed writers from one directory."""
        directory, _, start = prefix.rpartition("/")
        for path in self._file(directory).glob(f".{start}*{atomic.TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)

    def walk(self, prefix: str) -> Iterator[Found]:
        """Yield the files below a directory, unfinished ones included."""
        for directory, _, names in os.walk(self._file(prefix)):
            for name in names:
                path = Path(directory, name)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # deleted or given its name meanwhile
                unfinished = name.startswith(".") and (
                    name.endswith(atomic.TEMPORARY_SUFFIX) or name.startswith(_PROBE)
                )
                key = path.relative_to(self._root).as_posix()
                yield Found(key, status.st_size, status.st_mtime, unfinished)

    def local_path(self, key: str) -> Path | None:
        """Return the file of the object."""
        return self._file(key)

    def check_place(self) -> None:
        """Refuse a directory that is a file, or in which nothing can be made; make nothing.

        Raises:
            StoreInputError: It is one of these.
        """
        there = self._root
        while not os.path.lexists(there) and there != there.parent:
            there = there.parent
        if not there.is_dir():
            where = ", a file" if there == self._root else f", below the file {there}"
            raise StoreInputError(
                f"A store must be a folder, or become one. Got {self._root}{where}. "
                "Choose another path."
            )
        if not os.access(there, os.W_OK | os.X_OK):
            raise _not_writable(self._root, f"no permission to write {there}")

    def _file(self, key: str) -> Path:
        return self._root / key

    def _probe(self) -> None:
        """Check that the second of two creations is refused.

        Some mounts (FUSE, SMB, exotic object-store gateways) lack hard links; without them two
        writers could replace each other's published chunks.
        """
        path = self._root / f"{_PROBE}{uuid.uuid4().hex[:12]}"
        try:
            first = atomic.create_parts(path, (b"1",), durable=False)
            second = atomic.create_parts(path, (b"2",), durable=False)
            kept = path.read_bytes()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # as with any other write, space may be freed
            self.check_place()
            if error.errno in _FORBIDDEN:
                raise _not_writable(self._root, error.strerror or str(error)) from error
            raise StoreInputError(
                "A store must be on storage that has hard links. "
                f"Got {self._root}, which says: {error.strerror or error}. "
                "Put the store on a local or NFS file system."
            ) from error
        finally:
            with contextlib.suppress(OSError):  # where nothing can be made nothing is left
                path.unlink(missing_ok=True)
        if (first, second, kept) != (True, False, b"1"):
            raise StoreInputError(
                "A store must be on storage that refuses to create a file twice. "
                f"Got {self._root}, which does not. Put the store on a local or NFS file system."
            )


def _not_writable(root: Path, reason: str) -> StoreInputError:
    return StoreInputError(
        f"A store must be a folder that can be written. Got {root}: {reason}. "
        "Correct the permissions or choose another path."
    )


def open_storage(url: str | Path) -> Storage:
    """Return the storage behind a path or URL.

    Raises:
        StoreInputError: If no storage for such URLs exists, or its package is not installed.
    """
    text = str(url)
    scheme, separator, _ = text.partition("://")
    if separator and scheme in OBJECT_SCHEMES:
        # Imported here: most stores are directories, and the module above has to know the seam.
        from feature_store.object_storage import ObjectStorage

        return ObjectStorage(text)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif separator:
        raise StoreInputError(
            "A store must be a local path or a file://, s3://, gs:// or az:// URL. "
            f"Got {text!r}. Mount or copy the store to a local directory first."
        )
    if not text:
        raise StoreInputError("A store must be a path. Got an empty text. Name a directory.")
    return LocalStorage(Path(text).expanduser().absolute())
