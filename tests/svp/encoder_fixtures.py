"""Small real networks of every family, their weights written the way their makers write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from svp.encoders.backbones import build_backbone
from svp.encoders.folder import write_encoder_folder
from svp.encoders.preprocessing import Preprocessing

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
COCA_CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {
        **CLIP_CONFIG["vision_cfg"],
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 6,
        "output_tokens": True,
    },
    "text_cfg": {**CLIP_CONFIG["text_cfg"], "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {
        "width": 16,
        "context_length": 8,
        "vocab_size": 32,
        "layers": 1,
        "heads": 2,
        "mlp_ratio": 2,
    },
}
GREY = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every value, batch statistics too, so that no default hides a tensor left unloaded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator))
                value.add_(0.02 * torch.rand(value.shape, generator=generator))
    return module.eval()


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an RGB image with structure at several scales."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    noise = rng.integers(0, 60, (height, width, 3))
    pixels = np.asarray(coarse.resize((width, height))).astype(int) * 3 // 4 + noise
    return Image.fromarray(pixels.astype(np.uint8))


def open_clip_folder(path: Path, *, coca: bool = False, seed: int = 0) -> nn.Module:
    """Write a whole CLIP or CoCa as its hub directory; return the model."""
    config = COCA_CONFIG if coca else CLIP_CONFIG
    model = shake(open_clip.CoCa(**config) if coca else open_clip.CLIP(**config), seed)
    path.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": config, "preprocess_cfg": GREY}
    (path / "open_clip_config.json").write_text(json.dumps(described))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, path / "open_clip_model.safetensors")
    return model


def eman_checkpoint(path: Path, arch: str = "resnet8") -> dict[str, nn.Module]:
    """Write a checkpoint with EMAN's names; return its two backbones."""
    online = shake(build_backbone(arch, image_size=32), seed=1)
    target = shake(build_backbone(arch, image_size=32), seed=2)
    state = {"module.predictor.mlp.0.weight": torch.zeros(4, 4)}
    for side, module in (("online", online), ("target", target)):
        for name, value in module.state_dict().items():
            state[f"module.{side}_net.backbone.{name}"] = value
        state[f"module.{side}_net.neck.mlp.0.weight"] = torch.zeros(4, 4)
    torch.save({"epoch": 200, "arch": arch, "state_dict": state}, path)
    return {"online": online, "target": target}


def small_folder(path: Path, *, seed: int = 0, size: int = 16, mean: float = 0.5) -> nn.Module:
    """Write a small backbone as an encoder directory; return it."""
    module = shake(build_backbone("resnet8", image_size=size), seed)
    write_encoder_folder(
        path,
        module_state=module.state_dict(),
        arch="resnet8",
        image_size=size,
        preprocessing=Preprocessing(
            size=size, resize_to=size, resize="squash", mean=(mean,) * 3, std=(0.25,) * 3
        ),
        provenance={"method": "test"},
    )
    return module
