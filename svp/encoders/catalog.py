"""What encoders there are and how to name them; for `svp encoders`."""

import dataclasses
from typing import Final

from svp.encoders.spec import near_names, plugins
from svp.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One kind of encoder.

    Attributes:
        name: What stands before the colon; "folder" for directories.
        syntax: How to write one.
        examples: Specs that are right as they stand, but for paths.
        summary: One sentence.
    """

    name: str
    syntax: str
    examples: tuple[str, ...]
    summary: str


_BUILT_IN: Final = (
    Family(
        name="open_clip",
        syntax="open_clip:MODEL[/PRETRAINED][@PATH]",
        examples=(
            "open_clip:ViT-B-32/openai",
            "open_clip:coca_ViT-B-32/laion2b_s13b_b90k",
            "open_clip:ViT-B-32@weights.pt",
            "open_clip:ViT-L-14/laion2b_s32b_b82k@weights.safetensors",
            "open_clip:@directory-with-open_clip_config.json",
        ),
        summary="Image towers of CLIP and CoCa, projected, not normalised.",
    ),
    Family(
        name="timm",
        syntax="timm:MODEL[.TAG][@PATH]",
        examples=("timm:resnet50.a1_in1k", "timm:vit_small_patch14_dinov2.lvd142m"),
        summary="Any image model of timm, pooled, with its own preprocessing.",
    ),
    Family(
        name="byol",
        syntax="byol:ARCH@PATH[#online|target]",
        examples=("byol:resnet50@res50_byol_eman_200ep.pth.tar#online",),
        summary="Backbones of BYOL, EMAN, MoCo, lightly and torchvision-style checkpoints.",
    ),
    Family(
        name="folder",
        syntax="DIRECTORY",
        examples=("./encoder",),
        summary="A directory that `svp pretrain` or a refresh wrote.",
    ),
)


def families() -> tuple[Family, ...]:
    """Return the built-in families, then the installed plug-ins; loads no library of models."""
    extra = tuple(
        Family(
            name=name,
            syntax=f"{name}:MODEL[@PATH]",
            examples=(),
            summary=f"Plug-in {point.value}.",
        )
        for name, point in sorted(plugins().items())
    )
    return _BUILT_IN + extra


def models(family: str) -> list[str]:
    """Return the model names of a family, as they stand before any tag; imports its library.

    Raises:
        InputError: If the family is unknown or has no list of models.
    """
    if family == "open_clip":
        from svp.encoders import openclip

        return openclip.models()
    if family == "timm":
        from svp.encoders import timmodels

        return timmodels.models()
    if family == "byol":
        from svp.encoders.backbones import ARCHITECTURES

        return list(ARCHITECTURES)
    raise InputError(
        f"The family must be one with a list of models: open_clip, timm, byol. Got {family!r}. "
        f"{near_names(family, ('open_clip', 'timm', 'byol'))}"
    )
