"""The two views of BYOL.

Source: Grill et al. 2020, "Bootstrap Your Own Latent", appendix B, with EMAN's crop of at least
a fifth of the image (Cai et al. 2021, "Exponential Moving Average Normalization for
Self-supervised and Semi-supervised Learning").
"""

import dataclasses

import torch

from svp.augment.color import Jitter, color_jitter, random_blur, random_grey, random_solarise
from svp.augment.crop import random_resized_crop
from svp.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ViewsConfig:
    """What happens to an image on its way into the two views.

    Attributes:
        crop_scale: Smallest and largest share of the area a crop keeps.
        crop_ratio: Narrowest and widest width / height of a crop.
        flip_p: Probability of mirroring; 0 where left and right mean something, as in digits.
        jitter: Colour jitter, its probability included.
        grey_p: Probability of losing all colour.
        blur_p: Probability of a blur, in the first and in the second view.
        blur_sigma: Smallest and largest standard deviation of the blur in pixels.
        solarise_p: Probability of solarising, in the first and in the second view.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    jitter: Jitter = dataclasses.field(default_factory=Jitter)
    grey_p: float = 0.2
    blur_p: tuple[float, float] = (1.0, 0.1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_p: tuple[float, float] = (0.0, 0.2)

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise InputError(
                f"crop_scale must satisfy 0 < low <= high <= 1. Got {self.crop_scale}. "
                "It is a share of the image's area."
            )
        low, high = self.crop_ratio
        if not 0 < low <= 1 <= high:
            raise InputError(
                f"crop_ratio must satisfy 0 < low <= 1 <= high. Got {self.crop_ratio}. "
                "It is a width over a height."
            )
        low, high = self.blur_sigma
        if not 0 < low <= high:
            raise InputError(
                f"blur_sigma must satisfy 0 < low <= high. Got {self.blur_sigma}. "
                "It is in pixels; set blur_p to 0 for no blur."
            )
        for name in ("flip_p", "grey_p", "blur_p", "solarise_p"):
            value = getattr(self, name)
            if not all(0 <= p <= 1 for p in (value if isinstance(value, tuple) else (value,))):
                raise InputError(
                    f"{name} must be a probability. Got {value}. Use numbers in [0, 1]."
                )


def views_224() -> ViewsConfig:
    """Return the published views for photographs at 224 px."""
    return ViewsConfig()


def views_32() -> ViewsConfig:
    """Return views for thumbnails: larger crops, and no blur, as there is little to see already."""
    return ViewsConfig(crop_scale=(0.3, 1.0), blur_p=(0.0, 0.0), solarise_p=(0.0, 0.0))


def views_digits() -> ViewsConfig:
    """Return views for small grey glyphs: never mirrored, never inverted, crops kept large."""
    return ViewsConfig(
        crop_scale=(0.4, 1.0),
        flip_p=0.0,
        jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.0, hue=0.0),
        grey_p=0.0,
        blur_p=(0.0, 0.0),
        solarise_p=(0.0, 0.0),
    )


class BYOLViews:
    """Turns a batch into its two views; frozen, and without any random state of its own."""

    def __init__(self, config: ViewsConfig, image_size: int) -> None:
        self._config = config
        self._image_size = image_size

    def __call__(
        self, x_B3HW: torch.Tensor, *, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two random views (B, 3, S, S) of RGB images in [0, 1]."""
        return self._view(x_B3HW, 0, generator), self._view(x_B3HW, 1, generator)

    def _view(self, x_B3HW: torch.Tensor, which: int, generator: torch.Generator) -> torch.Tensor:
        config = self._config
        x = random_resized_crop(
            x_B3HW,
            generator=generator,
            scale=config.crop_scale,
            ratio=config.crop_ratio,
            size=self._image_size,
            flip_p=config.flip_p,
        )
        if config.jitter.p > 0:
            x = color_jitter(x, config.jitter, generator=generator)
        if config.grey_p > 0:
            x = random_grey(x, generator=generator, p=config.grey_p)
        if config.blur_p[which] > 0:
            x = random_blur(x, generator=generator, p=config.blur_p[which], sigma=config.blur_sigma)
        if config.solarise_p[which] > 0:
            x = random_solarise(x, generator=generator, p=config.solarise_p[which])
        return x
