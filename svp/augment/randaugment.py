"""RandAugment as batched tensor operations: each image draws its own operations and strengths.

Images are sorted by operation and each group is transformed at once, so a batch costs a few dozen
kernels however large it is. With a CPU generator the host knows the groups without waiting.

Sources: Cubuk et al. 2020, "RandAugment"; the 14 operations, their ranges and the strength drawn
uniformly per use follow FixMatch (Sohn et al. 2020, appendix D) as FlexMatch uses it. Definitions
are Pillow's (nearest neighbour, black outside), except that values are not rounded to 8 bits.

Shapes: B = batch, C = 3 channels, S = side in pixels, K = operations per image.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

from svp.augment import draws

Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps images (G, C, S, S) in [0, 1] and strengths uniform in [0, 1] (G,) to images."""

_MAX_ROTATION: Final = torch.pi / 6
_MAX_SHEAR: Final = 0.3
_MAX_SHIFT: Final = 0.3


def rand_augment(
    x_BCSS: torch.Tensor, *, generator: draws.Source, operations: int = 3
) -> torch.Tensor:
    """Return images after `operations` random operations each, drawn with replacement.

    Args:
        x_BCSS: Images in [0, 1], float; not modified.
        generator: Draws operations and strengths.
        operations: K; 0 returns the images as they are.
    """
    if operations == 0 or not len(x_BCSS):
        return x_BCSS
    batch, device = len(x_BCSS), x_BCSS.device
    choices = len(OPERATIONS)
    shape = (operations, batch)
    drawn_KB = draws.integers(
        shape, choices, generator=generator, device=draws.home(generator), images=1
    )
    strength_KB = draws.uniform(shape, 0, 1, generator=generator, device=device, images=1)
    # Images stay sorted from one round to the next; a draw belongs to its image all the same.
    sizes_K: list[list[int]] = functional.one_hot(drawn_KB, choices).sum(dim=1).tolist()
    origin_B = torch.arange(batch, device=drawn_KB.device)
    rounds = []
    for drawn_B in drawn_KB:
        by_op_B = drawn_B[origin_B].argsort(stable=True)
        origin_B = origin_B[by_op_B]
        rounds.append(torch.stack([by_op_B, origin_B]))
    order_K2B = torch.stack(rounds).to(device, non_blocking=True)
    for (by_op_B, origin_B), drawn_B, sizes in zip(order_K2B, strength_KB, sizes_K, strict=True):
        x_BCSS, strength_B = x_BCSS[by_op_B], drawn_B[origin_B]
        start = 0
        for operation, size in zip(OPERATIONS.values(), sizes, strict=True):
            group = slice(start, start + size)
            start += size
            if size and operation is not _identity:
                x_BCSS[group] = operation(x_BCSS[group], strength_B[group])
    result_BCSS = torch.empty_like(x_BCSS)
    result_BCSS[origin_B] = x_BCSS
    return result_BCSS


