"""Which files a source means that names many: a brace pattern, a glob, or a folder.

`train-{000000..000009}.tar` counts with leading zeros, `{a,b}` lists, as shells and WebDataset
write them; `*`, `?`, `[…]` and `**` match what is there.
"""

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from svp.errors import InputError

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
MOST_FILES: Final = 100_000


def is_pattern(spec: str | Path) -> bool:
    """Return whether `spec` names files by a pattern; a file of that very name goes first."""
    text = str(spec)
    if not _BRACES.search(text) and not glob.has_magic(text):
        return False
    return not Path(text).expanduser().exists()


def pattern_root(spec: str | Path) -> Path:
    """Return the folder before the first part of `spec` that is a pattern."""
    parts = Path(spec).expanduser().parts
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part) and "{" not in part, parts)
    return Path(*list(fixed)[: len(parts) - 1])


def matching_files(spec: str | Path) -> list[Path]:
    """Return the files that a pattern names, in order; those of braces must all be there.

    Raises:
        InputError: If one that braces name is missing, or nothing matches.
    """
    found: list[Path] = []
    for name in expanded(str(Path(spec).expanduser())):
        if glob.has_magic(name):
            matched = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - ** and absolute
            found += [path for path in map(Path, matched) if path.is_file()]
        elif Path(name).is_file():
            found.append(Path(name))
        else:
            raise InputError(
                f"Every file that a pattern names must exist. Got {spec} and no {name}. "
                "Correct the range, or fetch the file."
            )
        if len(found) > MOST_FILES:
            raise InputError(
                f"A pattern must name at most {MOST_FILES:,} files. Got more with {spec}. "
                "Narrow it."
            )
    if not found:
        raise InputError(f"A pattern must match files. Got none for {spec}. Check the path.")
    return list(dict.fromkeys(found))


def expanded(text: str) -> Iterator[str]:
    """Yield the names that the braces of `text` make, in order; globs stay in them."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    for choice in _choices(match[1]):
        yield from expanded(text[: match.start()] + choice + text[match.end() :])


def _choices(inside: str) -> Iterator[str]:
    bounds = _RANGE.fullmatch(inside)
    if bounds is None:
        yield from inside.split(",")
        return
    first, last = bounds[1], bounds[2]
    for number in range(int(first), int(last) + 1):
        yield str(number).zfill(len(first))
