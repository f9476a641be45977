"""Thumbnails that travel inside the page."""

import base64
import dataclasses
import io
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from PIL import Image

# 160 px is twice what a card shows, for dense screens.
EDGE: Final = 160
# Below this a picture is kept losslessly and shown with square pixels: JPEG smears 32 px images.
LOSSLESS_EDGE: Final = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Thumbnail:
    """A small picture, encoded.

    Attributes:
        mime: Its type.
        data: The encoded bytes.
        width: In pixels.
        height: In pixels.
    """

    mime: Literal["image/jpeg", "image/png"]
    data: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


def make_thumbnail(image: "Image.Image", *, edge: int = EDGE) -> Thumbnail:
    """Return `image` scaled to fit `edge` x `edge` pixels; never enlarged, never with metadata.

    Args:
        image: Mode RGB.
        edge: Longest side in pixels.
    """
    from PIL import Image

    scale = min(1.0, edge / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    # A fresh image carries no EXIF or comments of the original into a page that is handed on.
    bare = Image.new("RGB", size)
    bare.paste(small.convert("RGB"))
    buffer = io.BytesIO()
    if max(size) <= LOSSLESS_EDGE:
        bare.save(buffer, format="PNG", optimize=True)
        return Thumbnail(mime="image/png", data=buffer.getvalue(), width=size[0], height=size[1])
    bare.save(buffer, format="JPEG", quality=78, optimize=True)
    return Thumbnail(mime="image/jpeg", data=buffer.getvalue(), width=size[0], height=size[1])
