"""What every archive of images has in common: members by name, refused ones recorded."""

import abc
import errno
from pathlib import Path
from typing import Generic, TypeVar

from svp.data.bucket import PARALLEL
from svp.data.failure import ScanFailure
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
from svp.data.remote_file import RemoteFile
from svp.data.scanner import SingleSource
from svp.errors import InputError
from svp.progress import Progress

Member = TypeVar("Member")


class ArchiveSource(SingleSource, Generic[Member]):
    """Images of one archive file, by name; subclasses know where a member's bytes are.

    Args:
        origin: The archive: a path, or an object in a bucket.

    Raises:
        InputError: If it cannot be read.
    """

    def __init__(self, origin: Path | RemoteFile) -> None:
        self._file: RandomFile | RemoteFile
        if isinstance(origin, Path):
            try:
                self._file = RandomFile(origin.resolve())
            except OSError as error:
                raise unreadable(origin, error) from error
        else:
            self._file, self.read_threads = origin, PARALLEL
        self._members: dict[str, Member] = {}
        self._failures: list[ScanFailure] = []

    @property
    def uri(self) -> str:
        """The absolute path of the archive, or its URL."""
        return str(self._file.path)

    def list_items(self, progress: Progress) -> Listing:
        """List the members, in the order of the archive."""
        del progress
        entries = [
            Entry(name, name, entry_key(name, *self._stamp_of(member)), self._file.changed_ns)
            for name, member in self._members.items()
        ]
        return Listing(with_folder_labels(entries), list(self._failures))

    @abc.abstractmethod
    def _stamp_of(self, member: Member) -> tuple[int, ...]:
        """Return numbers that change when the member does."""

    def _member(self, uri: str) -> Member:
        member = self._members.get(uri)
        if member is None:
            raise FileNotFoundError(errno.ENOENT, f"no such member of {self.uri}", uri)
        return member

    def _add(self, name: str, size: int, refusal: str | None, member: Member) -> None:
        """Take a member, or record why not.

        Args:
            name: As the archive says it, with slashes between folders.
            size: Of its bytes.
            refusal: Why this format cannot read it, or None.
            member: Where it is.
        """
        unsafe = unsafe_reason(name)
        name = plain(name)
        if unsafe is None and is_hidden(name):
            return
        if not is_image(name) and not is_archive(name):
            return
        inner = None if is_image(name) else "an archive inside the archive is not opened"
        reason, large = unsafe or inner or refusal, too_large(size)
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
            self._members[name] = member

    def _refuse_empty(self) -> None:
        if not self._members and not self._failures:
            raise InputError(
                f"An archive must hold images ({' '.join(IMAGE_SUFFIXES)}). Got none in "
                f"{self.uri}. Give another archive."
            )


def unreadable(path: Path | str, error: OSError) -> InputError:
    """Return the error of an archive that cannot be opened."""
    return InputError(
        f"An archive must be readable. Got {error.strerror or error} for {path}. Check the path."
    )
