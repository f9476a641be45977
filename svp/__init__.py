"""svp: which images to label next.

Importing this package imports no torch; the stages import what they need when they run.
"""

from typing import Final

__version__: Final = "0.1.0"
