"""Geometric augmentations: random resized crop, horizontal flip, padded crop.

Source: the random resized crop is that of Szegedy et al. 2015, "Going Deeper with Convolutions",
section 6, with torchvision's rule for boxes that do not fit.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F

from svp.augment import draws

_TRIES: Final = 10


def random_resized_crop(
    x_BCHW: torch.Tensor,
    *,
    generator: draws.Source,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    size: int | None = None,
    flip_p: float = 0.0,
) -> torch.Tensor:
    """Cut one random box per image and resize it, bilinearly, in a single pass.

    The box has an area uniform in `scale` (as a share of the image) and a log-uniform aspect
    ratio; a box that does not fit is drawn again, ten times, then replaced by the largest
    centred one within the ratios. Boxes lie anywhere, not on whole pixels, and a sample at a
    box's edge reads its true neighbours, which for boxes on whole pixels is torchvision's crop
    up to the outermost half pixel.

    Args:
        x_BCHW: Floating images.
        generator: Draws the boxes.
        scale: Smallest and largest share of the area, in (0, 1].
        ratio: Narrowest and widest width / height.
        size: Side of the square result; default: H and W as they are. Not meant for shrinking:
            samples are not low-passed.
        flip_p: Probability of also mirroring left-right, which costs nothing here.

    Returns:
        Images (B, C, size, size), or (B, C, H, W) without a size.
    """
    batch, channels, height, width = x_BCHW.shape
    device = x_BCHW.device

    def drawn(low: float, high: float, *shape: int) -> torch.Tensor:
        return draws.uniform((batch, *shape), low, high, generator=generator, device=device)

    area_BT = drawn(scale[0], scale[1], _TRIES)
    # Ratios are of pixels; w and h are shares of the width and the height.
    ratio_BT = drawn(math.log(ratio[0]), math.log(ratio[1]), _TRIES).exp() * (height / width)
    w_BT, h_BT = (area_BT * ratio_BT).sqrt(), (area_BT / ratio_BT).sqrt()
    fits_BT = (w_BT <= 1) & (h_BT <= 1)
    first_B1 = fits_BT.to(torch.uint8).argmax(dim=1, keepdim=True)
    any_B = fits_BT.any(dim=1)
    whole = width / height
    w_fallback = min(1.0, ratio[1] / whole)
    h_fallback = min(1.0, whole / ratio[0])
    w_B = torch.where(any_B, w_BT.gather(1, first_B1).squeeze(1), w_fallback)
    h_B = torch.where(any_B, h_BT.gather(1, first_B1).squeeze(1), h_fallback)
    # Centres in [-1, 1] coordinates; a box that fills the side has one place only.
    place_B2 = torch.where(any_B[:, None], drawn(-1.0, 1.0, 2), 0.0)
    flip_B = draws.chosen(batch, flip_p, generator=generator, device=device)

    theta_B23 = torch.zeros(batch, 2, 3, device=device)
    theta_B23[:, 0, 0] = torch.where(flip_B, -w_B, w_B)
    theta_B23[:, 0, 2] = place_B2[:, 0] * (1 - w_B)
    theta_B23[:, 1, 1] = h_B
    theta_B23[:, 1, 2] = place_B2[:, 1] * (1 - h_B)
    out = (height, width) if size is None else (size, size)
    grid_BHW2 = F.affine_grid(theta_B23, [batch, channels, *out], align_corners=False)
    return F.grid_sample(
        x_BCHW,
        grid_BHW2.to(x_BCHW.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )


def horizontal_flip(
    x_BCHW: torch.Tensor, *, generator: draws.Source, p: float = 0.5
) -> torch.Tensor:
    """Mirror each image left-right with probability `p`; any dtype."""
    flip_B = draws.chosen(len(x_BCHW), p, generator=generator, device=x_BCHW.device)
    return torch.where(flip_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)


def _reflected(index: torch.Tensor, size: int) -> torch.Tensor:
    # Reflection without repeating the edge: ... 2 1 | 0 1 2 ... n-1 | n-2 ...
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def pad_crop(
    x_BCHW: torch.Tensor, *, generator: draws.Source, pad: int = 4, flip_p: float = 0.0
) -> torch.Tensor:
    """Shift each image by up to `pad` whole pixels each way, reflecting at the border.

    Equals padding by reflection and cutting a random (H, W) window, but gathers the pixels once
    instead of writing the padded copy; any dtype.

    Args:
        x_BCHW: Images.
        generator: Draws the shifts.
        pad: Largest shift in pixels, below H and W.
        flip_p: Probability of also mirroring left-right, which costs nothing here.

    Returns:
        Images of the same shape.
    """
    batch, channels, height, width = x_BCHW.shape
    device = x_BCHW.device
    shift_B2 = draws.integers((batch, 2), 2 * pad + 1, generator=generator, device=device) - pad
    row_BH = _reflected(torch.arange(height, device=device) + shift_B2[:, :1], height)
    col_BW = _reflected(torch.arange(width, device=device) + shift_B2[:, 1:], width)
    if flip_p > 0:
        flip_B = draws.chosen(batch, flip_p, generator=generator, device=device)
        col_BW = torch.where(flip_B[:, None], col_BW.flip(1), col_BW)
    # Whole rows first, then pixels within them: several times faster than one index of four axes.
    line_N = (torch.arange(batch * channels, device=device).view(batch, channels, 1) * height) + (
        row_BH[:, None]
    )
    rows_BCHW = x_BCHW.reshape(-1, width).index_select(0, line_N.flatten()).view(x_BCHW.shape)
    return rows_BCHW.gather(3, col_BW[:, None, None].expand(x_BCHW.shape))
