"""A fine-tuned model in the forms that other programs load.

`timm` writes a folder that plain timm opens, head and preprocessing included:
`timm.create_model("local-dir:FOLDER", pretrained=True)`. Its tensors are named as torchvision names
those of its residual nets, so `torchvision.models.resnet18(num_classes=C).load_state_dict` takes
them too. `open_clip` writes the image tower, `visual.safetensors`, for
`open_clip.create_model(...).visual.load_state_dict`, and the head beside it: the text tower is not
part of a fine-tune. `onnx` writes one file that needs neither svp nor torch.

The exports for timm and ONNX are run and compared before they are called done.

Shapes: N = images, S = side in pixels, d = features, C = classes.
"""

import json
from pathlib import Path
from typing import Any, Final, Literal, cast

import safetensors.torch
import torch
from torch import nn

from feature_store.atomic import write_bytes, write_json
from svp.encoders.preprocessing import Preprocessing
from svp.errors import InputError
from svp.finetune.model import FinetunedModel, Normalisation

Format = Literal["timm", "open_clip", "onnx"]
FORMATS: Final[tuple[Format, ...]] = ("timm", "open_clip", "onnx")

_THUMBNAIL_PX: Final = 64  # up to here svp's residual nets have a stem of their own
_TOLERANCE: Final = 1e-3  # relative to the largest logit


def preprocessing_of(model: FinetunedModel) -> Preprocessing:
    """Return how images become the model's input.

    Raises:
        InputError: The encoder it was made from did not say.
    """
    values = model.description.get("encoder", {}).get("preprocessing")
    if values is None:
        raise InputError(
            "The model must say how its images are prepared. Got one made from an encoder that "
            "does not. Prepare them as then, and use FinetunedModel.logits."
        )
    return Preprocessing.from_json(values)


def export_model(model: FinetunedModel, output: Path, form: Format) -> list[Path]:
    """Write a model in another form.

    Args:
        model: The model, on the CPU.
        output: The folder to write to, made if need be.
        form: One of `FORMATS`.

    Returns:
        The files.

    Raises:
        InputError: The network has no such form, or an extra is not installed.
    """
    if form == "timm":
        return _export_timm(model, output)
    if form == "open_clip":
        return _export_open_clip(model, output)
    if form == "onnx":
        return _export_onnx(model, output)
    raise InputError(
        f"The format must be one of {', '.join(FORMATS)}. Got {form!r}. Choose one of them."
    )


def _refuse(form: str, got: str) -> InputError:
    return InputError(
        f"A model exported for {form} must be a network of its own. Got {got}. Use --format onnx, "
        "which takes every network."
    )


def _timm_name(architecture: dict[str, Any]) -> str:
    family, name = architecture.get("family"), str(architecture.get("model"))
    if family == "timm":
        return name
    residual = family == "backbone" and name in ("resnet18", "resnet50")
    if not residual or architecture["image_size"] <= _THUMBNAIL_PX:
        raise _refuse("timm", f"{family} {name} at {architecture.get('image_size', '?')} px")
    return name


def _export_timm(model: FinetunedModel, output: Path) -> list[Path]:
    import timm

    architecture = model.description["encoder"]["architecture"]
    name = _timm_name(architecture)
    if model.head.unit_features:
        raise _refuse("timm", "a head on features of length 1")
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, num_classes=len(model.class_names))
    last = cast(Any, network).default_cfg.get("classifier")
    state = {n: v.cpu().contiguous().clone() for n, v in model.backbone.state_dict().items()}
    if not isinstance(last, str) or not isinstance(network.get_submodule(last), nn.Linear):
        raise _refuse("timm", f"{name}, whose last layer is not one linear map")
    state[f"{last}.weight"] = model.head.weight_Cd.detach().cpu().contiguous().clone()
    state[f"{last}.bias"] = model.head.bias_C.detach().cpu().contiguous().clone()
    network.load_state_dict(state)
    network.eval()
    _compare(model, lambda x: network(_normalised(model.normalisation, x)), "timm")
    data = preprocessing_of(model)
    write_bytes(output / "model.safetensors", safetensors.torch.save(state))
    config = {
        "architecture": name,
        "num_classes": len(model.class_names),
        "num_features": model.head.weight_Cd.shape[1],
        "label_names": list(model.class_names),
        "pretrained_cfg": {
            "input_size": [3, data.size, data.size],
            "interpolation": data.interpolation,
            "crop_pct": data.size / data.resize_to,
            "crop_mode": {"shortest": "center", "longest": "border", "squash": "squash"}[
                data.resize
            ],
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": len(model.class_names),
            "classifier": last,
            "first_conv": cast(Any, network).default_cfg.get("first_conv"),
            "custom_load": False,
        },
    }
    write_json(output / "config.json", config)
    return [output / "model.safetensors", output / "config.json"]


