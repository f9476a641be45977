"""Learning loss: a small network guesses the proxy's loss on each image; the highest are asked.

Source: Yoo and Kweon 2019, "Learning loss for active learning", equations 2 and 3.
Shapes: L = labelled rows, B = rows of a batch, T = rows of one block, d and h = widths of the two
representations.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Final

import numpy as np
import torch

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.auxiliary import (
    Dense,
    Standard,
    adam,
    batches,
    dense_bytes,
    dense_flops,
    rank_blocks,
    sample,
)
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_range

_WIDTH: Final = 128


def ranking_loss(guess_B: torch.Tensor, loss_B: torch.Tensor, margin: float) -> torch.Tensor:
    """Return the hinge on pairs (first, last), (second, last but one), ….

    A pair costs nothing once the guesses are in the order of the losses and at least `margin`
    apart, or if the losses are equal.
    """
    half = len(guess_B) // 2
    guess_P = guess_B[:half] - guess_B.flip(0)[:half]
    sign_P = torch.sign(loss_B[:half] - loss_B.flip(0)[:half])
    return (sign_P.abs() * torch.relu(margin - sign_P * guess_P)).mean()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LearningLoss:
    """Highest loss predicted by a head on the embedding and the input of the proxy's last layer.

    The original reads feature maps of the network that it trains along. Here features are frozen,
    the head is trained on the labelled images alone, and the proxy's loss on them is near 0 where
    it interpolates; results are not comparable to the paper's. A widely used program selects the
    *smallest* predictions, through a loader that shuffles; that is not offered.

    Attributes:
        steps: Batches of training.
        batch: Labelled rows per batch, even.
        margin: By which guesses of a pair should differ.
        lr: Of Adam.
        subset: Rank this many random candidates only, as published (10,000); 0: all.
        sample: Most labelled rows to train on, and candidates to standardise by.
    """

    name: ClassVar[str] = "learning_loss"
    family: ClassVar[str] = "auxiliary"
    summary: ClassVar[str] = "images on which a helper network expects the proxy to fail"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:stochastic"
    source: ClassVar[str] = "Yoo and Kweon 2019"
    scaling: ClassVar[str] = "(N + steps batch) (d + h)"
    instead: ClassVar[str] = "margin"

    steps: int = 200
    batch: int = 128
    margin: float = 1.0
    lr: float = 1e-3
    subset: int = 0
    sample: int = 20_000

    def __post_init__(self) -> None:
        check_range("learning_loss.steps", self.steps, 0)
        check_range("learning_loss.batch", self.batch, 2)
        check_range("learning_loss.subset", self.subset, 0)
        check_range("learning_loss.sample", self.sample, 1)
        if self.batch % 2:
            raise InputError(
                f"learning_loss.batch must be even, because rows are compared in pairs. "
                f"Got {self.batch}. Add one."
            )

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        width = shape.dim + shape.hidden
        held = min(self.sample, shape.candidates) + min(self.sample, shape.labelled)
        rows = shape.candidates + 3.0 * self.steps * self.batch
        return Cost(
            bytes=2 * shape.tile_bytes
            + 48 * shape.candidates
            + 24 * held * width
            + 2 * dense_bytes(width, 2 * _WIDTH, 1)
            + 16 * (self.batch + 1024) * (width + 4 * _WIDTH),
            flops=rows * dense_flops(width, _WIDTH, 1),
            passes=2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates of highest predicted loss; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        if self.subset:
            rows_U = rows_U[: max(self.subset, b)]
        head = Head(self, view, seed, budget)
        head.train()
        places_b, utility_b = rank_blocks(_both(view, rows_U, budget), b, head)
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=utility_b,
            reason="A helper network expects the proxy to err here (predicted loss {utility}).",
            exactness=self.exactness,
            counters={"steps": self.steps},
        )


def _both(view: PoolView, rows: Int64Array, budget: Budget) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (positions, embedding and last layer's input side by side)."""
    inputs = view.space_tiles(rows, budget, "input")
    hidden = view.space_tiles(rows, budget, "hidden")
    for (part, x_Td), (_, h_Th) in zip(inputs, hidden, strict=True):
        yield part, torch.cat([x_Td, h_Th], dim=1)


class Head:
    """The network: a layer per representation, and one on both.

    Args:
        strategy: Its parameters.
        view: The pool.
        seed: Of initial weights and batches.
        budget: Device and tile size.
    """

    def __init__(self, strategy: LearningLoss, view: PoolView, seed: int, budget: Budget) -> None:
        self._strategy = strategy
        rows_U, rows_L = view.candidates(seed), view.centres(seed)[: strategy.sample]
        self._standards = [
            Standard(sample(view, rows_U, budget, space, strategy.sample))
            for space in ("input", "hidden")
        ]
        parts = [x for _, x in _both(view, rows_L, budget)]
        self._x_L, self._loss_L = torch.cat(parts), _losses(view, rows_L, budget)
        self._dim = view.embeddings_Nd.shape[1]
        self._generator = numpy_generator(seed, "learning_loss")
        device, hidden = self._x_L.device, self._x_L.shape[1] - self._dim
        self._levels = [
            Dense((width, _WIDTH), self._generator, device) for width in (self._dim, hidden)
        ]
        self._last = Dense((2 * _WIDTH, 1), self._generator, device)

    def __call__(self, x_B: torch.Tensor) -> torch.Tensor:
        """Return the predicted loss of rows (embedding and hidden side by side), (B,)."""
        sides = (x_B[:, : self._dim], x_B[:, self._dim :])
        levels = [
            torch.relu(level(standard(side)))
            for level, standard, side in zip(self._levels, self._standards, sides, strict=True)
        ]
        return self._last(torch.cat(levels, dim=1))[:, 0]

    def train(self) -> list[float]:
        """Train; return the ranking loss of every step."""
        strategy = self._strategy
        parameters = [p for net in (*self._levels, self._last) for p in net.parameters]
        optimiser = adam(parameters, strategy.lr)
        found = []
        with torch.enable_grad():
            for index_B in batches(
                self._generator,
                len(self._x_L),
                strategy.batch,
                strategy.steps,
                self._x_L.device,
            ):
                optimiser.zero_grad()
                guess_B = self(self._x_L[index_B])
                loss = ranking_loss(guess_B, self._loss_L[index_B], strategy.margin)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                found.append(loss.detach())
        return [float(loss) for loss in found]


def _losses(view: PoolView, rows_L: Int64Array, budget: Budget) -> torch.Tensor:
    y_L = torch.from_numpy(view.y_L[np.searchsorted(view.labelled_L, rows_L)]).to(budget.device)
    found = []
    for part, z_TC in view.logit_tiles(rows_L, budget):
        z_TC = z_TC.double()
        own_T = z_TC.gather(1, y_L[part][:, None].to(z_TC.device))[:, 0]
        found.append((torch.logsumexp(z_TC, dim=1) - own_T).float())
    return torch.cat(found)
