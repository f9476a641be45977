"""From a decoded image to the square of bytes an encoder sees.

Resizing and cropping stay in bytes, by Pillow with antialiasing: exactly the path that open_clip's
and timm's own evaluation transforms take for Pillow images, so the result equals theirs bit for
bit. A pipeline that resizes float tensors instead never rounds; against it Pillow's two rounded
passes differ by 0.3 grey levels (of 255) on average and 1.3 at most, as measured. Bytes are a
quarter of the traffic of float32, and normalisation then runs on the device.

Shapes: S = side of the output square.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from svp.errors import InputError

Resize = Literal["shortest", "longest", "squash"]
UInt8Array = npt.NDArray[np.uint8]

_RESAMPLING: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_CHANNELS: Final = 3
# Far beyond any panorama; of longer strips only the middle is resized.
_STRIP_RATIO: Final = 32


def _centre(outer: int, inner: int) -> int:
    # Python's rounding of halves to even, as torchvision's centre crop.
    return round((outer - inner) / 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """A deterministic rendering of an image as (3, S, S) bytes, and its normalisation.

    Attributes:
        size: S, pixels.
        resize_to: Pixels of the side that `resize` speaks of, before the centre crop to `size`.
        resize: "shortest" scales the shorter side to `resize_to` and keeps proportions, "longest"
            the longer one and pads, "squash" both.
        interpolation: Name of Pillow's filter.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, positive.
        fill: Grey levels of padding, per channel.
    """

    size: int
    resize_to: int
    resize: Resize = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    fill: tuple[int, ...] = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.size < 1 or self.resize_to < 1:
            raise InputError(
                f"size and resize_to must be at least 1 px. Got {self.size} and {self.resize_to}. "
                "Correct the preprocessing of this encoder."
            )
        if self.resize not in ("shortest", "longest", "squash"):
            raise InputError(
                f"resize must be shortest, longest or squash. Got {self.resize!r}. "
                "Correct the preprocessing of this encoder."
            )
        if self.interpolation not in _RESAMPLING:
            raise InputError(
                f"interpolation must be one of {', '.join(_RESAMPLING)}. "
                f"Got {self.interpolation!r}. Correct the preprocessing of this encoder."
            )
        for name, values in (("mean", self.mean), ("std", self.std), ("fill", self.fill)):
            if len(values) != _CHANNELS:
                raise InputError(
                    f"{name} must have {_CHANNELS} numbers. Got {values!r}. "
                    "Correct the preprocessing of this encoder."
                )
        if min(self.std) <= 0:
            raise InputError(
                f"std must be positive. Got {self.std!r}. "
                "Correct the preprocessing of this encoder."
            )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; `from_json` reads them back."""
        values = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Build from `as_json`'s result; an unknown or missing field is an `InputError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) != known:
            raise InputError(
                f"preprocessing must have the fields {', '.join(sorted(known))}. "
                f"Got {', '.join(sorted(values))}. Write the encoder folder again."
            )
        fields = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**cast(dict[str, Any], fields))

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing and before the crop."""
        if self.resize == "squash":
            return self.resize_to, self.resize_to
        if self.resize == "shortest":
            # Truncation, as torchvision's Resize of one number.
            if width <= height:
                return self.resize_to, max(1, int(self.resize_to * height / width))
            return max(1, int(self.resize_to * width / height)), self.resize_to
        ratio = max(width, height) / self.resize_to
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def scaled_need(self, margin: int) -> Callable[[int, int], tuple[int, int]]:
        """Return the size that an image may shrink to before its resize, as a function of its own.

        Both sides stay at least `margin` times as long as `resized_size`.
        """

        def needed(width: int, height: int) -> tuple[int, int]:
            wide, high = self.resized_size(width, height)
            return margin * wide, margin * high

        return needed

    def _without_ends(self, image: Image.Image) -> Image.Image:
        # A strip of 1 x 100,000 px would grow to gigabytes before the crop throws it away.
        width, height = image.size
        longest = _STRIP_RATIO * min(width, height)
        if self.resize != "shortest" or max(width, height) <= longest:
            return image
        cut_width, cut_height = min(width, longest), min(height, longest)
        left, top = _centre(width, cut_width), _centre(height, cut_height)
        return image.crop((left, top, left + cut_width, top + cut_height))

    def image(self, image: Image.Image) -> Image.Image:
        """Return the S x S image of an RGB `image`."""
        image = self._without_ends(image)
        target = self.resized_size(*image.size)
        if image.size != target:
            image = image.resize(target, _RESAMPLING[self.interpolation])
        width, height = image.size
        size = self.size
        if width < size or height < size:
            canvas = Image.new(
                "RGB", (max(width, size), max(height, size)), cast(Any, tuple(self.fill))
            )
            canvas.paste(image, (max(0, size - width) // 2, max(0, size - height) // 2))
            image = canvas
            width, height = image.size
        if (width, height) == (size, size):
            return image
        left, top = _centre(width, size), _centre(height, size)
        return image.crop((left, top, left + size, top + size))

    def array(self, image: Image.Image) -> UInt8Array:
        """Return the bytes (S, S, 3) of an RGB `image`."""
        if image.mode != "RGB":
            raise InputError(
                f"An image must be decoded to RGB before preprocessing. Got mode {image.mode}. "
                "Decode it with svp.data.decode."
            )
        return np.asarray(self.image(image))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return `image` (RGB) as a contiguous uint8 tensor (3, S, S) on the CPU."""
        return torch.from_numpy(np.ascontiguousarray(self.array(image).transpose(2, 0, 1)))


def imagenet_preprocessing(size: int, *, interpolation: str = "bilinear") -> Preprocessing:
    """Return the common evaluation transform of ImageNet-style nets at `size` px.

    Above 64 px: shorter side to 8/7 of the size (256 for 224), then the centre. Up to 64 px the
    whole image is squashed to the square, because thumbnails fill their frame.
    """
    if size > 64:
        return Preprocessing(size=size, resize_to=size * 8 // 7, interpolation=interpolation)
    return Preprocessing(size=size, resize_to=size, resize="squash", interpolation=interpolation)
