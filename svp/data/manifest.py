"""A table that names images: CSV or Parquet with the columns id, path, label, split, group."""

import os
from pathlib import Path

from svp.data.item_name import plain, unsafe_reason
from svp.data.listing import Listing, stat_entries
from svp.data.manifest_table import Columns, with_manifest_labels
from svp.data.scanner import SingleSource
from svp.errors import InputError
from svp.progress import Progress


class ManifestSource(SingleSource):
    """The images that a manifest names.

    Args:
        path: The manifest.
        columns: What it says, by `read_manifest`.
        root: What its paths are relative to; default the manifest's folder. Nothing outside it
            is ever read.

    Raises:
        InputError: If it names a path outside `root`, or `root` is no folder.
    """

    def __init__(self, path: Path, columns: Columns, root: Path | None = None) -> None:
        if root is not None and not root.is_dir():
            raise InputError(f"The root of a manifest must be a folder. Got {root}. Check it.")
        self._path = path.resolve()
        self._root = (root if root is not None else path.parent).resolve()
        self._inside: dict[str, bool] = {}
        self._columns = columns
        self._check()

    @property
    def uri(self) -> str:
        """The absolute path of the manifest."""
        return str(self._path)

    def list_items(self, progress: Progress) -> Listing:
        """List the rows whose files exist, in the order of the manifest."""
        names = [plain(name) for name in self._columns["path"]]
        ids = self._columns["id"]
        with progress.task("listing", len(names), unit="files") as task:
            for name in names:
                self._refuse_escape(name)
            entries, failures = stat_entries(self._root, list(zip(ids, names, strict=True)))
            task.advance(len(names))
        return Listing(with_manifest_labels(entries, self._columns), failures)

    def read(self, uri: str) -> bytes:
        """Return the bytes of the file at `uri`, relative to the root."""
        reason = unsafe_reason(uri)
        if reason is not None:
            raise self._outside(uri, reason)
        self._refuse_escape(uri)
        with open(f"{self._root}/{uri}", "rb", buffering=0) as file:  # noqa: PTH123 - 3x faster
            return file.read()

    def _check(self) -> None:
        for path in self._columns["path"]:
            reason = unsafe_reason(path)
            if reason is not None:
                raise self._outside(path, reason)

    def _refuse_escape(self, name: str) -> None:
        """Refuse a path that a symbolic link leads outside the root.

        Folders are resolved once each, so that a million files cost a million `lstat` calls.
        """
        folder, _, _ = name.rpartition("/")
        inside = self._inside.get(folder)
        if inside is None:
            inside = self._inside[folder] = self._contains(f"{self._root}/{folder}")
        full = f"{self._root}/{name}"
        if not inside or (os.path.islink(full) and not self._contains(full)):  # noqa: PTH114
            raise self._outside(name, "a symbolic link leads outside")

    def _contains(self, path: str) -> bool:
        return Path(path).resolve().is_relative_to(self._root)

    def _outside(self, name: str, reason: str) -> InputError:
        return InputError(
            f"The paths of a manifest must lie inside {self._root}. Got {name!r}: {reason}. "
            "Make it relative, or give the folder that holds all images as the root."
        )
