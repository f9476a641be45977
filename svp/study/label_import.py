"""Read a file of answers, whoever wrote it."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from svp.errors import InputError
from svp.label import cvat, fiftyone, labelstudio
from svp.label.answer import Answers
from svp.label.names import Names
from svp.label.table import read_table

Format = Literal["auto", "table", "label-studio", "fiftyone", "cvat"]
# Of one JSON document; a task of Label Studio takes about 2 kB.
MAX_BYTES: Final = 2**30


def read_answers(
    path: Path, names: Names, *, format: Format = "auto", field: str | None = None
) -> Answers:
    """Read answers; their ids may be unknown.

    Args:
        path: The file; for FiftyOne also the folder it exported.
        names: The study's items.
        format: What it is; `auto` looks at it.
        field: The field with the answers, where samples of FiftyOne have several.

    Raises:
        InputError: There is no such file, or it cannot be read.
    """
    path = _inside(path)
    if not path.is_file():
        raise InputError(f"A label file must exist. Got {path}. Correct the path.")
    suffix = path.suffix.lower()
    if format == "cvat" or (format == "auto" and suffix in (".xml", ".zip")):
        return cvat.read_xml(path, names)
    if format == "table" or (format == "auto" and suffix != ".json"):
        return read_table(path)
    document = _json(path)
    if format in ("auto", "label-studio") and (labelstudio.is_export(document) or document == []):
        return labelstudio.read_export(document, names, str(path))
    if format in ("auto", "fiftyone") and fiftyone.is_export(document):
        return fiftyone.read_export(document, names, str(path), field=field)
    wanted = "Label Studio or FiftyOne" if format == "auto" else format
    raise InputError(
        f"A JSON file of answers must be an export of {wanted}. Got something else in {path}. "
        "From Label Studio export JSON or JSON-MIN."
    )


def _inside(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("labels.json", "samples.json"):
        if (path / name).is_file():
            return path / name
    raise InputError(
        f"A label file must exist: in a folder, labels.json or samples.json. Got {path} with "
        "neither. Give a file."
    )


def _json(path: Path) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"A JSON file must have at most {MAX_BYTES:,} bytes. Got more in {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"A label file ending in .json must be JSON. Got {path}: {error}. Export it again."
        ) from error


def vote_weights(weights: str | Path | Mapping[str, float] | None) -> Mapping[str, float]:
    """Return the weight of each annotator's vote; who is not in it has 1.

    Args:
        weights: The weights, or a CSV with columns annotator and weight.

    Raises:
        InputError: They cannot be read, or one is negative.
    """
    if weights is None:
        return {}
    return weights if isinstance(weights, Mapping) else _weights(Path(weights))


def _weights(path: Path) -> dict[str, float]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = {row["annotator"]: float(row["weight"]) for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"Weights must be a CSV with columns annotator and weight. Got {path} "
            f"({type(error).__name__}: {error}). Correct it."
        ) from error
    wrong = [name for name, weight in table.items() if not (math.isfinite(weight) and weight >= 0)]
    if wrong:
        raise InputError(
            f"A weight must be a number of at least 0. Got {table[wrong[0]]} for {wrong[0]} in "
            f"{path}. Correct it."
        )
    return table
