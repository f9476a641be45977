"""Images read from a .tar or .tar.gz where it lies, by an index of member offsets."""

import dataclasses
import tarfile
from pathlib import Path
from typing import IO

from svp.data.archive import ArchiveSource
from svp.data.failure import DecodeError
from svp.data.random_file import RandomFile
from svp.data.remote_file import RemoteFile
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
        origin: The archive, on a disk or, not compressed, in a bucket.

    Raises:
        InputError: If it is missing, damaged, empty of images, or names a member twice.
    """

    def __init__(self, origin: Path | RemoteFile) -> None:
        super().__init__(origin)
        self._origin = self._file.path if isinstance(self._file, RandomFile) else self._file
        self._bytes = index_tar(self._file, self._take)
        self._refuse_empty()

    def __reduce__(self) -> tuple[type["TarSource"], tuple[Path | RemoteFile]]:
        return type(self), (self._origin,)

    def read(self, uri: str) -> bytes:
        """Return the bytes of the member `uri`."""
        member = self._member(uri)
        data = self._bytes.read_at(member.offset, member.size)
        if len(data) < member.size:
            raise DecodeError("corrupt", "the archive ends inside this member")
        return data

    def _stamp_of(self, member: _Member) -> tuple[int, ...]:
        return (*self._file.stamp, member.offset, member.size)

    def _take(self, info: tarfile.TarInfo, walked: IO[bytes] | None) -> None:
        del walked
        if not info.isdir():
            self._add(info.name, info.size, refusal(info), _Member(info.offset_data, info.size))


def refusal(info: tarfile.TarInfo) -> str | None:
    """Return why a member has no bytes of its own, or None when it has."""
    if not info.isreg() or info.issparse():
        return "it is a link or a special file"
    return None
