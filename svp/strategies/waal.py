"""WAAL's query: uncertain images that a Wasserstein critic finds unlike the labelled ones.

Source: Shui, Zhou, Gagné and Wang 2020, "Deep active learning: unified and principled method for
query and training", equations 5 to 8.
Shapes: B = rows of a batch, T = rows of one block, h = width of the last layer's input.
"""

import dataclasses
from typing import ClassVar, Literal

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
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice, check_range


def surprise(z_TC: torch.Tensor) -> torch.Tensor:
    """Return (|log p|_2 + |log p|_1) / 2, (T,) float64; least where p is uniform."""
    log_TC = z_TC.double().log_softmax(dim=1)
    found: torch.Tensor = log_TC.square().sum(dim=1).sqrt() + log_TC.abs().sum(dim=1)
    return found / 2.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Waal:
    """Least surprise minus `trade` times a critic that is high for what looks unlabelled.

    The other half of the method shapes the features by the same critic; features are frozen here,
    so only the query rule remains and results are not comparable to the paper's.

    Attributes:
        steps: Critic steps.
        batch: Rows of labelled and of unlabelled per step.
        width: Hidden units of the critic.
        trade: Weight of the critic beside the surprise.
        penalty: Weight of (|gradient| - 1)^2 between the two groups.
        gp_sign: `correct` adds that penalty; `published` subtracts it, as the authors' program
            does, which rewards gradients far from 1.
        balance: `wasserstein` weighs both groups alike; `published` weighs the unlabelled one by
            L / U.
        lr: Of Adam.
        sample: Most candidates, and most labelled rows, to train on.
    """

    name: ClassVar[str] = "waal"
    family: ClassVar[str] = "auxiliary"
    summary: ClassVar[str] = "unsure images that also look unlike those already labelled"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:stochastic"
    source: ClassVar[str] = "Shui et al. 2020, equations 5 to 8"
    scaling: ClassVar[str] = "(N + steps batch) h width"
    instead: ClassVar[str] = "margin"

    steps: int = 200
    batch: int = 64
    width: int = 512
    trade: float = 10.0
    penalty: float = 5.0
    gp_sign: Literal["correct", "published"] = "correct"
    balance: Literal["wasserstein", "published"] = "wasserstein"
    lr: float = 1e-3
    sample: int = 20_000

    def __post_init__(self) -> None:
        check_choice("waal.gp_sign", self.gp_sign, ("correct", "published"))
        check_choice("waal.balance", self.balance, ("wasserstein", "published"))
        check_range("waal.steps", self.steps, 0)
        for name in ("batch", "width", "sample"):
            check_range(f"waal.{name}", getattr(self, name), 1)
        for name in ("trade", "penalty"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InputError(
                    f"waal.{name} must be at least 0. Got {getattr(self, name)}. "
                    "Leave it at its default."
                )

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        net = (shape.hidden, self.width, 1)
        held = min(self.sample, shape.candidates) + min(self.sample, shape.labelled)
        return Cost(
            bytes=2 * shape.tile_bytes
            + 32 * shape.tile_rows * shape.classes
            + 48 * shape.candidates
            + 24 * held * shape.hidden
            + 3 * dense_bytes(*net)
            + 64 * (self.batch + 1024) * (shape.hidden + self.width),
            flops=dense_flops(*net) * (shape.candidates + 15.0 * self.steps * self.batch)
            + shape.logits_flops,
            passes=3.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        critic = Critic(self, view, seed, budget)
        critic.train()
        head = view.required_proxy().head

        def utility(h_Th: torch.Tensor) -> torch.Tensor:
            z_TC = torch.nn.functional.linear(h_Th, head.weight_Cd, head.bias_C)
            return self.trade * critic(h_Th).double() - surprise(z_TC)

        places_b, utility_b = rank_blocks(view.space_tiles(rows_U, budget), b, utility)
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=utility_b,
            reason="The proxy is unsure, and nothing like it is labelled (score {utility}).",
            exactness=self.exactness,
            counters={"steps": self.steps},
        )


class Critic:
    """A function with gradients near 1 that is high on candidates and low on labelled rows.

    Args:
        strategy: Its parameters.
        view: The pool.
        seed: Of weights, batches and mixing.
        budget: Device and tile size.
    """

    def __init__(self, strategy: Waal, view: PoolView, seed: int, budget: Budget) -> None:
        self._strategy = strategy
        x_U = sample(view, view.candidates(seed), budget, "hidden", strategy.sample)
        x_L = sample(view, view.centres(seed), budget, "hidden", strategy.sample)
        self._standard = Standard(x_U)
        self._x_U, self._x_L = self._standard(x_U), self._standard(x_L)
        self._gamma = (
            len(view.labelled_L) / len(view.unlabelled_U)
            if strategy.balance == "published"
            else 1.0
        )
        self._generator = numpy_generator(seed, "waal")
        self._network = Dense(
            (x_U.shape[1], strategy.width, 1), self._generator, x_U.device, flat=True
        )

    def __call__(self, h_Bh: torch.Tensor) -> torch.Tensor:
        """Return the critic's values, (B,)."""
        return self._network(self._standard(h_Bh))[:, 0]

    def train(self) -> float:
        """Train; return the mean gradient norm of the last batch (1 is the aim)."""
        strategy, device = self._strategy, self._x_U.device
        optimiser = adam(self._network.parameters, strategy.lr)
        sign = 1.0 if strategy.gp_sign == "correct" else -1.0
        norm_B = torch.zeros(1)
        size = strategy.batch
        draws_L = batches(self._generator, len(self._x_L), size, strategy.steps, device)
        draws_U = batches(self._generator, len(self._x_U), size, strategy.steps, device)
        with torch.enable_grad():
            for index_L, index_U in zip(draws_L, draws_U, strict=True):
                one_Bh, two_Bh = self._x_L[index_L], self._x_U[index_U]
                mix = torch.from_numpy(self._generator.random((size, 1), dtype=np.float32))
                mix = mix.to(device)
                between_Bh = (mix * one_Bh + (1.0 - mix) * two_Bh).requires_grad_(True)
                gradient_Bh = torch.autograd.grad(
                    self._network(between_Bh).sum(), between_Bh, create_graph=True
                )[0]
                # The square root has no gradient at 0, where the flat start is.
                norm_B = (gradient_Bh.square().sum(dim=1) + 1e-12).sqrt()
                distance = self._network(one_Bh).mean() - self._gamma * self._network(two_Bh).mean()
                loss = distance + sign * strategy.penalty * (norm_B - 1.0).square().mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return float(norm_B.detach().mean())
