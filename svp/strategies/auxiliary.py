"""Small networks that a strategy trains for itself on frozen embeddings.

They are trained on a sample that is fixed by the seeded hash of the keys and read in blocks of
fixed height, for a fixed number of steps on batches of fixed size, from initial weights drawn with
NumPy. So the same network results whatever the tile size and the order of the pool.

Shapes: S = rows of the sample, B = rows of a batch, T = rows of one block, h = width of a layer.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from svp.strategies.base import Budget, Float32Array, Int64Array, PoolView, Space
from svp.strategies.block import BLOCK_ROWS, on_whole_block
from svp.strategies.rank import TopK


class Dense:
    """Linear layers with ReLU between them.

    Args:
        widths: Of input, hidden layers and output.
        generator: Of the initial weights, uniform within 1 / sqrt(inputs).
        device: Where the weights live.
        flat: Start with an output of exactly 0 everywhere.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        generator: np.random.Generator,
        device: torch.device,
        *,
        flat: bool = False,
    ) -> None:
        self.parameters: list[torch.Tensor] = []
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            bound = 0.0 if flat and layer == len(widths) - 2 else max(inputs, 1) ** -0.5
            for shape in ((outputs, inputs), (outputs,)):
                drawn = generator.uniform(-bound, bound, size=shape).astype(np.float32)
                tensor = torch.from_numpy(drawn).to(device)
                self.parameters.append(tensor.requires_grad_(True))

    def __call__(self, x_Bh: torch.Tensor) -> torch.Tensor:
        """Return the output for a batch."""
        for index in range(0, len(self.parameters), 2):
            x_Bh = torch.relu(x_Bh) if index else x_Bh
            x_Bh = torch.nn.functional.linear(
                x_Bh, self.parameters[index], self.parameters[index + 1]
            )
        return x_Bh


class Standard:
    """Shift and scale of a sample: mean 0 and deviation 1 per column.

    Args:
        x_Sh: The sample.
    """

    def __init__(self, x_Sh: torch.Tensor) -> None:
        total_h = torch.zeros(x_Sh.shape[1], dtype=torch.float64, device=x_Sh.device)
        square_h = torch.zeros_like(total_h)
        for start in range(0, len(x_Sh), BLOCK_ROWS):
            total_h += x_Sh[start : start + BLOCK_ROWS].double().sum(dim=0)
        mean_h = total_h / len(x_Sh)
        for start in range(0, len(x_Sh), BLOCK_ROWS):
            block_Th = x_Sh[start : start + BLOCK_ROWS].double()
            square_h += (block_Th - mean_h).square().sum(dim=0)
        std_h = (square_h / len(x_Sh)).sqrt()
        constant_h = std_h <= 1e-6 * mean_h.abs()
        self._mean_h = mean_h.float()
        self._std_h = torch.where(constant_h, 1.0, std_h).float()

    def __call__(self, x_Th: torch.Tensor) -> torch.Tensor:
        """Return the standardised rows."""
        return (x_Th - self._mean_h) / self._std_h


def sample(
    view: PoolView, rows: Int64Array, budget: Budget, space: Space, most: int
) -> torch.Tensor:
    """Return the first `most` of these rows in a representation, (S, h) float32."""
    return torch.cat([x_Th for _, x_Th in view.space_tiles(rows[:most], budget, space)])


def batches(
    generator: np.random.Generator, rows: int, size: int, steps: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield `steps` batches of positions in [0, rows), drawn with replacement, (size,)."""
    for _ in range(steps):
        yield torch.from_numpy(generator.integers(rows, size=size)).to(device)


def adam(parameters: list[torch.Tensor], lr: float, decay: float = 0.0) -> torch.optim.Adam:
    """Return Adam (Kingma and Ba 2015) with an L2 term in the gradient."""
    # One kernel per step: dozens of small ones would take longer than the products.
    return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True)


def rank_blocks(
    blocks: Iterator[tuple[slice, torch.Tensor]],
    b: int,
    utility: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Int64Array, Float32Array]:
    """Return places and utilities of the `b` highest of a stream of blocks.

    Args:
        blocks: (Positions, rows) with at most 1,024 rows each.
        b: How many.
        utility: Maps rows (T, h) to utilities (T,).
    """
    top = TopK(b)
    for part, x_Th in blocks:
        score_T = on_whole_block(utility, x_Th).to(device="cpu", dtype=torch.float32).numpy()
        top.push(score_T, np.arange(part.start, part.stop, dtype=np.int64))
    return top.best()


def dense_bytes(*widths: int) -> int:
    """Return bytes of a dense network with its gradients and Adam's two moments."""
    return 16 * sum(a * b + b for a, b in itertools.pairwise(widths))


def dense_flops(*widths: int) -> float:
    """Return the arithmetic of one row forward through a dense network."""
    return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))
