"""Images read from a .tar or .tar.gz where it lies, by an index of member offsets."""

import dataclasses
import tarfile
from pathlib import Path

from svp.data.archive import ArchiveSource
from svp.data.failure import DecodeError
from svp.data.tar_index import index_tar


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int


class TarSource(ArchiveSource[_Member]):
    """The images of a tar archive.

    A compressed archive is inflated once to index it, and reads far apart inflate a few MiB
    each; unpack it, or repack it without compression, when that matters.

    Args:
        path: The archive; gzip is recognised by content.

    Raises:
        InputError: If it is missing, damaged, empty of images, or names a member twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        status = self._file.path.stat()
        self._stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self._changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        self._bytes = index_tar(self._file, self._take)
        self._refuse_empty()

    def __reduce__(self) -> tuple[type["TarSource"], tuple[Path]]:
        return type(self), (self._file.path,)

    def read(self, uri: str) -> bytes:
        """Return the bytes of the member `uri`."""
        member = self._member(uri)
        data = self._bytes.read_at(member.offset, member.size)
        if len(data) < member.size:
            raise DecodeError("corrupt", "the archive ends inside this member")
        return data

    def _stamp_of(self, member: _Member) -> tuple[int, ...]:
        return (*self._stamp, member.offset, member.size)

    def _take(self, info: tarfile.TarInfo) -> None:
        if not info.isdir():
            self._add(info.name, info.size, refusal(info), _Member(info.offset_data, info.size))


def refusal(info: tarfile.TarInfo) -> str | None:
    """Return why a member has no bytes of its own, or None when it has."""
    if not info.isreg() or info.issparse():
        return "it is a link or a special file"
    return None
