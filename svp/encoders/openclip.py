"""CLIP and CoCa image towers from open_clip.

The embedding is `encode_image` without normalisation: for CLIP the pooled token through the visual
projection, for CoCa the first query of the attentional pooler through its projection (Radford et
al. 2021; Yu et al. 2022). Only the image tower is built and loaded: the text tower costs memory
and, for some models, a download of its own, and moves no image vector.

Two silent errors of other tools are refused here: preprocessing that is not the one of the weights
(weights from a file carry none), and an activation other than the one they were trained with.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from svp.encoders.hub import fetch
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.spec import EncoderSpec, near_names
from svp.encoders.weights import Loaded, load_state, read_state
from svp.errors import InputError
from svp.progress import Progress

_PREPROCESS_KEYS: Final = ("mean", "std", "interpolation", "resize_mode", "fill_color")
_CONFIG_NAME: Final = "open_clip_config.json"
_WEIGHT_NAMES: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)


class ImageTower(nn.Module):
    """An open_clip image tower that returns the pooled, projected feature alone."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        """Return (B, d), not normalised."""
        out = self.visual(x_B3SS)
        # Towers made for captioning return (pooled, tokens).
        return cast(torch.Tensor, out[0] if isinstance(out, tuple) else out)


def models() -> list[str]:
    """Return the names open_clip ships a configuration for."""
    import open_clip

    return list(open_clip.list_models())


def tags(model: str) -> list[str]:
    """Return the names of published weights of `model`."""
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(model))


def build(architecture: Mapping[str, Any]) -> ImageTower:
    """Build the tower that `architecture` describes, with random weights on the CPU."""
    # open_clip has no public way to build one tower; its own model classes call this function.
    from open_clip.model import _build_vision_tower

    vision = dict(architecture["vision"])
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    # Weights are drawn and thrown away: the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]):
        visual = _build_vision_tower(
            embed_dim=architecture["embed_dim"],
            vision_cfg=vision,
            quick_gelu=architecture["quick_gelu"],
        )
    return ImageTower(visual)


def _side(visual: nn.Module, what: str) -> int:
    size = getattr(visual, "image_size", None)
    height, width = (size, size) if isinstance(size, int) else tuple(cast(Any, size))
    if height != width:
        raise InputError(
            f"The input of {what} must be square. Got {height} x {width} px. Choose another model."
        )
    return int(height)


def _preprocessing(values: Mapping[str, Any], size: int) -> Preprocessing:
    from open_clip.transform import PreprocessCfg

    known = {k: values[k] for k in _PREPROCESS_KEYS if values.get(k) is not None}
    config = PreprocessCfg(size=size, **known)
    # open_clip's evaluation transform reads every other name as bicubic, "random" among them.
    interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    return Preprocessing(
        size=size,
        resize_to=size,
        resize=cast(Any, config.resize_mode),
        interpolation=interpolation,
        mean=tuple(config.mean),
        std=tuple(config.std),
        fill=(config.fill_color,) * 3,
    )


def _tag_config(model: str, tag: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        known = tags(model)
        raise InputError(
            f"The tag of {model} must name published weights. Got {tag!r}. "
            f"{near_names(tag, known)} {len(known)} are known; weights of your own: MODEL@PATH."
        )
    return dict(config)


def _shared_preprocessing(model: str, quick_gelu: bool) -> dict[str, Any]:
    # Weights from a file say nothing of their preprocessing: the published ones of this model
    # must agree about it, or the user must say which they resemble.
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for tag in tags(model):
        config = _tag_config(model, tag)
        if bool(config.get("quick_gelu", False)) == quick_gelu:
            values: dict[str, Any] = {k: config[k] for k in _PREPROCESS_KEYS if k in config}
            found[json.dumps(values, sort_keys=True)] = (tag, values)
    if len(found) > 1:
        examples = " or ".join(f"open_clip:{model}/{tag}@PATH" for tag, _ in found.values())
        raise InputError(
            f"The preprocessing of {model}@PATH must be known. Got {len(found)} in use for this "
            f"model. Name the published weights whose preprocessing yours share: {examples}."
        )
    return next(iter(found.values()))[1] if found else {}


def _folder_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    path = folder / _CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"An open_clip directory must hold a readable {_CONFIG_NAME}. Got {folder} "
            f"({type(error).__name__}). Name the weights file and its model: open_clip:MODEL@FILE."
        ) from error
    weights = next((folder / n for n in _WEIGHT_NAMES if (folder / n).is_file()), None)
    if weights is None:
        raise InputError(
            f"An open_clip directory must hold weights. Got {folder} with none of "
            f"{', '.join(_WEIGHT_NAMES)}. Name the file: open_clip:MODEL@FILE."
        )
    model = config.get("model_cfg", config)
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg"} <= set(model):
        raise InputError(
            f"{_CONFIG_NAME} must describe a model with embed_dim and vision_cfg. Got {path}. "
            "Write it as open_clip's push_to_hf_hub does."
        )
    return model, dict(config.get("preprocess_cfg", {})), weights


def _tower_state(path: Path, tower: ImageTower) -> dict[str, torch.Tensor]:
    state = read_state(path)
    if any(name.startswith("image_encoder.model.") for name in state):
        from open_clip.convert import convert_state_dict

        state = dict(convert_state_dict(tower, state))
    visual = {n: v for n, v in state.items() if n.startswith("visual.")}
    # A checkpoint without that prefix is taken as an image tower alone.
    return visual or {f"visual.{n}": v for n, v in state.items()}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What a spec names, before anything is downloaded.

    Attributes:
        config: open_clip's description of the model.
        values: Of the tag or the folder: preprocessing, and where published weights are.
        weights: The file, if it is at hand.
        quick_gelu: The activation the weights were trained with, not the one that the model's
            name implies.
    """

    config: dict[str, Any]
    values: dict[str, Any]
    weights: Path | None
    quick_gelu: bool


