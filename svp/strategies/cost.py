"""What a strategy costs before it starts: memory it must hold, arithmetic it will do.

Figures are for the work beyond the pool's own embeddings, which are there already. They are
upper bounds for memory, because a cap is enforced with them, and estimates for arithmetic.
"""

import dataclasses
from typing import Final

_FLOAT: Final = 4
_BLOCKS: Final = 4  # tiles that are alive at once: gathered, float32, representation, result


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PoolShape:
    """Sizes that decide what a selection costs.

    Attributes:
        pool: N, items of the pool.
        candidates: U, items that may be selected.
        labelled: L, items with a label.
        dim: d, width of the embeddings.
        hidden: h, width of the input of the proxy's last layer; d without a proxy.
        classes: C; 1 before there are classes.
        budget: b, items to select.
        tile_rows: Rows moved to the device at once.
        views: Stored views beside the plain one.
    """

    pool: int
    candidates: int
    labelled: int
    dim: int
    hidden: int
    classes: int
    budget: int
    tile_rows: int
    views: int = 0

    @property
    def tile_bytes(self) -> int:
        """Bytes of the blocks a single pass keeps alive."""
        return _BLOCKS * _FLOAT * self.tile_rows * (self.dim + self.hidden + self.classes)

    @property
    def points_bytes(self) -> int:
        """Bytes of candidates and labelled rows held as float32 points of width h."""
        return _FLOAT * (self.candidates + self.labelled) * self.hidden

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the same held as factored gradients, h + C numbers a row."""
        return _FLOAT * (self.candidates + self.labelled) * (self.hidden + self.classes)

    @property
    def logits_flops(self) -> float:
        """Arithmetic of one pass of the last layer over the candidates."""
        return 2.0 * self.candidates * self.hidden * self.classes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a selection of a given shape costs.

    Attributes:
        bytes: Most memory held at once beyond the pool's embeddings, when nothing is cached that
            could be computed again.
        flops: Floating-point operations.
        passes: How often the pool's embeddings are read.
    """

    bytes: int
    flops: float
    passes: float
