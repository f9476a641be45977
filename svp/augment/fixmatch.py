"""The weak and strong views of FixMatch and FlexMatch.

Sources: Sohn et al. 2020, "FixMatch", section 2.3; Zhang et al. 2021, "FlexMatch".

Shapes: B = batch, C = 3 channels, S = side in pixels.
"""

import dataclasses
from typing import Literal

import torch

from svp.augment import draws
from svp.augment.crop import pad_crop, random_resized_crop
from svp.augment.cutout import cutout
from svp.augment.randaugment import rand_augment


def to_float(x_BCSS: torch.Tensor) -> torch.Tensor:
    """Return images as float32 in [0, 1]; uint8 ones are divided by 255."""
    return x_BCSS if x_BCSS.is_floating_point() else x_BCSS.float().div_(255)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WeakView:
    """A random crop, mirrored half of the time.

    Attributes:
        crop: `pad` shifts within a reflect-padded image, as published for thumbnails; `resized`
            cuts a box of 8 to 100 % of the area, as usual for photographs.
        padding: For `pad`: pixels on each side, as a fraction of S.
        flip: Whether to mirror. Off for digits, text and other chiral images.
    """

    crop: Literal["pad", "resized"] = "pad"
    padding: float = 0.125
    flip: bool = True

    def __call__(self, x_BCSS: torch.Tensor, *, generator: draws.Source) -> torch.Tensor:
        """Return one weak view of each image as floats in [0, 1], from uint8 or such floats."""
        flip_p = 0.5 if self.flip else 0.0
        if self.crop == "resized":
            return random_resized_crop(to_float(x_BCSS), generator=generator, flip_p=flip_p)
        pad = min(round(self.padding * x_BCSS.shape[-1]), x_BCSS.shape[-1] - 1)
        return to_float(pad_crop(x_BCSS, generator=generator, pad=pad, flip_p=flip_p))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StrongView:
    """A weak view, then RandAugment, then Cutout.

    Attributes:
        weak: What comes first.
        operations: RandAugment operations per image.
        cutout: Largest side of the square cut out, as a fraction of S.
    """

    weak: WeakView = dataclasses.field(default_factory=WeakView)
    operations: int = 3
    cutout: float = 0.5

    def __call__(self, x_BCSS: torch.Tensor, *, generator: draws.Source) -> torch.Tensor:
        """Return one strong view of each image as floats in [0, 1], from uint8 or such floats."""
        x_BCSS = self.weak(x_BCSS, generator=generator)
        x_BCSS = rand_augment(x_BCSS, generator=generator, operations=self.operations)
        return cutout(x_BCSS, generator=generator, largest=self.cutout)
