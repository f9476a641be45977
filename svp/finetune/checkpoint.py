"""Checkpoints: one file, replaced atomically, that only the same run continues from."""

import dataclasses
import io
import time
from pathlib import Path
from typing import Any, Final

import torch

from feature_store.atomic import write_bytes
from svp.errors import IdentityError

_SCHEMA: Final = "svp.finetune.checkpoint/1"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointing:
    """When the state is written; never changes the result.

    Attributes:
        every_s: Seconds between checkpoints.
        every_steps: Steps between checkpoints, whatever the clock says; None = by the clock only.
    """

    every_s: float = 60.0
    every_steps: int | None = None


class CheckpointFile:
    """The checkpoint of one run."""

    def __init__(self, path: Path, fingerprint: str, schedule: Checkpointing) -> None:
        """Prepare.

        Args:
            path: The file.
            fingerprint: Digest over configuration, data, weights and seed.
            schedule: When `due` says yes.
        """
        self._path, self._fingerprint, self._schedule = path, fingerprint, schedule
        self._last_s = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether to save after `step` steps."""
        every = self._schedule.every_steps
        if every is not None and step % every == 0:
            return True
        return time.monotonic() - self._last_s >= self._schedule.every_s

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file; a kill leaves the old one or the new one."""
        buffer = io.BytesIO()
        whole = {"schema": _SCHEMA, "fingerprint": self._fingerprint, "state": state}
        torch.save(whole, buffer)
        write_bytes(self._path, buffer.getbuffer().tobytes())
        self._last_s = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state with tensors on the CPU, or None if there is no file.

        Raises:
            IdentityError: The file is unreadable or belongs to another run.
        """
        if not self._path.exists():
            return None
        try:
            whole = torch.load(self._path, map_location="cpu", weights_only=True)
            known = whole["schema"] == _SCHEMA and whole["fingerprint"] == self._fingerprint
            state: dict[str, Any] = whole["state"]
        # What torch raises for foreign bytes depends on where they stop making sense.
        except Exception as error:
            raise IdentityError(
                f"{self._path} must be a checkpoint. Got a file that cannot be read. Remove it "
                "or start again with restart."
            ) from error
        if not known:
            raise IdentityError(
                f"{self._path} must belong to the same configuration, data, weights and seed. "
                "Got a checkpoint of another run. Choose another output directory, or start "
                "again with restart."
            )
        return state

    def remove(self) -> None:
        """Delete the file if it is there."""
        self._path.unlink(missing_ok=True)
