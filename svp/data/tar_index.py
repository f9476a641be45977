"""Where the members of a .tar or .tar.gz lie, found in one pass that unpacks nothing."""

import tarfile
import zlib
from collections.abc import Callable
from typing import IO, Any, Final, cast

from svp.data.gzip_file import GzipFile
from svp.data.random_file import RandomFile
from svp.data.remote_file import RemoteFile
from svp.errors import InputError

_DRAIN: Final = 2**20
_GZIP_MARK: Final = b"\x1f\x8b"


def is_gzip(file: RandomFile) -> bool:
    """Return whether the file is compressed, by its content."""
    return file.read_at(0, 2) == _GZIP_MARK


def tar_bytes(file: RandomFile) -> RandomFile | GzipFile:
    """Return the uncompressed bytes of a tar whose members' places are known already.

    Raises:
        EOFError, zlib.error: If a compressed one is damaged.
    """
    if not is_gzip(file):
        return file
    inflated = GzipFile(file)
    while inflated.read(_DRAIN):
        pass
    return inflated


def index_tar(
    file: RandomFile | RemoteFile,
    add: Callable[[tarfile.TarInfo, IO[bytes] | None], None],
) -> RandomFile | RemoteFile | GzipFile:
    """Walk the members of a tar.

    Args:
        file: The archive; gzip is recognised by content, on disks.
        add: Called with each member, whose `offset_data` is its place in the bytes returned; of
            an object in a bucket also with the view that walks it, which may be read further.

    Returns:
        The uncompressed bytes, to be read at any offset.

    Raises:
        InputError: If the archive is damaged.
    """
    try:
        return _walk(file, add)
    except InputError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise InputError(
            f"A tar archive must be complete. Got {error} for {file.path}. "
            "Download or pack it again."
        ) from error


def _walk(
    file: RandomFile | RemoteFile, add: Callable[[tarfile.TarInfo, IO[bytes] | None], None]
) -> RandomFile | RemoteFile | GzipFile:
    # A compressed archive is streamed, so that one pass makes both the index and the resume
    # points; otherwise the members' bytes are skipped.
    data = GzipFile(file) if isinstance(file, RandomFile) and is_gzip(file) else file
    walked = cast("IO[bytes]", file.walk()) if isinstance(file, RemoteFile) else None
    end_of_data = 0
    with _opened(data, walked) as archive:
        while (info := archive.next()) is not None:
            cast("Any", archive).members = []  # it would keep about 1 KB a member
            end_of_data = max(end_of_data, info.offset_data + info.size * info.isreg())
            add(info, walked)
        stopped_at = archive.offset
    if isinstance(data, GzipFile):
        while data.read(_DRAIN):
            pass
    # tarfile ends silently at a header it cannot read; a whole archive ends in zeros, and some
    # writers leave even those out.
    if data.read_at(stopped_at, tarfile.BLOCKSIZE).strip(b"\0"):
        raise EOFError(f"a damaged header at byte {stopped_at}")
    if isinstance(data, GzipFile):
        whole = not end_of_data or bool(data.read_at(end_of_data - 1, 1))
    else:
        whole = end_of_data <= data.size
    if not whole:
        raise EOFError("an end inside a member")
    return data


def _opened(data: RandomFile | RemoteFile | GzipFile, walked: IO[bytes] | None) -> tarfile.TarFile:
    if isinstance(data, GzipFile):
        return tarfile.open(fileobj=cast("IO[bytes]", data), mode="r|")
    return tarfile.open(data.path, mode="r:", fileobj=walked)
