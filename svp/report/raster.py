"""Figures as PNG, for slides and documents that take no SVG. Needs the extra `png` (resvg)."""

import importlib.util
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

from PIL import ImageFont

from svp.errors import InputError

# Pixels per unit of the drawing: sharp on paper and on dense screens.
SCALE: Final = 2
_MOST_PIXELS: Final = 100_000_000


def require_png() -> None:
    """Make sure that PNG can be written.

    Raises:
        InputError: The extra is not installed.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise InputError(
            "PNG figures must have the extra png. Got an installation without it. "
            'Install it: pip install "svp[png]"'
        )


def rasterise(svg: str) -> bytes:
    """Return a drawing as PNG on white, with twice its size in pixels.

    Text is set in the first family of the drawing that this machine has; where it has none, in the
    small face that comes with Pillow.

    Args:
        svg: A document of `svp.report.flatten`.

    Raises:
        InputError: The extra is not installed, or the drawing is too large.
    """
    require_png()
    import resvg_py

    root = ET.fromstring(svg)
    width, height = (SCALE * int(root.get(side, "0")) for side in ("width", "height"))
    if width * height > _MOST_PIXELS:
        raise InputError(
            f"A PNG figure must have at most {_MOST_PIXELS:,} pixels. Got {width:,} x {height:,}. "
            "Write it as .svg, or draw fewer groups."
        )
    face = ImageFont.load_default(12)
    with tempfile.TemporaryDirectory() as folder:
        family, fonts = None, []
        if isinstance(face, ImageFont.FreeTypeFont):
            family, fonts = face.getname()[0], [str(Path(folder) / "face.ttf")]
            Path(fonts[0]).write_bytes(face.font_bytes)
        return resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=SCALE,
            background="#ffffff",
            font_files=fonts,
            sans_serif_family=family,
            serif_family=family,
        )
