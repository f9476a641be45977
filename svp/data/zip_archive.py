"""Images read from a .zip where it lies.

Members are read by offset with one system call, so threads never wait for each other, and every
member's CRC-32 is checked. Stored and deflated members are read; what else a zip may hold
(encryption, rarer compressions, links, archives) is recorded as refused.
"""

import dataclasses
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Final, cast

from svp.data.archive import ArchiveSource, unreadable
from svp.data.failure import DecodeError
from svp.data.random_file import RandomFile
from svp.data.remote_file import RemoteFile
from svp.errors import InputError

_LOCAL_HEADER: Final = struct.Struct("<4s5H3L2H")
_ENCRYPTED: Final = 0x2041  # traditional, strong, and masked headers
_SLACK: Final = 128  # local headers may carry longer extra fields than the central directory


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    header: int
    header_size: int
    packed: int
    size: int
    deflated: bool
    crc: int


class ZipSource(ArchiveSource[_Member]):
    """The images of a zip archive.

    Args:
        origin: The archive, on a disk or in a bucket.

    Raises:
        InputError: If it is missing, damaged, empty of images, or names a member twice.
    """

    def __init__(self, origin: Path | RemoteFile) -> None:
        super().__init__(origin)
        file = self._file
        opened = file.path if isinstance(file, RandomFile) else cast("IO[bytes]", file.walk())
        try:
            with zipfile.ZipFile(opened) as archive:
                infos = archive.infolist()
        except InputError:
            raise
        except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, NotImplementedError) as e:
            raise InputError(
                f"A zip archive must be complete. Got {e} for {file.path}. "
                "Download or pack it again."
            ) from e
        except OSError as error:
            raise unreadable(file.path, error) from error
        for info in infos:
            if not info.is_dir():
                # Some packers on Windows write backslashes, which the format forbids.
                name = info.filename.replace("\\", "/")
                self._add(name, info.file_size, _refusal(info), _member(info))
        self._refuse_empty()

    def read(self, uri: str) -> bytes:
        """Return the bytes of the member `uri`, checked against its CRC-32."""
        member = self._member(uri)
        data = _unpack(member, self._packed(member))
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise DecodeError("corrupt", "the archive member fails its checksum")
        return data

    def _packed(self, member: _Member) -> bytes:
        guess = member.header_size + _SLACK + member.packed
        block = self._file.read_at(member.header, guess)
        if len(block) < _LOCAL_HEADER.size or block[:4] != b"PK\3\4":
            raise DecodeError("corrupt", "the archive is damaged at this member")
        fields = _LOCAL_HEADER.unpack_from(block)
        start: int = _LOCAL_HEADER.size + fields[9] + fields[10]
        packed = block[start : start + member.packed]
        if len(packed) < member.packed:
            packed = self._file.read_at(member.header + start, member.packed)
        return packed

    def _stamp_of(self, member: _Member) -> tuple[int, ...]:
        return (*self._file.stamp[:2], member.size, member.crc)


def _member(info: zipfile.ZipInfo) -> _Member:
    return _Member(
        info.header_offset,
        _LOCAL_HEADER.size + len(info.orig_filename.encode()) + len(info.extra),
        info.compress_size,
        info.file_size,
        info.compress_type == zipfile.ZIP_DEFLATED,
        info.CRC,
    )


def _refusal(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & _ENCRYPTED:
        return "it is encrypted"
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "it is a link or a special file"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"its compression (method {info.compress_type}) is not read"
    return None


def _unpack(member: _Member, packed: bytes) -> bytes:
    if not member.deflated:
        return packed
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than promised shows a bomb without inflating it.
        return decoder.decompress(packed, member.size + 1)
    except zlib.error as error:
        raise DecodeError("corrupt", "the archive member cannot be inflated") from error