def _blend(weak: torch.Tensor, x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    """Keep a share of the image uniform in [0.05, 0.95] and fill up with `weak`."""
    share_G111 = (0.05 + 0.9 * strength_G)[:, None, None, None]
    return weak + share_G111 * (x_GCSS - weak)


def _luma(x_GCSS: torch.Tensor) -> torch.Tensor:
    weights_C = torch.tensor([0.299, 0.587, 0.114], dtype=x_GCSS.dtype, device=x_GCSS.device)
    return (x_GCSS * weights_C[:, None, None]).sum(dim=1, keepdim=True)


def _identity(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    del strength_G
    return x_GCSS


def _auto_contrast(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    del strength_G
    low, high = x_GCSS.amin(dim=(2, 3), keepdim=True), x_GCSS.amax(dim=(2, 3), keepdim=True)
    span = high - low
    # A channel of one value has nothing to stretch.
    flat = span < 1 / 255
    return torch.where(flat, x_GCSS, (x_GCSS - low) / torch.where(flat, 1, span))


def _brightness(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    return _blend(torch.zeros_like(x_GCSS), x_GCSS, strength_G)


def _colour(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    return _blend(_luma(x_GCSS), x_GCSS, strength_G)


def _contrast(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    return _blend(_luma(x_GCSS).mean(dim=(2, 3), keepdim=True), x_GCSS, strength_G)


def _equalize(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    del strength_G
    group, channels, size, _ = x_GCSS.shape
    level_RP = (x_GCSS * 255).round().to(torch.int64).view(group * channels, size * size)
    count_R256 = level_RP.new_zeros(group * channels, 256)
    count_R256.scatter_add_(1, level_RP, torch.ones_like(level_RP))
    brightest_R1 = level_RP.amax(dim=1, keepdim=True)
    step_R1 = (size * size - count_R256.gather(1, brightest_R1)) // 255
    below_R256 = count_R256.cumsum(dim=1) - count_R256
    table_R256 = (below_R256 + step_R1 // 2) // step_R1.clamp(min=1)
    equal_RP = table_R256.clamp(max=255).gather(1, level_RP).to(x_GCSS.dtype) / 255
    # Pillow leaves a channel alone when almost all of it is the brightest value.
    kept_RP = torch.where(step_R1 == 0, level_RP.to(x_GCSS.dtype) / 255, equal_RP)
    return kept_RP.view_as(x_GCSS)


def _posterize(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    bits_G = 4 + (strength_G * 4).floor()
    width_G111 = torch.exp2(8 - bits_G)[:, None, None, None]
    return (x_GCSS * 255 / width_G111).floor() * width_G111 / 255


def _sharpness(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    channels = x_GCSS.shape[1]
    kernel_33 = x_GCSS.new_full((3, 3), 1 / 13)
    kernel_33[1, 1] = 5 / 13
    smooth = x_GCSS.clone()  # Pillow leaves the border as it is.
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(
        x_GCSS, kernel_33.expand(channels, 1, 3, 3), groups=channels
    )
    return _blend(smooth, x_GCSS, strength_G)


def _solarize(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    return torch.where(x_GCSS >= strength_G[:, None, None, None], 1 - x_GCSS, x_GCSS)


def _warp(x_GCSS: torch.Tensor, rows: tuple[tuple[torch.Tensor | float, ...], ...]) -> torch.Tensor:
    """Sample the input at `rows` @ (x, y, 1), all in [-1, 1] coordinates."""
    zero_G = x_GCSS.new_zeros(len(x_GCSS))
    theta_G23 = torch.stack(
        [torch.stack([zero_G + entry for entry in row], dim=1) for row in rows], dim=1
    )
    grid = functional.affine_grid(theta_G23, list(x_GCSS.shape), align_corners=False)
    return functional.grid_sample(x_GCSS, grid, mode="nearest", align_corners=False)


def _rotate(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    angle_G = (2 * strength_G - 1) * _MAX_ROTATION
    cos_G, sin_G = angle_G.cos(), angle_G.sin()
    return _warp(x_GCSS, ((cos_G, -sin_G, 0.0), (sin_G, cos_G, 0.0)))


def _shear_x(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    shear_G = (2 * strength_G - 1) * _MAX_SHEAR
    # Pillow shears about the first row, which lies at y = -1 here.
    return _warp(x_GCSS, ((1.0, shear_G, shear_G), (0.0, 1.0, 0.0)))


def _shear_y(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    shear_G = (2 * strength_G - 1) * _MAX_SHEAR
    return _warp(x_GCSS, ((1.0, 0.0, 0.0), (shear_G, 1.0, shear_G)))


def _translate_x(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    return _warp(x_GCSS, ((1.0, 0.0, (2 * strength_G - 1) * 2 * _MAX_SHIFT), (0.0, 1.0, 0.0)))


def _translate_y(x_GCSS: torch.Tensor, strength_G: torch.Tensor) -> torch.Tensor:
    return _warp(x_GCSS, ((1.0, 0.0, 0.0), (0.0, 1.0, (2 * strength_G - 1) * 2 * _MAX_SHIFT)))


OPERATIONS: Final[dict[str, Operation]] = {
    "identity": _identity,
    "auto-contrast": _auto_contrast,
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
    "rotate": _rotate,
    "shear-x": _shear_x,
    "shear-y": _shear_y,
    "translate-x": _translate_x,
    "translate-y": _translate_y,
}
"""The 14 operations, by name."""