def _export_open_clip(model: FinetunedModel, output: Path) -> list[Path]:
    architecture = model.description["encoder"]["architecture"]
    if architecture.get("family") != "open_clip":
        raise _refuse("open_clip", f"one of {architecture.get('family')}")
    prefix = "visual."
    visual = {
        name.removeprefix(prefix): value.cpu().contiguous().clone()
        for name, value in model.backbone.state_dict().items()
    }
    head = {
        "weight": model.head.weight_Cd.detach().cpu().contiguous().clone(),
        "bias": model.head.bias_C.detach().cpu().contiguous().clone(),
    }
    data = preprocessing_of(model)
    write_bytes(output / "visual.safetensors", safetensors.torch.save(visual))
    write_bytes(output / "head.safetensors", safetensors.torch.save(head))
    write_json(
        output / "config.json",
        {
            "model_cfg": {
                "embed_dim": architecture["embed_dim"],
                "vision_cfg": architecture["vision"],
                "quick_gelu": architecture["quick_gelu"],
            },
            "preprocess_cfg": {
                "size": data.size,
                "mean": list(data.mean),
                "std": list(data.std),
                "interpolation": data.interpolation,
                "resize_mode": data.resize,
                "fill_color": data.fill[0],
            },
            "class_names": list(model.class_names),
            "unit_features": model.head.unit_features,
            "text": "logits = head(normalize(visual(x))) if unit_features else head(visual(x))",
        },
    )
    return [output / name for name in ("visual.safetensors", "head.safetensors", "config.json")]


class _Deployed(nn.Module):
    """Bytes in, logits and probabilities out."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: FinetunedModel) -> None:
        super().__init__()
        self.network = model.network
        scale, shift = model.normalisation.scale, model.normalisation.shift
        self.register_buffer("scale", torch.tensor(scale)[:, None, None] / 255)
        self.register_buffer("shift", torch.tensor(shift)[:, None, None])

    def forward(self, x_N3SS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, C) logits and probabilities of uint8 images."""
        logits_NC = self.network(x_N3SS.float() * self.scale + self.shift)
        return logits_NC, logits_NC.softmax(dim=1)


def _export_onnx(model: FinetunedModel, output: Path) -> list[Path]:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise InputError(
            f"Exporting to ONNX must have the packages onnx and onnxscript. Got {error}. "
            "Install the extra: pip install 'svp[onnx]'."
        ) from error
    del onnxscript
    data = preprocessing_of(model)
    deployed = _Deployed(model).eval().cpu()
    x_2 = torch.zeros(2, 3, data.size, data.size, dtype=torch.uint8)
    program = torch.onnx.export(
        deployed,
        (x_2,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits", "probabilities"],
        dynamic_shapes={"x_N3SS": {0: torch.export.Dim("N", min=1)}},
    )
    assert program is not None
    proto = program.model_proto
    said = {
        "class_names": json.dumps(list(model.class_names), ensure_ascii=False),
        "input": f"images: uint8 RGB, (N, 3, {data.size}, {data.size}); scaling to [0, 1], mean "
        "and std are part of the graph",
        "preprocessing": json.dumps(data.as_json(), sort_keys=True),
        "svp_fingerprint": str(model.description.get("fingerprint", "")),
    }
    onnx.helper.set_model_props(proto, said)
    onnx.checker.check_model(proto)
    # Above 2 GB the format wants a second file; no image classifier here comes near.
    write_bytes(output / "model.onnx", proto.SerializeToString())
    return [output / "model.onnx"]


def _normalised(normalisation: Normalisation, x_N3SS: torch.Tensor) -> torch.Tensor:
    return normalisation(x_N3SS.float() / 255)


@torch.no_grad()
def _compare(model: FinetunedModel, network: Any, form: str) -> None:
    size = preprocessing_of(model).size
    generator = torch.Generator().manual_seed(0)
    x_4 = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=generator)
    ours_4C = model.network(_normalised(model.normalisation, x_4))
    theirs_4C = network(x_4)
    if (ours_4C - theirs_4C).abs().max() > _TOLERANCE * ours_4C.abs().max().clamp(min=1):
        raise _refuse(form, "one whose logits differ there")
