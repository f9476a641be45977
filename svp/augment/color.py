"""Colour augmentations: jitter, grey, solarise, and Gaussian blur.

Images are RGB in [0, 1] and stay there. Luma weights are ITU-R BT.601's, as in Pillow and
torchvision.
"""

import dataclasses
from typing import Final

import torch
import torch.nn.functional as F

from svp.augment import draws
from svp.errors import InputError

_LUMA: Final = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Jitter:
    """How far colours move.

    Attributes:
        brightness: Factor uniform in [1 - brightness, 1 + brightness].
        contrast: Same, around the image's mean luma.
        saturation: Same, around each pixel's luma.
        hue: Shift uniform in [-hue, hue] of the colour circle, at most 0.5.
        p: Probability that an image is jittered at all.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    p: float = 0.8

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InputError(f"jitter {name} must be in [0, {most:g}]. Got {value}. Lower it.")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"jitter hue must be in [0, 0.5]. Got {self.hue}. Lower it.")
        if not 0 <= self.p <= 1:
            raise InputError(f"jitter p must be a probability. Got {self.p}. Use one in [0, 1].")


def _luma(x_B3HW: torch.Tensor) -> torch.Tensor:
    red, green, blue = x_B3HW.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze_(1)


def _factors(spread: float, applied_B: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn_B = draws.uniform(
        (len(applied_B),), 1 - spread, 1 + spread, generator=generator, device=applied_B.device
    )
    return torch.where(applied_B, drawn_B, 1.0)[:, None, None, None]


def shift_hue(x_B3HW: torch.Tensor, turn_B: torch.Tensor) -> torch.Tensor:
    """Rotate hues in HSV space, keeping value and saturation.

    Args:
        x_B3HW: RGB in [0, 1].
        turn_B: Share of the colour circle per image; 1/3 maps red to green.

    Returns:
        RGB in [0, 1], same shape.
    """
    red, green, blue = x_B3HW.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp_min(1e-8).reciprocal_()
    # Hue in sixths of the circle, measured from the largest channel.
    sixths = torch.where(
        value == red,
        (green - blue).mul_(scale),
        torch.where(
            value == green, (blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4)
        ),
    )
    sixths += 6 * turn_B[:, None, None]
    out = torch.empty_like(x_B3HW)
    for channel, offset in enumerate((5, 3, 1)):
        # k runs over the circle; the channel falls short of `value` by chroma on one third of
        # it, by nothing on another, linearly in between.
        k = (sixths + offset).remainder_(6)
        short = torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma)
        torch.sub(value, short, out=out[:, channel])
    return out


def color_jitter(
    x_B3HW: torch.Tensor, jitter: Jitter, *, generator: torch.Generator
) -> torch.Tensor:
    """Move brightness, contrast, saturation and hue of each image by its own random amounts.

    The order of the four is random per batch, not per image: a different order for every image
    would forbid batching and the orders average out over steps.

    Args:
        x_B3HW: RGB in [0, 1].
        jitter: How far.
        generator: Draws the amounts and the order.

    Returns:
        RGB in [0, 1], same shape.
    """
    device = x_B3HW.device
    order = torch.randperm(4, generator=generator, device=generator.device).tolist()
    applied_B = draws.chosen(len(x_B3HW), jitter.p, generator=generator, device=device)
    brightness = _factors(jitter.brightness, applied_B, generator)
    contrast = _factors(jitter.contrast, applied_B, generator)
    saturation = _factors(jitter.saturation, applied_B, generator)
    turn_B = draws.uniform(
        (len(x_B3HW),), -jitter.hue, jitter.hue, generator=generator, device=device
    )
    x = x_B3HW
    for step in order:
        if step == 0 and jitter.brightness > 0:
            x = (x * brightness).clamp_(0, 1)
        elif step == 1 and jitter.contrast > 0:
            mean = _luma(x).mean(dim=(2, 3), keepdim=True)
            x = torch.lerp(mean.expand_as(x), x, contrast).clamp_(0, 1)
        elif step == 2 and jitter.saturation > 0:
            x = torch.lerp(_luma(x).expand_as(x), x, saturation).clamp_(0, 1)
        elif step == 3 and jitter.hue > 0:
            x = shift_hue(x, torch.where(applied_B, turn_B, 0.0))
    return x


def random_grey(
    x_B3HW: torch.Tensor, *, generator: torch.Generator, p: float = 0.2
) -> torch.Tensor:
    """Replace each image's colours by its luma with probability `p`."""
    grey_B = draws.chosen(len(x_B3HW), p, generator=generator, device=x_B3HW.device)
    return torch.where(grey_B[:, None, None, None], _luma(x_B3HW), x_B3HW)


def random_solarise(
    x_BCHW: torch.Tensor, *, generator: torch.Generator, p: float = 0.2, threshold: float = 0.5
) -> torch.Tensor:
    """Invert the pixels at or above `threshold` of each image with probability `p`."""
    applied_B = draws.chosen(len(x_BCHW), p, generator=generator, device=x_BCHW.device)
    inverted = applied_B[:, None, None, None] & (x_BCHW >= threshold)
    return torch.where(inverted, 1 - x_BCHW, x_BCHW)


def random_blur(
    x_BCHW: torch.Tensor,
    *,
    generator: torch.Generator,
    p: float = 0.5,
    sigma: tuple[float, float] = (0.1, 2.0),
) -> torch.Tensor:
    """Blur each image with probability `p` by a Gaussian of its own width.

    Args:
        x_BCHW: Floating images with H, W > 3 * sigma[1].
        generator: Draws who is blurred and how much.
        p: Probability per image; only the drawn images cost anything.
        sigma: Smallest and largest standard deviation in pixels, uniform between. Kernels are
            cut at three times the largest.

    Returns:
        Images of the same shape; the border is reflected.
    """
    batch, channels, height, width = x_BCHW.shape
    device = x_BCHW.device
    rows_R = draws.chosen_rows(batch, p, generator=generator, device=device)
    sigma_R = draws.uniform((len(rows_R),), *sigma, generator=generator, device=device)
    if len(rows_R) == 0:
        return x_BCHW
    radius = min(round(3 * sigma[1]), height - 1, width - 1)
    offset_K = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    kernel_RK = torch.softmax(-0.5 * (offset_K / sigma_R[:, None]) ** 2, dim=1)
    # One depthwise convolution per axis: every channel of every image is its own group.
    groups = len(rows_R) * channels
    kernel_G1K = kernel_RK.to(x_BCHW.dtype).repeat_interleave(channels, dim=0)[:, None]
    picked = x_BCHW if len(rows_R) == batch else x_BCHW[rows_R]
    x_1GHW = picked.reshape(1, groups, height, width)
    x_1GHW = F.conv2d(
        F.pad(x_1GHW, (radius, radius, 0, 0), mode="reflect"),
        kernel_G1K[:, :, None, :],
        groups=groups,
    )
    x_1GHW = F.conv2d(
        F.pad(x_1GHW, (0, 0, radius, radius), mode="reflect"),
        kernel_G1K[:, :, :, None],
        groups=groups,
    )
    blurred = x_1GHW.reshape(len(rows_R), channels, height, width).clamp_(0, 1)
    return blurred if len(rows_R) == batch else x_BCHW.index_copy(0, rows_R, blurred)
