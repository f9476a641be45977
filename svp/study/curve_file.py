"""Learning curves of any tool, from a CSV file: `strategy,seed,num_labeled,test_acc` and more.

Every further column groups the runs, such as `dataset` or `trainer`, unless it is a measurement:
one of the names that studies use for numbers, or a number that changes from round to round.
"""

import csv
import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from svp.errors import InputError

STRATEGY: Final = "strategy"
SEED: Final = "seed"
SIZE: Final = "num_labeled"
METRIC: Final = "test_acc"

# Parts of names of numbers that are measured in a round, with `_` between the parts.
_MEASURED: Final = re.compile(
    r"(^|_)(acc|accuracy|f1|loss|auc|auroc|ece|nll|precision|recall|error|imbalance|entropy|unseen"
    r"|runtime|time|s|sec|secs|seconds|created|date|round|epoch|iteration|step|n)(_|$)",
    re.IGNORECASE,
)
# So much of a column must stay the same while labels are added for it to tell runs apart.
_STEADY: Final = 0.9

# Values by seed, then by number of labels.
Runs = Mapping[int | str, Mapping[int, float]]
Row = Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurveGroup:
    """Runs that are compared with each other.

    Attributes:
        key: Values of the group columns, as they are in the file.
        runs: Per strategy, in the order of the file, per seed, per number of labels: the metric.
    """

    key: tuple[str, ...]
    runs: Mapping[str, Runs]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurveFile:
    """Learning curves as they were read.

    Attributes:
        groups: In the order of the file.
        columns: Columns that group the runs.
        ignored: Further columns that do not.
        metric: The column that was read.
        scale: 1 if the metric is a share, 100 if it is in percent.
        blank: Rows without a value (empty or NaN), left out.
        repeated: Rows that say what an earlier one says, left out.
    """

    groups: tuple[CurveGroup, ...]
    columns: tuple[str, ...]
    ignored: tuple[str, ...]
    metric: str
    scale: float
    blank: int
    repeated: int


def read_curves(path: Path, *, metric: str = METRIC, by: Sequence[str] | None = None) -> CurveFile:
    """Read learning curves.

    Args:
        path: A CSV file with a header.
        metric: The column to read: a share in [0, 1] or percent, higher = better.
        by: Columns that group the runs; None: see the module's rule.

    Raises:
        InputError: A column is missing, a value is no number, or two rows of one run give
            different values for one number of labels.
    """
    header, rows = _read_rows(path)
    for name in (STRATEGY, SEED, SIZE, metric, *(by or ())):
        if name not in header:
            raise InputError(
                f"{path} must have a column {name}. Got {', '.join(header)}. Rename or add it."
            )
    further = [name for name in header if name not in (STRATEGY, SEED, SIZE, metric)]
    columns = tuple(by) if by is not None else _group_columns(further, rows)
    groups: dict[tuple[str, ...], dict[str, dict[int | str, dict[int, float]]]] = {}
    blank = repeated = 0
    for line, row in rows:
        value = _value(path, line, metric, row[metric])
        if value is None:
            blank += 1
            continue
        key = tuple(row[name] for name in columns)
        size = _size(path, line, row[SIZE])
        seed = int(row[SEED]) if re.fullmatch(r"-?\d+", row[SEED]) else row[SEED]
        if not row[STRATEGY] or row[SEED] == "":
            raise InputError(f"{path} must name strategy and seed in row {line}. Got none. Add it.")
        run = groups.setdefault(key, {}).setdefault(row[STRATEGY], {}).setdefault(seed, {})
        if size in run and run[size] != value:
            raise InputError(
                f"A run must have one {metric} per number of labels. Got {run[size]} and {value} "
                f"for {row[STRATEGY]}, seed {seed}, {size} labels (row {line} of {path}). Add the "
                "column that tells the runs apart, or name it with --by."
            )
        repeated += size in run
        run[size] = value
    values = [
        value
        for strategies in groups.values()
        for runs in strategies.values()
        for run in runs.values()
        for value in run.values()
    ]
    if not values:
        raise InputError(f"{path} must have a row with a value of {metric}. Got none. Check it.")
    return CurveFile(
        groups=tuple(CurveGroup(key=key, runs=runs) for key, runs in groups.items()),
        columns=columns,
        ignored=tuple(name for name in further if name not in columns),
        metric=metric,
        scale=100.0 if max(values) > 1 else 1.0,
        blank=blank,
        repeated=repeated,
    )


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            rows = []
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"Every row of {path} must have {len(header)} columns. Got {len(cells)} in "
                        f"row {reader.line_num}. Correct that row."
                    )
                stripped = [cell.strip() for cell in cells]
                rows.append((reader.line_num, dict(zip(header, stripped, strict=True))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} must be a CSV file in UTF-8. Got: {error}.") from error
    except OSError as error:
        raise InputError(
            f"Learning curves must be a file that can be read. Got {path}: {error.strerror}. "
            "Correct the path."
        ) from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path} must name each column once. Got {', '.join(twice)} twice.")
    return header, rows


def _value(path: Path, line: int, metric: str, text: str) -> float | None:
    """Return a value of the metric; None where nothing was measured."""
    if text.lower() in ("", "nan", "na", "null", "none"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not 0 <= value <= 100:
        raise InputError(
            f"{metric} must be a share in [0, 1] or percent. Got {text!r} in row {line} of {path}. "
            "Correct it, or choose another column with --metric."
        )
    return value


def _size(path: Path, line: int, text: str) -> int:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if size < 1 or size != round(size):
        raise InputError(
            f"{SIZE} must be a whole number from 1. Got {text!r} in row {line} of {path}. "
            "Correct it."
        )
    return int(size)


def _group_columns(names: Sequence[str], rows: Sequence[tuple[int, Row]]) -> tuple[str, ...]:
    """Return the columns that tell runs apart; see the module."""
    named = [name for name in names if not _MEASURED.search(name)]
    texts = [name for name in named if not all(_is_number(row[name]) for _, row in rows)]
    return tuple(name for name in named if name in texts or _is_steady(name, texts, rows))


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _is_steady(name: str, texts: Sequence[str], rows: Sequence[tuple[int, Row]]) -> bool:
    """Say whether a column of numbers mostly stays the same while a run gets more labels."""
    sizes: dict[tuple[str, ...], set[str]] = defaultdict(set)
    keys = [(*(row[text] for text in texts), row[STRATEGY], row[SEED]) for _, row in rows]
    within: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for key, (_, row) in zip(keys, rows, strict=True):
        sizes[(*key, row[name])].add(row[SIZE])
        within[key].add(row[SIZE])
    asked = [
        len(sizes[(*key, row[name])]) > 1
        for key, (_, row) in zip(keys, rows, strict=True)
        if len(within[key]) > 1
    ]
    return not asked or sum(asked) >= _STEADY * len(asked)
