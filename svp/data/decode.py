"""From encoded bytes to one RGB image, by one policy that encoders put into their identity.

The policy: the first frame, fully decoded, turned upright by its EXIF orientation; transparency
composited on white; 16-bit grey divided by 257 and rounded, 16-bit colour cut to its high byte;
32-bit integers read on the 16-bit scale and floats on [0, 1], refused outside; CMYK by Pillow's
formula, with the inverted inks of JPEG; colour profiles ignored. The format follows from the
bytes, never from the name.

A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, when whoever asks says how large it must
stay: the codec then skips the fine frequencies, which costs a fraction of the time. The pixels are
not those of the whole image made smaller, so this too belongs into the identity.
"""

import io
import threading
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import PIL
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from svp.data.failure import MAX_BYTES, DecodeError
from svp.data.orientation import orientation_of
from svp.errors import InputError

# Pillow's own limit: 0.5 GiB of RGB, room for a photograph of 170 megapixels.
MAX_PIXELS: Final = 178_956_970

DECODER: Final[dict[str, Any]] = {
    "policy": 1,
    "library": "pillow",
    "version": ".".join(PIL.__version__.split(".")[:2]),
}

_WHITE: Final = (255, 255, 255)
_ORIENTATION_TAG: Final = 0x0112
_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Python's warning filters belong to the process, so only one thread may swap them at a time.
_FILTERS: Final = threading.Lock()
_TURNED: Final = frozenset({5, 6, 7, 8})  # orientations that swap width and height
_JPEG_END: Final = b"\xff\xd9"

Size = tuple[int, int]


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Reads no EXIF while opening: Pillow would look for the resolution, and warn of damage."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


class _Tiff(TiffImagePlugin.TiffImageFile):
    """Reads no directory again while loading, which warns too; this module turns it upright."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


_Opener = Callable[[io.BytesIO], ImageFile.ImageFile]

# The formats svp reads, by their first bytes. Image.open would try every plug-in it knows.
_FORMATS: Final[tuple[tuple[bytes, _Opener], ...]] = (
    (b"\xff\xd8\xff", _Jpeg),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", _Tiff),
    (b"MM\0*", _Tiff),
    (b"II+\0", _Tiff),
    (b"MM\0+", _Tiff),
    *((f"P{digit}".encode(), PpmImagePlugin.PpmImageFile) for digit in range(1, 7)),
)
# What else is often found under the name of an image.
_IMPOSTORS: Final = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself"),
    (b"<", "a web page or another text"),
    (b"%PDF", "a PDF document"),
    (b"PK\3\4", "a zip archive"),
)


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    needed: Callable[[int, int], Size] | None = None,
) -> Image.Image:
    """Decode one image completely.

    Args:
        data: Encoded bytes: JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, PGM or PBM.
        max_pixels: Refuse images of more pixels before decoding them.
        max_bytes: Refuse longer data.
        needed: Maps width and height of the upright image to the smallest ones that are wanted. A
            JPEG is then decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 that leaves both
            sides at least that long; other formats are decoded whole.

    Returns:
        An image of mode RGB.

    Raises:
        DecodeError: If the bytes are no such image, damaged, cut off, or too large.
        InputError: If another library told Pillow to accept files that are cut off.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES must be False, or damaged images become data. "
            "Got True, set by another library. Set it back."
        )
    if len(data) > max_bytes:
        raise DecodeError("too_large", f"{len(data):,} bytes, more than the limit of {max_bytes:,}")
    try:
        image, orientation = _open(data)
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise DecodeError(
                    "too_large",
                    f"{width:,} x {height:,} pixels, more than the limit of {max_pixels:,}",
                )
            if needed is not None and isinstance(image, _Jpeg):
                image.draft(None, _as_stored(needed, image.size, orientation))
            image.load()
            return upright(_to_rgb(image), orientation)
    except (DecodeError, Warning):
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", _line(error)) from error
    # Damaged bytes take Pillow's parsers anywhere, so any failure of theirs is the item's.
    except Exception as error:
        raise DecodeError("corrupt", _line(error)) from error


def _as_stored(needed: Callable[[int, int], Size], size: Size, orientation: Any) -> Size:
    # The bytes may lie on their side; what is needed is said of the upright image.
    if orientation not in _TURNED:
        return needed(*size)
    width, height = needed(size[1], size[0])
    return height, width


def plain_jpeg(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[Size, Any] | None:
    """Return (width, height) and orientation of a JPEG that any decoder reads in the same way.

    None for everything else: other formats, CMYK, sizes beyond the limit, damaged headers, and
    files that are cut off, of which some decoders make grey instead of an error.
    """
    if not data.startswith(b"\xff\xd8\xff") or not data.rstrip(b"\0").endswith(_JPEG_END):
        return None
    try:
        image, orientation = _open(data)
    except Exception:
        return None
    with image:
        plain = image.mode in ("RGB", "L") and image.width * image.height <= max_pixels
        return (image.size, orientation) if plain else None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _open(data: bytes) -> tuple[ImageFile.ImageFile, Any]:
    """Return the image before its pixels are decoded, and its orientation."""
    opener = next((opener for start, opener in _FORMATS if data.startswith(start)), None)
    if opener is None:
        raise DecodeError("corrupt", f"not an image svp reads: {_impostor(data)}")
    if not _may_warn(opener, data):
        image = opener(io.BytesIO(data))
        return image, orientation_of(image.info.get("exif"))
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = opener(io.BytesIO(data))
        if isinstance(image, _Tiff):
            return image, image.tag_v2.get(_ORIENTATION_TAG, 1)
        return image, orientation_of(image.info.get("exif"))


def _may_warn(opener: _Opener, data: bytes) -> bool:
    """Return whether Pillow may warn while it parses the header of this file."""
    if opener is PngImagePlugin.PngImageFile:
        return data.find(b"acTL", 0, data.find(b"IDAT")) >= 0
    return opener in (_Tiff, GifImagePlugin.GifImageFile)


def _impostor(data: bytes) -> str:
    if not data:
        return "the file is empty"
    head = data.lstrip()
    for start, meaning in _IMPOSTORS:
        if head.startswith(start):
            return meaning
    return f"it begins with the bytes {data[:8].hex(' ')}"


def upright(image: Image.Image, orientation: Any) -> Image.Image:
    """Return the image turned by its EXIF orientation."""
    # Anything but the numbers 2 to 8, such as a damaged tag, means upright.
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _wide_grey(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", image.size, _WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    # A copy also of RGB: the result must not keep the encoded bytes alive.
    return image.convert("RGB")


def _wide_grey(image: ImageFile.ImageFile) -> Image.Image:
    """Bring grey of more than 8 bits to 8 by one fixed scale, so that images stay comparable."""
    grey_HW: npt.NDArray[Any] = np.asarray(image)
    if image.mode == "F":
        # Written so that NaN is refused too.
        if not ((grey_HW >= 0) & (grey_HW <= 1)).all():
            raise DecodeError("corrupt", "float pixels outside [0, 1] have no defined brightness")
        grey8_HW = np.rint(grey_HW * 255)
    else:
        if grey_HW.min() < 0 or grey_HW.max() > 65_535:
            raise DecodeError(
                "corrupt", "integer pixels outside [0, 65535] have no defined brightness"
            )
        grey8_HW = (grey_HW.astype(np.int32) + 128) // 257
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey8_HW[grey_HW == transparent] = 255
    return Image.fromarray(grey8_HW.astype(np.uint8)).convert("RGB")
