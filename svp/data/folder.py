"""A folder of images; its class folders are the labels."""

import os
from collections.abc import Iterator
from pathlib import Path

from svp.data.failure import ScanFailure, failure_of
from svp.data.item_name import (
    IMAGE_SUFFIXES,
    is_archive,
    is_image,
    is_text,
    shown,
    unsafe_reason,
)
from svp.data.listing import Listing, stat_entries, with_folder_labels
from svp.data.scanner import SingleSource
from svp.errors import InputError
from svp.progress import Progress


class FolderSource(SingleSource):
    """The images below a folder, at any depth; hidden files are left out, links are followed.

    Args:
        path: The folder.

    Raises:
        InputError: If it is missing or holds no image.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise InputError(
                f"An image folder must exist. Got {path}. Check the path, or mount the disk."
            )
        self._root = path.resolve()
        if next(walk_images(self._root, []), None) is None:
            raise InputError(
                f"An image folder must hold images ({' '.join(IMAGE_SUFFIXES)}). "
                f"Got none in {path}. {_hint(path)}"
            )

    @property
    def uri(self) -> str:
        """The absolute path."""
        return str(self._root)

    def list_items(self, progress: Progress) -> Listing:
        """List the images, folder by folder."""
        failures: list[ScanFailure] = []
        names: list[str] = []
        with progress.task("listing", None, unit="files") as task:
            for name in walk_images(self._root, failures):
                if is_text(name):
                    names.append(name)
                else:
                    failures.append(
                        ScanFailure(shown(name), "its name is not valid UTF-8", "refused")
                    )
                task.advance()
        entries, unreadable = stat_entries(self._root, [(name, name) for name in names])
        return Listing(with_folder_labels(entries), failures + unreadable)

    def read(self, uri: str) -> bytes:
        """Return the bytes of the file at the relative path `uri`."""
        reason = unsafe_reason(uri)
        if reason is not None:
            raise InputError(
                f"An item of {self.uri} must lie inside it. Got {uri!r}: {reason}. "
                "Scan the source again."
            )
        with open(f"{self._root}/{uri}", "rb", buffering=0) as file:  # noqa: PTH123 - 3x faster
            return file.read()


def _hint(path: Path) -> str:
    archives = sorted(entry.name for entry in path.iterdir() if is_archive(entry.name))
    if archives:
        return f"It holds archives: give {archives[0]} itself as the source."
    return "Convert the files, or give another folder."


def walk_images(root: Path, failures: list[ScanFailure]) -> Iterator[str]:
    """Yield the relative POSIX paths of the images below `root`, sorted within each folder.

    Args:
        root: Where to begin.
        failures: Receives folders that cannot be listed and links to nothing.
    """
    # Each step carries the folders above it, so that a link back to one of them ends there.
    first = root.stat()
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [
        ("", frozenset({(first.st_dev, first.st_ino)}))
    ]
    while pending:
        prefix, above = pending.pop()
        try:
            with os.scandir(f"{root}/{prefix}") as listed:
                found = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            kind, reason = failure_of(error)
            failures.append(ScanFailure(shown(prefix), f"folder not listed: {reason}", kind))
            continue
        folders = []
        for entry in found:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            name = prefix + entry.name
            try:
                if entry.is_dir():
                    place = _place(entry)
                    if place not in above:
                        folders.append((f"{name}/", above | {place}))
                elif is_image(entry.name):
                    if entry.is_file():
                        yield name
                    elif entry.is_symlink():
                        failures.append(ScanFailure(shown(name), "a link to nothing", "missing"))
            except OSError as error:
                kind, reason = failure_of(error)
                failures.append(ScanFailure(shown(name), reason, kind))
        pending += reversed(folders)


def _place(entry: os.DirEntry[str]) -> tuple[int, int]:
    status = entry.stat()
    return status.st_dev, status.st_ino
