"""Checkpoints of a pretraining run: written atomically, read without unpickling code."""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from svp.errors import InputError

FORMAT: Final = 1


def save(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that at any instant `path` is absent, the old one or the new one.

    Args:
        path: Where to.
        identity: What the run is; `load` refuses to go on from another.
        state: Tensors, numbers, strings and containers of them.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, "identity": dict(identity), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def load(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state saved at `path`, or None if there is none.

    Raises:
        InputError: If the checkpoint cannot be read, or belongs to another configuration, seed
            or set of images; what differs is named.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found, state = saved["identity"], saved["state"]
        known = saved["format"] == FORMAT
    except Exception as error:
        raise InputError(
            f"The checkpoint must be one that svp pretrain wrote. Got {path} ({error}). "
            "Delete it to start again."
        ) from error
    if not known:
        raise InputError(
            f"The checkpoint must have format {FORMAT}. Got {saved['format']} in {path}. "
            "Use the svp version that wrote it, or delete it to start again."
        )
    check_identity(found, identity, path)
    resumed: dict[str, Any] = state
    return resumed


def check_identity(found: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    """Raise InputError naming what differs between the run at `path` and the one asked for."""
    found, asked = _flat(found), _flat(asked)
    differing = [
        f"{key} {found.get(key)!r} there, {asked.get(key)!r} here"
        for key in sorted(found.keys() | asked.keys())
        if found.get(key) != asked.get(key)
    ]
    if differing:
        raise InputError(
            "A run must continue with its own configuration, seed and images. Got "
            f"{'; '.join(differing)} for {path}. Restore them, or choose another output folder."
        )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
