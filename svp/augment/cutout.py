"""Cutout: a grey square over a random place of each image.

Source: DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with
Cutout". Side, place and colour follow the strong view of FixMatch and FlexMatch: a side uniform in
[0, 0.5] of the image's, a centre uniform over the image, clipped at the border.

Shapes: B = batch, C = 3 channels, S = side in pixels.
"""

from typing import Final

import torch

from svp.augment import draws

GREY: Final = (125 / 255, 123 / 255, 114 / 255)


def cutout(x_BCSS: torch.Tensor, *, generator: draws.Source, largest: float = 0.5) -> torch.Tensor:
    """Return images with one square each replaced by grey.

    Args:
        x_BCSS: Images in [0, 1], float; not modified.
        generator: Draws sides and places.
        largest: Upper end of the side, as a fraction of S; 0 returns the images as they are.
    """
    if largest == 0:
        return x_BCSS
    batch, _, _, size = x_BCSS.shape
    device = x_BCSS.device
    draw_3B = draws.uniform((3, batch), 0, 1, generator=generator, device=device, images=1)
    side_B = draw_3B[0] * largest * size
    first_2B = (draw_3B[1:] * size - side_B / 2).clamp(min=0).floor()
    pixel_S = torch.arange(size, device=device)
    inside_2BS = (pixel_S >= first_2B[..., None]) & (pixel_S < (first_2B + side_B)[..., None])
    hidden_B1SS = (inside_2BS[0][:, :, None] & inside_2BS[1][:, None, :])[:, None]
    grey_C11 = torch.tensor(GREY, dtype=x_BCSS.dtype, device=device)[:, None, None]
    return torch.where(hidden_B1SS, grey_C11, x_BCSS)
