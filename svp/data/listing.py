"""The items of one source before their bytes are read."""

import concurrent.futures
import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from svp.data.failure import MAX_BYTES, ScanFailure, failure_of
from svp.data.item_name import FolderNaming

# Asking a network file system for one file's size takes long; threads overlap the waiting.
_STAT_BATCH: Final = 1024
_STAT_THREADS: Final = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One item as its source lists it.

    Attributes:
        id: Stable name.
        uri: What the source's `read` takes.
        key: 16 bytes that change when the file does; the digest cache's key.
        changed_ns: When the file changed last, in nanoseconds since the epoch.
        label: What the folder or manifest says.
        split: The same.
        group: The same.
    """

    id: str
    uri: str
    key: bytes
    changed_ns: int
    label: str | None = None
    split: str | None = None
    group: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds, in the order in which reading is cheapest."""

    entries: list[Entry]
    failures: list[ScanFailure]

    def ids(self) -> Iterator[str]:
        """Yield the ids of entries and failures."""
        yield from (entry.id for entry in self.entries)
        yield from (failure.id for failure in self.failures)


def entry_key(*parts: str | int) -> bytes:
    """Return the cache key of a file described by `parts`: its name, sizes and times."""
    text = "\0".join(map(str, parts))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def too_large(size: int) -> str | None:
    """Return why a file of `size` bytes is left out, or None."""
    if size <= MAX_BYTES:
        return None
    return f"{size:,} bytes, more than the limit of {MAX_BYTES:,}"


def with_folder_labels(entries: Iterable[Entry]) -> list[Entry]:
    """Return `entries` with the labels and splits that the folders in their ids say."""
    listed = list(entries)
    naming = FolderNaming.of([entry.id for entry in listed])
    labelled = []
    for entry in listed:
        label, split = naming.label_and_split(entry.id)
        labelled.append(
            Entry(entry.id, entry.uri, entry.key, entry.changed_ns, label, split, entry.group)
        )
    return labelled


def stat_entries(
    root: Path, items: Sequence[tuple[str, str]]
) -> tuple[list[Entry], list[ScanFailure]]:
    """Ask the file system for size and times of files.

    Args:
        root: What the paths are relative to.
        items: Pairs of id and relative path.

    Returns:
        Entries without labels and failures, each in the order of `items`.
    """

    def ask(batch: Sequence[tuple[str, str]]) -> list[Entry | ScanFailure]:
        return [_stat_entry(root, item_id, name) for item_id, name in batch]

    batches = [items[start : start + _STAT_BATCH] for start in range(0, len(items), _STAT_BATCH)]
    entries: list[Entry] = []
    failures: list[ScanFailure] = []
    with concurrent.futures.ThreadPoolExecutor(_STAT_THREADS) as executor:
        for results in executor.map(ask, batches):
            for result in results:
                if isinstance(result, Entry):
                    entries.append(result)
                else:
                    failures.append(result)
    return entries, failures


def _stat_entry(root: Path, item_id: str, name: str) -> Entry | ScanFailure:
    try:
        status = os.stat(f"{root}/{name}")  # noqa: PTH116 - no path object a file
    except OSError as error:
        kind, reason = failure_of(error)
        return ScanFailure(item_id, reason, kind)
    if not stat.S_ISREG(status.st_mode):
        return ScanFailure(item_id, "not a regular file", "refused")
    reason_large = too_large(status.st_size)
    if reason_large is not None:
        return ScanFailure(item_id, reason_large, "too_large")
    # ctime too: a copy that keeps the time stamps may hold other bytes of the same length.
    key = entry_key(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return Entry(item_id, name, key, max(status.st_mtime_ns, status.st_ctime_ns))
