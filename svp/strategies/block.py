"""Blocks: a pool is computed on so many rows at a time, always as many.

Shapes: N = pool, T = rows of one block, M = rows asked for, d = features.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

BLOCK_ROWS: Final = 1024


def lying(x_Nd: torch.Tensor, rows_M: npt.NDArray[np.int64]) -> torch.Tensor | None:
    """Return rows that follow each other, (M, d), without a copy; None if they do not."""
    if len(rows_M):
        first, last = int(rows_M[0]), int(rows_M[-1])
        if last - first == len(rows_M) - 1 and bool((np.diff(rows_M) == 1).all()):
            return x_Nd[first : last + 1]
    return None


def on_whole_block(
    function: Callable[[torch.Tensor], torch.Tensor], x_Td: torch.Tensor
) -> torch.Tensor:
    """Return `function(x_Td)` computed on exactly `BLOCK_ROWS` rows.

    Matrix products of other heights run other kernels, whose last bits differ.
    """
    rows = len(x_Td)
    if rows < BLOCK_ROWS:
        x_Td = torch.nn.functional.pad(x_Td, (0, 0, 0, BLOCK_ROWS - rows))
    with torch.no_grad():
        return function(x_Td)[:rows]
