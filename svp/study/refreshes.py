"""Finished refreshes of a study on disk, and the encoder that is in force because of them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from svp.errors import InputError
from svp.study.study import Study

REFRESH_SCHEMA: Final = "svp.refresh/1"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Refresh:
    """A finished refresh.

    Attributes:
        number: Its number, from 1.
        folder: Its folder.
        encoder_id: The encoder it made.
        record: What `refresh.json` says.
    """

    number: int
    folder: Path
    encoder_id: str
    record: Mapping[str, Any]

    @property
    def encoder_spec(self) -> str:
        """The encoder's folder, as an encoder spec."""
        return str(self.folder / "encoder")


def read_refreshes(study: Study) -> list[Refresh]:
    """Return the finished refreshes of a study, oldest first.

    Raises:
        InputError: A record is not as `svp refresh` wrote it.
    """
    if not study.refreshes_dir.is_dir():
        return []
    found = []
    for folder in sorted(study.refreshes_dir.iterdir()):
        path = folder / "refresh.json"
        if not (folder.name.isdigit() and path.is_file()):
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            encoder_id = str(record["encoder_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} must be as `svp refresh` wrote it. Got {type(error).__name__}: {error}. "
                f"Restore it, or delete {folder}."
            ) from error
        found.append(
            Refresh(number=int(folder.name), folder=folder, encoder_id=encoder_id, record=record)
        )
    return found


def encoder_in_force(study: Study) -> str:
    """Return the id of the encoder that selections use: the last refresh's, or the study's own."""
    done = read_refreshes(study)
    return done[-1].encoder_id if done else study.encoder_id()
