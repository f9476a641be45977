"""Images read from a .tar or .tar.gz where it lies, by an index of member offsets."""

import dataclasses
import errno
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any, Final, cast

from svp.data.failure import DecodeError, ScanFailure
from svp.data.gzip_file import GzipFile
from svp.data.item_name import (
    IMAGE_SUFFIXES,
    is_archive,
    is_hidden,
    is_image,
    plain,
    shown,
    unsafe_reason,
)
from svp.data.listing import Entry, Listing, entry_key, too_large, with_folder_labels
from svp.data.random_file import RandomFile
from svp.data.scanner import SingleSource
from svp.errors import InputError
from svp.progress import Progress

_DRAIN: Final = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int


class TarSource(SingleSource):
    """The images of a tar archive.

    A compressed archive is inflated once to index it, and reads far apart inflate a few MiB
    each; unpack it, or repack it without compression, when that matters.

    Args:
        path: The archive; gzip is recognised by content.

    Raises:
        InputError: If it is missing, damaged, empty of images, or names a member twice.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = RandomFile(path.resolve())
            status = path.stat()
        except OSError as error:
            raise InputError(
                f"An archive must be readable. Got {error.strerror or error} for {path}. "
                "Check the path."
            ) from error
        self._stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self._changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        self._members: dict[str, _Member] = {}
        self._failures: list[ScanFailure] = []
        compressed = self._file.read_at(0, 2) == b"\x1f\x8b"
        self._bytes = GzipFile(self._file) if compressed else self._file
        try:
            self._index()
        except InputError:
            raise
        except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
            raise InputError(
                f"A tar archive must be complete. Got {error} for {path}. "
                "Download or pack it again."
            ) from error
        if not self._members and not self._failures:
            raise InputError(
                f"An archive must hold images ({' '.join(IMAGE_SUFFIXES)}). Got none in {path}. "
                "Give another archive."
            )

    def __reduce__(self) -> tuple[type["TarSource"], tuple[Path]]:
        return type(self), (self._file.path,)

    @property
    def uri(self) -> str:
        """The absolute path of the archive."""
        return str(self._file.path)

    def list_items(self, progress: Progress) -> Listing:
        """List the members, in the order of the archive."""
        del progress
        entries = [
            Entry(
                name,
                name,
                entry_key(name, *self._stamp, member.offset, member.size),
                self._changed_ns,
            )
            for name, member in self._members.items()
        ]
        return Listing(with_folder_labels(entries), list(self._failures))

    def read(self, uri: str) -> bytes:
        """Return the bytes of the member `uri`."""
        member = self._members.get(uri)
        if member is None:
            raise FileNotFoundError(errno.ENOENT, f"no such member of {self.uri}", uri)
        data = self._bytes.read_at(member.offset, member.size)
        if len(data) < member.size:
            raise DecodeError("corrupt", "the archive ends inside this member")
        return data

    def _index(self) -> None:
        # A compressed archive is streamed, so that one pass makes both the index and the
        # resume points; otherwise the members' bytes are skipped.
        end_of_data = 0
        with (
            tarfile.open(fileobj=cast("IO[bytes]", self._bytes), mode="r|")
            if isinstance(self._bytes, GzipFile)
            else tarfile.open(self._file.path, mode="r:")
        ) as archive:
            while (info := archive.next()) is not None:
                cast("Any", archive).members = []  # it would keep about 1 KB a member
                end_of_data = max(end_of_data, info.offset_data + info.size * info.isreg())
                self._add(info)
            stopped_at = archive.offset
        if isinstance(self._bytes, GzipFile):
            while self._bytes.read(_DRAIN):
                pass
        # tarfile ends silently at a header it cannot read; a whole archive ends in zeros, and
        # some writers leave even those out.
        if self._bytes.read_at(stopped_at, tarfile.BLOCKSIZE).strip(b"\0"):
            raise EOFError(f"a damaged header at byte {stopped_at}")
        if end_of_data and not self._bytes.read_at(end_of_data - 1, 1):
            raise EOFError("an end inside a member")

    def _add(self, info: tarfile.TarInfo) -> None:
        if info.isdir():
            return
        name = plain(info.name)
        unsafe = unsafe_reason(info.name)
        if unsafe is None and is_hidden(name):
            return
        if not is_image(name) and not is_archive(name):
            return
        reason = unsafe or _refusal(name, info)
        large = too_large(info.size)
        if reason is not None:
            self._failures.append(ScanFailure(shown(name), reason, "refused"))
        elif large is not None:
            self._failures.append(ScanFailure(name, large, "too_large"))
        elif name in self._members:
            raise InputError(
                f"An archive must name each member once. Got {name!r} twice in {self.uri}. "
                "Pack it again."
            )
        else:
            self._members[name] = _Member(info.offset_data, info.size)


def _refusal(name: str, info: tarfile.TarInfo) -> str | None:
    if not is_image(name):
        return "an archive inside the archive is not opened"
    if not info.isreg() or info.issparse():
        return "it is a link or a special file"
    return None
