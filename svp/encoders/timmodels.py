"""Any image model of timm, pooled: `num_classes=0`, with timm's own preprocessing."""

import inspect
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from svp.encoders.hub import fetch
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.spec import EncoderSpec, near_names
from svp.encoders.weights import Loaded, load_state, read_state
from svp.errors import InputError
from svp.progress import Progress


def models() -> list[str]:
    """Return timm's architectures."""
    import timm

    return list(timm.list_models())


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the model that `architecture` describes, pooled, with random weights on the CPU."""
    import timm

    # Weights are drawn and thrown away: the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(architecture["model"], num_classes=0)


def _convert(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # timm keeps the conversion of a family's older names beside the family, by this convention.
    family = sys.modules[type(module).__module__]
    convert = getattr(family, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    takes_model = len(inspect.signature(convert).parameters) > 1
    try:
        return dict(convert(dict(state), module) if takes_model else convert(dict(state)))
    except Exception:
        # Written for its own family's tensors; on others the strict load explains better.
        return state


def _preprocessing(config: Mapping[str, Any], what: str) -> Preprocessing:
    import timm.data

    data: dict[str, Any] = cast(Any, timm.data).resolve_data_config(pretrained_cfg=dict(config))
    _, height, width = data["input_size"]
    if height != width:
        raise InputError(
            f"The input of {what} must be square. Got {height} x {width} px. Choose another model."
        )
    mode = {"squash": "squash", "border": "longest"}.get(data["crop_mode"], "shortest")
    mean = tuple(float(v) for v in data["mean"])
    return Preprocessing(
        size=height,
        resize_to=int(height / data["crop_pct"]),
        resize=cast(Any, mode),
        interpolation=data["interpolation"],
        mean=mean,
        std=tuple(float(v) for v in data["std"]),
        fill=tuple(round(255 * v) for v in mean) if mode == "longest" else (0, 0, 0),
    )


def _classifiers(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def load(spec: EncoderSpec, *, offline: bool | None, progress: Progress) -> Loaded:
    """Load the model that `spec` names: published weights, or those of its file.

    Raises:
        InputError: Unknown model, weights that do not fit, or weights not at hand offline.
        TemporaryError: A download failed.
    """
    import timm

    base, _, tag = spec.model.partition(".")
    if not timm.is_model(base):
        raise InputError(
            f"The model of a timm encoder must be one that timm knows. Got {spec.model!r}. "
            f"{near_names(base, models())}"
        )
    if tag and not timm.models.is_model_pretrained(spec.model):
        known = timm.list_models(f"{base}.*", pretrained=True)
        raise InputError(
            f"The tag of {base} must name published weights. Got {tag!r}. "
            f"Known: {', '.join(known) or 'none; use MODEL@PATH'}."
        )
    architecture = {"family": "timm", "model": base}
    module = build(architecture)
    # The tag carries the preprocessing, so a file of weights takes that of the tag it names.
    found: Any = timm.get_pretrained_cfg(spec.model)
    config: dict[str, Any] = found.to_dict() if found is not None else {}
    weights = spec.path
    if weights is None:
        repository = config.get("hf_hub_id")
        if not repository:
            raise InputError(
                f"The weights of {spec.text} must be named. Got a model that timm publishes none "
                f"for on the Hugging Face hub. Write timm:{spec.model}@PATH."
            )
        name = config.get("hf_hub_filename")
        names = [name] if name else ["model.safetensors", "pytorch_model.bin"]
        weights = fetch(repository, names, what=spec.text, offline=offline, progress=progress)
    elif not weights.is_file():
        raise InputError(
            f"The weights of a timm encoder must be a file. Got the directory {weights}. "
            "Name the file in it."
        )
    state = _convert(module, read_state(weights))
    load_state(
        module,
        state,
        what=f"{weights.name} for timm:{base}",
        ignore=_classifiers(config),
    )
    pool = getattr(module, "global_pool", None)
    provenance = {"spec": spec.text, "file": weights.name}
    # timm tells the licence of what it publishes; a file of one's own may have any.
    if spec.path is None and config.get("license"):
        provenance["licence"] = str(config["license"])
    return Loaded(
        module=module,
        architecture=architecture,
        pooling=f"num_classes=0, pool {pool}" if isinstance(pool, str) else "num_classes=0",
        preprocessing=_preprocessing(config, f"timm:{base}"),
        provenance=provenance,
    )
