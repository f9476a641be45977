"""Weights from files: read without executing anything, loaded only where all of them fit.

A checkpoint is data. Pickles are read by torch's restricted unpickler alone, so a file that would
run code is refused; a file of another architecture is refused with what does not fit, because
loading what happens to fit gives vectors that look right.
"""

import argparse
import dataclasses
import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import safetensors.torch
import torch
from torch import nn

from svp.encoders.preprocessing import Preprocessing
from svp.errors import InputError

# Where training programs keep the tensors inside the object they save; the outermost found wins.
_CONTAINERS: Final = ("state_dict_ema", "state_dict", "model_state_dict", "model", "net")
_WRAPPERS: Final = ("_orig_mod.", "module.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a family's loader hands to `svp.encoders.encoder.open_encoder`.

    Attributes:
        module: Float32 on the CPU; normalised (B, 3, S, S) -> pooled features (B, d).
        architecture: JSON; `family` and all that is needed to build the module without weights.
        pooling: Which layer is pooled and projected, in words.
        preprocessing: The encoder's own.
        branch: Network of a two-network checkpoint, or None.
        lineage: JSON of a refreshed encoder's making, part of its identity; or None.
        provenance: JSON that is not part of the identity: source, licence.
        decoder: What makes pixels of bytes unless the encoder's name says otherwise; see
            `svp.encoders.decoders`.
    """

    module: nn.Module
    architecture: dict[str, Any]
    pooling: str
    preprocessing: Preprocessing
    branch: str | None = None
    lineage: dict[str, Any] | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    decoder: str = "pillow"


def read_checkpoint(path: Path) -> Any:
    """Return the object stored in `path`, a safetensors file or a pickle of plain data.

    Raises:
        InputError: If the file holds code, is damaged, or is no checkpoint.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # Training programs often save their parsed arguments beside the weights. Warnings of old
        # formats help nobody here: the file is either read whole or refused.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0][:200]
        raise InputError(
            f"A checkpoint must hold tensors and plain data only. Got {path}, which asks for more "
            f"({reason}). Save its state_dict again, best as safetensors, if you trust its source."
        ) from error
    except Exception as error:  # damaged bytes can make a parser raise anything
        reason = str(error).split("\n", 1)[0][:200]
        raise InputError(
            f"A checkpoint must be a safetensors file or one that torch.save wrote. Got {path} "
            f"({type(error).__name__}: {reason}). Copy or download the file again."
        ) from error


def _only_tensors(values: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {str(k): v for k, v in values.items() if isinstance(v, torch.Tensor)}


def state_of(checkpoint: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the named tensors of a checkpoint, without the prefixes of wrapping modules."""
    if isinstance(checkpoint, Mapping):
        for key in _CONTAINERS:
            inner = checkpoint.get(key)
            if isinstance(inner, Mapping) and _only_tensors(inner):
                checkpoint = inner
                break
        tensors = _only_tensors(checkpoint)
        while tensors:
            wrapper = next((w for w in _WRAPPERS if all(n.startswith(w) for n in tensors)), None)
            if wrapper is None:
                return tensors
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    raise InputError(
        f"A checkpoint must hold named tensors. Got {path} with {type(checkpoint).__name__} and "
        "none in it. Save the model's state_dict()."
    )


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the named tensors in the file `path`; see `read_checkpoint` and `state_of`."""
    return state_of(read_checkpoint(path), path)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def load_state(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    *,
    what: str,
    ignore: Sequence[str] = (),
) -> None:
    """Load `tensors` into `module`, all of them or none.

    Args:
        module: Receives the values, cast to its own types.
        tensors: By the names of `module.state_dict()`.
        what: Names the weights and the architecture in the message.
        ignore: Prefixes of tensors that may be left over, such as the classifier's.

    Raises:
        InputError: If any tensor is missing, left over or of another shape. Batch counters may
            be missing: evaluation does not read them.
    """
    expected = module.state_dict()
    missing = [n for n in expected if n not in tensors and not n.endswith("num_batches_tracked")]
    left_over = [n for n in tensors if n not in expected and not n.startswith(tuple(ignore))]
    other_shape = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({_some(missing)})")
    if left_over:
        problems.append(f"{len(left_over)} left over ({_some(left_over)})")
    if other_shape:
        problems.append(f"{len(other_shape)} of another shape ({_some(other_shape)})")
    if problems:
        raise InputError(
            f"The tensors of {what} must fit its architecture exactly. Got {'; '.join(problems)}. "
            "Name the architecture these weights were trained with."
        )
    module.load_state_dict({n: v for n, v in tensors.items() if n in expected}, strict=False)


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over name, type, shape and bytes of each tensor, in order of names.

    Counters of batches are left out: no evaluation reads them, and older checkpoints lack them.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(cast(Any, tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
