"""What a command prints: its result on stdout, everything else on stderr.

The result is text for people, or with `--json` one object whose `schema` field names its form;
`--result-file` writes that object to a file for schedulers whose logs mix both streams.
"""

import dataclasses
import enum
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Return `value` as plain JSON types: dataclasses, paths, arrays and NaN included."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value


def emit(
    schema: str,
    result: Mapping[str, Any],
    text: str,
    *,
    as_json: bool = False,
    result_file: Path | None = None,
) -> None:
    """Print a result, and write it to `result_file` if one is named.

    Args:
        schema: Name and version of the result's form, such as `svp.select/1`.
        result: The result.
        text: The same for people.
        as_json: Print the object instead of the text.
        result_file: Where to write the object too.
    """
    document = {"schema": schema, **plain(result)}
    if result_file is not None:
        from feature_store.atomic import write_json

        result_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(result_file, document)
    # Logs first, so that a scheduler which keeps the last line of both streams keeps the result.
    sys.stderr.flush()
    print(json.dumps(document, sort_keys=True) if as_json else text, flush=True)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return rows as aligned columns; numbers to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    numeric = [
        all(row[i].lstrip("+-±").replace(".", "").replace("%", "").replace(",", "").isdigit()
            for row in rows if row[i])
        for i in range(len(header))
    ]  # fmt: skip

    def line(cells: list[str]) -> str:
        return "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join([line(header), *(line(row) for row in rows)])


def fitted_table(header: list[str], rows: list[list[str]]) -> str:
    """Return rows as aligned columns whose last one is wrapped to the terminal.

    It is as wide as the terminal, at least 80 and at most 120 characters; narrower ones wrap by
    themselves.
    """
    width = min(max(shutil.get_terminal_size().columns, 80), 120)
    *short, _ = zip(header, *rows, strict=True)
    left = sum(max(map(len, column)) + 2 for column in short)
    lines = []
    for row in rows:
        first, *more = textwrap.wrap(row[-1], max(width - left, 24), break_on_hyphens=False) or [""]
        lines += [[*row[:-1], first], *([*[""] * len(short), rest] for rest in more)]
    return table(header, lines)