def _find(spec: EncoderSpec) -> _Found:
    import open_clip

    weights = spec.path
    activation: bool | None = None
    values: dict[str, Any]
    if weights is not None and weights.is_dir():
        config, values, weights = _folder_config(weights)
        if spec.model and spec.model in models():
            config = cast(dict[str, Any], open_clip.get_model_config(spec.model))
    else:
        found = open_clip.get_model_config(spec.model) if spec.model in models() else None
        if found is None:
            raise InputError(
                f"The model of an open_clip encoder must be one that open_clip knows. Got "
                f"{spec.model!r}. {near_names(spec.model, models())}"
            )
        config = cast(dict[str, Any], found)
        if spec.pretrained is None and weights is None:
            raise InputError(
                f"The weights of open_clip:{spec.model} must be named. Got a model alone. Add "
                f"@PATH or a published tag: {', '.join('/' + t for t in tags(spec.model)[:6])}."
            )
        values = {}
    if spec.pretrained is not None:
        values = _tag_config(spec.model, spec.pretrained)
        activation = bool(values.get("quick_gelu", False))
    elif not values:
        values = _shared_preprocessing(spec.model, bool(config.get("quick_gelu", False)))
    quick_gelu = bool(config.get("quick_gelu", False)) if activation is None else activation
    return _Found(config=config, values=values, weights=weights, quick_gelu=quick_gelu)


def described(
    spec: EncoderSpec, *, offline: bool | None, progress: Progress
) -> tuple[dict[str, Any], bool, Path]:
    """Return the configuration, the activation (QuickGELU or not) and the file of weights.

    Raises:
        InputError: See `load`.
        TemporaryError: A download failed.
    """
    found = _find(spec)
    weights = found.weights
    if weights is None:
        weights = _published(found.values, what=spec.text, offline=offline, progress=progress)
    return found.config, found.quick_gelu, weights


def load(spec: EncoderSpec, *, offline: bool | None, progress: Progress) -> Loaded:
    """Load the image tower that `spec` names.

    Raises:
        InputError: Unknown model or tag, weights that do not fit, or weights not at hand offline.
        TemporaryError: A download failed.
    """
    source: dict[str, Any] = {"spec": spec.text}
    found = _find(spec)
    if spec.pretrained is not None:
        source["pretrained"] = spec.pretrained
    config, values, weights = found.config, found.values, found.weights
    architecture = {
        "family": "open_clip",
        "embed_dim": config["embed_dim"],
        "vision": config["vision_cfg"],
        "quick_gelu": found.quick_gelu,
    }
    what = f"open_clip:{spec.model or spec.path}"
    try:
        tower = build(architecture)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"The vision configuration of {what} must be one this open_clip can build. "
            f"Got {type(error).__name__}: {error}. Install another version of open-clip-torch."
        ) from error
    if weights is None:
        weights = _published(values, what=spec.text, offline=offline, progress=progress)
    load_state(tower, _tower_state(weights, tower), what=f"{weights.name} for {what}")
    source["file"] = weights.name
    attentional = bool(getattr(tower.visual, "attn_pool", None))
    return Loaded(
        module=tower,
        architecture=architecture,
        pooling="attentional pooler, visual projection" if attentional else "visual projection",
        preprocessing=_preprocessing(values, _side(tower.visual, what)),
        provenance=source,
    )


def _published(
    tag: Mapping[str, Any], *, what: str, offline: bool | None, progress: Progress
) -> Path:
    repository, _, name = str(tag.get("hf_hub", "")).rpartition("/")
    if not repository:
        raise InputError(
            f"The weights of {what} must be on the Hugging Face hub. Got {tag.get('url')!r}. "
            "Download the file and name it: open_clip:MODEL/TAG@PATH."
        )
    if not name:
        names = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    elif name.endswith((".bin", ".pt", ".pth")):
        names = [f"{Path(name).stem}.safetensors", name]
    else:
        names = [name]
    return fetch(repository, names, what=what, offline=offline, progress=progress)
