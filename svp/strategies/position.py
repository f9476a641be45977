"""Whether what is computed of a row depends on where in its block the row stands.

A matrix product may use another kernel for the last rows of a block than for the others, and one
sums in another order than the other. Where that is so, the pool must be read in an order that
does not depend on how it is stored (`PoolView.candidates`), which means fetching rows from all
over memory or disk. Nearly all libraries compute every row of a block of fixed height alike, and
then the pool can be read as it lies. That is a property of the machine, so it is measured: a
block that holds one row `BLOCK_ROWS` times must give the same bits `BLOCK_ROWS` times.

Shapes: T = rows of one block, d = features, C = classes.
"""

from collections.abc import Callable
from typing import Final

import torch

from svp.strategies.base import ProxyView
from svp.strategies.block import BLOCK_ROWS

# How many logits are compared at every position: sums in another order differ in about every
# second one.
_LOGITS: Final = 32
_MOST_ROWS: Final = 8


def position_free(
    proxy: ProxyView,
    utility: Callable[[torch.Tensor], torch.Tensor],
    dim: int,
    device: torch.device,
) -> bool:
    """Return whether a row's logits and utility have the same bits anywhere in a block.

    Args:
        proxy: On `device`.
        utility: Maps logits (T, C) to utilities, (T,) or (T, C).
        dim: d.
        device: Where blocks are computed.
    """
    compared = 0
    for x_d in torch.randn(_MOST_ROWS, dim, generator=torch.Generator().manual_seed(0)):
        with torch.no_grad():
            z_TC = proxy.logits(x_d.to(device).repeat(BLOCK_ROWS, 1))
            # One after the other, because the utility may write into its logits.
            if not (_rows_alike(z_TC) and _rows_alike(utility(z_TC))):
                return False
        compared += z_TC.shape[1]
        if compared >= _LOGITS:
            break
    return True


def _rows_alike(values: torch.Tensor) -> bool:
    bits = values.to(torch.float32).contiguous().view(torch.int32)  # NaN equals itself
    return bool((bits == bits[:1]).all())
