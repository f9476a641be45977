"""What a name inside a source means: is it an image, is it safe, what label and split it says."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Final

IMAGE_SUFFIXES: Final = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
ARCHIVE_SUFFIXES: Final = (".zip", ".tar", ".tar.gz", ".tgz")
# `val`, `valid` and `validation` are one split.
_SPLITS: Final = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
SPLITS: Final = ("train", "val", "test")
_DRIVE: Final = re.compile(r"[A-Za-z]:")


def is_image(name: str) -> bool:
    """Return whether `name` ends like an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_archive(name: str) -> bool:
    """Return whether `name` ends like an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Return whether a component of `name` is hidden or made by an operating system."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def unsafe_reason(name: str) -> str | None:
    """Return why `name` cannot be a path inside a source, or None when it can.

    A backslash counts as a separator, because ids may become file names on any system later.
    """
    if not name or "\0" in name:
        return "its name is empty or holds a zero byte"
    if name[0] in "/\\" or _DRIVE.match(name):
        return "its name is an absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return 'its name leaves the source by ".."'
    if not is_text(name):
        return "its name is not valid UTF-8"
    return None


def is_text(name: str) -> bool:
    """Return whether `name` can be written as UTF-8; undecodable file names cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str) -> str:
    """Return `name` as text that can be written anywhere."""
    return name.encode(errors="backslashreplace").decode()


def plain(name: str) -> str:
    """Return `name` without `.` components and doubled slashes."""
    if "//" not in name and "./" not in name:
        return name
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def canonical_split(name: str) -> str:
    """Return train, val or test for their usual spellings, and any other name unchanged."""
    return _SPLITS.get(name.lower(), name)


@dataclasses.dataclass(frozen=True, slots=True)
class FolderNaming:
    """How the folders of one source say label and split.

    Attributes:
        skipped: Leading folders that wrap everything and say nothing, as archives often have.
        splits: Folders behind them that are splits rather than classes.
    """

    skipped: int
    splits: frozenset[str]

    @classmethod
    def of(cls, names: Sequence[str]) -> "FolderNaming":
        """Recognise the naming of `names`.

        A folder called train, val, valid or test is a split, except where it can only be a
        class: its images lie directly in it, beside folders with other names (the class `train`
        of a vehicle data set).
        """
        skipped = _wrappers(names)
        tops: set[str] = set()
        deep: set[str] = set()
        for name in names:
            folders = name.split("/")[skipped:-1]
            if folders:
                tops.add(folders[0])
            if len(folders) > 1:
                deep.add(folders[0])
        candidates = {top for top in tops if top.lower() in _SPLITS}
        return cls(skipped, frozenset(candidates if candidates == tops else candidates & deep))

    def label_and_split(self, name: str) -> tuple[str | None, str | None]:
        """Return label and split of the item `name`, each None where its folders say nothing."""
        folders = name.split("/")[self.skipped : -1]
        if not folders:
            return None, None
        if folders[0] in self.splits:
            return (folders[1] if len(folders) > 1 else None), canonical_split(folders[0])
        return folders[0], None


def _wrappers(names: Sequence[str]) -> int:
    """Return how many leading folders every name shares before its class or split folder."""
    if not names:
        return 0
    # What the first and the last in order share, all share.
    first, last = (name.split("/")[:-1] for name in (min(names), max(names)))
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    shared = [folder for folder, _ in pairs]
    depth = len(shared)
    if any(name.count("/") == depth for name in names):
        depth -= 1  # images lie directly in the innermost: it is their class
    splits = (at for at, folder in enumerate(shared) if folder.lower() in _SPLITS)
    return max(0, min(depth, next(splits, depth)))


def examples(names: Sequence[str], limit: int = 3) -> str:
    """Return the first `limit` names as text, with a count of the rest."""
    text = ", ".join(shown(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit:,} more"
