"""An encoder as a directory: `encoder.json` and `weights.safetensors`.

Pretraining and refreshing write it, and the directory is itself an encoder's name. The JSON is
written last and holds the digest of the tensors, so a directory half written, or with weights
exchanged, is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import safetensors.torch
import torch
from torch import nn

from feature_store.atomic import write_bytes, write_json
from svp.encoders import openclip, timmodels
from svp.encoders.backbones import build_backbone
from svp.encoders.decoders import check_decoder
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.spec import EncoderSpec
from svp.encoders.weights import Loaded, digest_tensors, load_state, read_state
from svp.errors import IdentityError, InputError
from svp.progress import Progress

SCHEMA: Final = "svp.encoder-folder/1"
DESCRIPTION_NAME: Final = "encoder.json"
WEIGHTS_NAME: Final = "weights.safetensors"


def build_module(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module that an identity's `architecture` describes, with random weights.

    Raises:
        InputError: If the family is none of those svp can rebuild.
    """
    family = architecture.get("family")
    if family == "backbone":
        return build_backbone(architecture["model"], image_size=architecture["image_size"])
    if family == "timm":
        return timmodels.build(architecture)
    if family == "open_clip":
        return openclip.build(architecture)
    raise InputError(
        f"The family of an encoder folder must be backbone, timm or open_clip. Got {family!r}. "
        "Open the encoder by the plug-in that made it."
    )


def save_encoder(
    path: Path,
    *,
    module_state: Mapping[str, torch.Tensor],
    architecture: Mapping[str, Any],
    pooling: str,
    preprocessing: Preprocessing,
    decoder: str = "pillow",
    lineage: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write any encoder that `build_module` can rebuild as a directory.

    Args:
        path: The directory, made if need be; an older encoder in it is replaced.
        module_state: `state_dict()` of the module that maps images to embeddings.
        architecture: As in the encoder's identity.
        pooling: As in the encoder's identity.
        preprocessing: The encoder's own.
        decoder: What makes pixels of bytes, unless the directory is opened with another.
        lineage: JSON that becomes part of the identity: parent encoder, digests of the labels and
            of the training configuration, seed.
        provenance: JSON for the reader, no part of the identity.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in module_state.items()}
    path.mkdir(parents=True, exist_ok=True)
    # Tensors may share memory, which the format refuses; a clone does not.
    owned = {name: value.clone() for name, value in state.items()}
    write_bytes(path / WEIGHTS_NAME, safetensors.torch.save(owned))
    write_json(
        path / DESCRIPTION_NAME,
        {
            "schema": SCHEMA,
            "architecture": dict(architecture),
            "pooling": pooling,
            "preprocessing": preprocessing.as_json(),
            "decoder": check_decoder(decoder),
            "weights_sha256": digest_tensors(state),
            "lineage": None if lineage is None else dict(lineage),
            "provenance": dict(provenance or {}),
        },
    )


def write_encoder_folder(
    path: Path,
    *,
    module_state: Mapping[str, torch.Tensor],
    arch: str,
    image_size: int,
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any],
) -> None:
    """Write a backbone of `build_backbone(arch, image_size=...)` as an encoder directory.

    Args:
        path: See `save_encoder`.
        module_state: The backbone's `state_dict()`.
        arch: Name that `build_backbone` knows.
        image_size: Pixels.
        preprocessing: What its training images went through, without the augmentation.
        provenance: JSON for the reader: method, epochs, pool, seed, versions.
    """
    save_encoder(
        path,
        module_state=module_state,
        architecture={"family": "backbone", "model": arch, "image_size": image_size},
        pooling="global average",
        preprocessing=preprocessing,
        provenance=provenance,
    )


def _description(path: Path) -> dict[str, Any]:
    try:
        values = json.loads((path / DESCRIPTION_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"An encoder directory must hold a readable {DESCRIPTION_NAME}. Got {path} "
            f"({type(error).__name__}). Name a directory that `svp pretrain` or a refresh wrote; "
            "for an open_clip directory write open_clip:@DIRECTORY."
        ) from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise InputError(
            f"The schema of {path / DESCRIPTION_NAME} must be {SCHEMA}. "
            f"Got {values.get('schema') if isinstance(values, dict) else type(values).__name__!r}. "
            "Use the version of svp that wrote it, or write it again."
        )
    return cast(dict[str, Any], values)


def load(spec: EncoderSpec, *, offline: bool | None, progress: Progress) -> Loaded:
    """Load the encoder in the directory `spec.path`.

    Raises:
        InputError: If the directory holds no encoder of this schema, or weights that do not fit.
        IdentityError: If the weights are not the ones its description speaks of.
    """
    del offline, progress
    path = cast(Path, spec.path)
    values = _description(path)
    try:
        module = build_module(values["architecture"])
        preprocessing = Preprocessing.from_json(values["preprocessing"])
        pooling, digest = str(values["pooling"]), values["weights_sha256"]
        # Directories written before decoders were recorded were embedded with Pillow.
        decoder = check_decoder(str(values.get("decoder", "pillow")))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path / DESCRIPTION_NAME} must be complete. Got {type(error).__name__}: {error}. "
            "Write the encoder again."
        ) from error
    load_state(module, read_state(path / WEIGHTS_NAME), what=str(path / WEIGHTS_NAME))
    if digest_tensors(module.state_dict()) != digest:
        raise IdentityError(
            f"The weights in {path} must be those its {DESCRIPTION_NAME} names. Got others: the "
            "directory was edited, or its writing was cut short. Write the encoder again."
        )
    return Loaded(
        module=module,
        architecture=values["architecture"],
        pooling=pooling,
        preprocessing=preprocessing,
        lineage=values.get("lineage"),
        provenance={"spec": spec.text, **values.get("provenance", {})},
        decoder=decoder,
    )
