"""The orientation a camera wrote into an image, read without trusting the rest of its EXIF.

Pillow's EXIF reader warns on damaged metadata, which many photographs carry and no pixel needs;
this one looks at a single number and otherwise answers "upright".
"""

import struct
from typing import Final

_TAG: Final = 0x0112
_SHORT: Final = 3
_UPRIGHT: Final = 1


def orientation_of(exif: object) -> int:
    """Return the orientation, 1 to 8, of a raw EXIF block; 1 where it is absent or damaged.

    Args:
        exif: Bytes of a TIFF header and its directory, with or without the prefix `Exif`.
    """
    if not isinstance(exif, bytes):
        return _UPRIGHT
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return _UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, n, value = struct.unpack_from(order + "HHLH", tiff, at)
            if tag == _TAG:
                return value if kind == _SHORT and n == 1 and 1 <= value <= 8 else _UPRIGHT
    except struct.error:
        pass
    return _UPRIGHT
