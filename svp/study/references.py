"""What a study refers to in a store, read from its records alone."""

import json
from pathlib import Path

from svp.errors import InputError


def used_encoders(study: Path) -> frozenset[str]:
    """Return the ids of the encoders that a study's embeddings and rounds came from.

    Raises:
        InputError: If the folder is no study, or a record cannot be read.
    """
    if not (study / "study.toml").is_file():
        raise InputError(
            f"A study must hold study.toml. Got {study} without it. Check the path of the study."
        )
    found = set()
    embedded = study / "encoder.json"
    if embedded.is_file():
        found.add(_field(embedded, "encoder_id"))
    for receipt in sorted(study.glob("rounds/*/round.json")):
        found.add(_field(receipt, "encoder", "id"))
    return frozenset(found)


def _field(path: Path, *names: str) -> str:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for name in names:
            value = value[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} must name the encoder that was used. Got a record that does not. "
            "Restore it from a copy."
        ) from error
    return str(value)
