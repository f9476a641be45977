"""Named ways from encoded bytes to pixels; the name is part of an encoder's identity.

An encoder's name chooses one, as in `timm:resnet50+nvjpeg`.

- `pillow`: every image decoded whole by Pillow. The default.
- `pillow-reduced`: a JPEG decoded at 1/2, 1/4 or 1/8 where both sides stay at least `MARGIN` times
  what the encoder's resize wants. Other formats as `pillow`.
- `nvjpeg`: plain JPEGs by nvJPEG on the GPU, through torchvision; what it does not read, and every
  other format, as `pillow`. The pixels come back to the CPU, where resizing is the same.

Decoders differ by a grey level here and there, reduced ones by more, so vectors differ too.
"""

import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from PIL import Image

from svp.data.decode import DECODER, Size, decode_image, plain_jpeg, upright
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.spec import DECODERS
from svp.errors import InputError

DecoderName = Literal["pillow", "pillow-reduced", "nvjpeg"]

# At 1, a photograph of 500 x 400 px shrunk to 32 px moves by 2 grey levels on average and 17 at
# most; at 2 none of our measurements exceeds 0.23 and 2, and most of the time is saved already.
MARGIN: Final = 2
_RGB: Final = 3  # torchvision.io.ImageReadMode.RGB


class Pillow:
    """Decodes by Pillow, whole or at the scale that `preprocessing` leaves room for."""

    def __init__(self, reduced_for: Preprocessing | None = None) -> None:
        self._needed: Callable[[int, int], Size] | None = None
        if reduced_for is not None:
            self._needed = reduced_for.scaled_need(MARGIN)

    def __call__(self, data: bytes) -> Image.Image:
        """Return one image; raises as `svp.data.decode.decode_image`."""
        return decode_image(data, needed=self._needed)


class NvJpeg:
    """Decodes plain JPEGs on a GPU, each thread on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        _nvjpeg_version()
        self._device, self._own = device, threading.local()

    def ahead(self, data: Sequence[bytes]) -> Sequence[Image.Image | None]:
        """Return the JPEGs among `data`; None for what Pillow must decode, or refuse."""
        images: list[Image.Image | None] = [None] * len(data)
        heads = [plain_jpeg(one) for one in data]
        chosen = [place for place, head in enumerate(heads) if head is not None]
        for place, pixels in zip(chosen, self._decode([data[p] for p in chosen]), strict=True):
            head = heads[place]
            if pixels is not None and head is not None and pixels.shape[:2] == head[0][::-1]:
                images[place] = upright(Image.fromarray(pixels), head[1])
        return images

    def _decode(self, data: Sequence[bytes]) -> Sequence[np.ndarray[Any, Any] | None]:
        if not data:
            return []
        if not hasattr(self._own, "stream"):
            # Not the default stream: there, pixels would wait behind the encoder's forward pass.
            self._own.stream = cast(Any, torch.cuda.Stream)(self._device)
        encoded = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in data]
        try:
            with torch.cuda.stream(self._own.stream):
                # The operator itself: its wrapper warns in every call that it will move.
                decode = cast(Any, torch.ops.image).decode_jpegs_cuda
                found = decode(encoded, _RGB, self._device)
                return [one.permute(1, 2, 0).contiguous().cpu().numpy() for one in found]
        except RuntimeError:
            # One bad image, or too little memory, fails a whole call. Pillow says which, and why.
            return [self._decode([one])[0] for one in data] if len(data) > 1 else [None]

    def __call__(self, data: bytes) -> Image.Image:
        """Return an image that `ahead` left out, by Pillow."""
        return decode_image(data)


ImageDecoder = Pillow | NvJpeg
"""Turns encoded bytes into RGB images; safe to use from several threads."""


def check_decoder(name: str) -> DecoderName:
    """Return `name`, or raise `InputError` if there is no such decoder."""
    if name not in DECODERS:
        raise InputError(
            f"decoder must be one of {', '.join(DECODERS)}. Got {name!r}. Use pillow if in doubt."
        )
    return cast(DecoderName, name)


def decoder_identity(name: str) -> dict[str, Any]:
    """Return what of a decoder moves a vector, as JSON values.

    Raises:
        InputError: If there is no such decoder, here or at all.
    """
    name = check_decoder(name)
    if name == "pillow":
        return dict(DECODER)
    if name == "pillow-reduced":
        return {**DECODER, "jpeg_scale": "reduced", "jpeg_margin": MARGIN}
    return {**DECODER, "jpeg": "nvjpeg", "jpeg_version": _nvjpeg_version()}


def image_decoder(
    name: str, preprocessing: Preprocessing, device: str | torch.device
) -> ImageDecoder:
    """Return the decoder called `name`.

    Args:
        name: See the module.
        preprocessing: What the images are decoded for.
        device: GPU of `nvjpeg`.

    Raises:
        InputError: If there is no such decoder, or no GPU for it.
    """
    name = check_decoder(name)
    if name == "nvjpeg":
        device = torch.device(device)
        if device.type != "cuda":
            raise InputError(
                f"The decoder nvjpeg must have a GPU. Got the device {device}. Use --device cuda, "
                "or the decoder pillow, whose embeddings are others."
            )
        return NvJpeg(device)
    return Pillow(preprocessing if name == "pillow-reduced" else None)


def _nvjpeg_version() -> str:
    # nvJPEG comes with CUDA, and the way to it with torchvision.
    try:
        import torchvision.io

        del torchvision
        found = hasattr(torch.ops.image, "decode_jpegs_cuda") and torch.version.cuda is not None
    except (ImportError, RuntimeError):
        found = False
    if not found or not torch.cuda.is_available():
        raise InputError(
            "The decoder nvjpeg must have a CUDA device and a torchvision built with nvJPEG. Got "
            "none. Use the decoder pillow, whose embeddings are others."
        )
    vision = ".".join(metadata.version("torchvision").split(".")[:2])
    return f"cuda {torch.version.cuda}, torchvision {vision}"
