"""Backbones built here, with random weights: torchvision's residual nets and small ones.

`resnet18` and `resnet50` keep torchvision's parameter names, so its checkpoints and those of
BYOL, EMAN and lightly load without renaming. The small nets are for thumbnails on a CPU: their
stem brings any image to a grid of at most 16 x 16 before the first block, because on a CPU the
cost sits in the early, large grids while a linear probe gains more from width. They work from
8 x 8 px upwards.

Sources: He et al. 2016, "Deep Residual Learning for Image Recognition", sections 3.3 and 4.2 (the
6n+2 nets); the stride-1 stem without max-pooling for thumbnails follows Chen et al. 2020, "A
Simple Framework for Contrastive Learning of Visual Representations", appendix B.9.

Shapes: B = batch, S = image side in pixels, d = num_features.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Final, cast

import torch
from torch import nn
from torchvision.models import resnet as torchvision_resnet

from svp.errors import InputError

_THUMBNAIL_PX: Final = 64
_MIN_PX: Final = 8
_SMALL_GRID: Final = 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Small:
    blocks: int
    widths: tuple[int, int, int]


_SMALL: Final[Mapping[str, _Small]] = {
    "resnet8": _Small(blocks=1, widths=(32, 64, 128)),
    "resnet8-wide": _Small(blocks=1, widths=(64, 128, 256)),
    "resnet14": _Small(blocks=2, widths=(32, 64, 128)),
    "resnet14-wide": _Small(blocks=2, widths=(64, 128, 256)),
}
_LARGE: Final = ("resnet18", "resnet50")

ARCHITECTURES: Final[tuple[str, ...]] = (*_SMALL, *_LARGE)
"""The names `build_backbone` knows, cheapest first."""


class SmallResNet(nn.Module):
    """A residual net of three stages on grids of at most 16, 8 and 4 px.

    Attributes:
        num_features: d, the width of the last stage.
    """

    def __init__(self, blocks: int, widths: tuple[int, int, int], image_size: int) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.stem = _small_stem(widths[0], image_size)
        self.layer1 = _small_stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = _small_stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _small_stage(widths[1], widths[2], blocks, stride=2)

    def forward(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        """Return pooled, non-negative features (B, d) of normalised images."""
        x_Bdhw = self.layer3(self.layer2(self.layer1(self.stem(x_B3SS))))
        return cast(torch.Tensor, x_Bdhw.mean(dim=(2, 3)))


def _small_stem(width: int, image_size: int) -> nn.Sequential:
    halvings = 0
    while image_size > _SMALL_GRID << halvings:
        halvings += 1
    layers: list[nn.Module] = []
    channels = 3
    for step in range(max(halvings, 1)):
        # Half the width per halving still to come: cost per step stays level as the grid shrinks.
        out = max(width >> (max(halvings, 1) - 1 - step), 16)
        stride = 2 if halvings else 1
        layers += [
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
        channels = out
    return nn.Sequential(*layers)


def _small_stage(channels: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or channels != width:
        downsample = nn.Sequential(
            nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    stage: list[nn.Module] = [
        torchvision_resnet.BasicBlock(channels, width, stride=stride, downsample=downsample)
    ]
    stage += [torchvision_resnet.BasicBlock(width, width) for _ in range(blocks - 1)]
    return nn.Sequential(*stage)


def _large(arch: str, image_size: int) -> nn.Module:
    block = torchvision_resnet.BasicBlock if arch == "resnet18" else torchvision_resnet.Bottleneck
    layers = (2, 2, 2, 2) if arch == "resnet18" else (3, 4, 6, 3)
    net = cast(nn.Module, torchvision_resnet.ResNet(block, layers, num_classes=1))
    if image_size <= _THUMBNAIL_PX:
        net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    net.num_features = 512 * block.expansion
    return net


def _initialise(net: nn.Module, generator: torch.Generator) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def build_backbone(
    arch: str, *, image_size: int, generator: torch.Generator | None = None
) -> nn.Module:
    """Build a backbone with random weights on the CPU.

    Args:
        arch: One of `ARCHITECTURES`.
        image_size: S, the side of its square input in pixels, at least 8. It decides the stem:
            for S <= 64 the torchvision nets get a 3x3 stride-1 one without max-pooling.
        generator: Draws the weights (convolutions: Kaiming normal, fan-out); default: one seeded
            with 0. The global random state is neither read nor moved.

    Returns:
        A module with an int attribute `num_features` = d that maps normalised float images
        (B, 3, S, S) to pooled features (B, d), taken after the last ReLU and so never negative.

    Raises:
        InputError: If `arch` is unknown (near names are listed) or `image_size` is below 8.
    """
    if arch not in ARCHITECTURES:
        near = difflib.get_close_matches(arch, ARCHITECTURES, n=3, cutoff=0.4) or ARCHITECTURES
        raise InputError(
            f"arch must be one of {', '.join(ARCHITECTURES)}. Got {arch!r}. "
            f"Did you mean {' or '.join(near)}?"
        )
    if image_size < _MIN_PX:
        raise InputError(
            f"image_size must be at least {_MIN_PX} px. Got {image_size}. Use a larger size; "
            "images are resized to it."
        )
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    # Built on the meta device: constructors would draw weights from the global random state.
    with torch.device("meta"):
        small = _SMALL.get(arch)
        net = (
            _large(arch, image_size)
            if small is None
            else SmallResNet(small.blocks, small.widths, image_size)
        )
    net = net.to_empty(device="cpu")
    _initialise(net, generator)
    return net
