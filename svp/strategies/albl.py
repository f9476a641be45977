"""ALBL, active learning by learning: a bandit that learns which strategy serves best.

Every round one strategy is drawn and buys the whole batch. The next round, with the proxy
trained, it is rewarded by the share of labelled images the proxy gets right, each weighted by one
over the chance with which the strategy that bought it had been drawn.

Source: Hsu and Lin 2015, "Active learning by learning"; Beygelzimer et al. 2011, "Contextual
bandit algorithms with supervised learning guarantees" (Exp4.P). The form is that of the published
comparisons, which departs from both, see `Albl`.
Shapes: K = arms, L = labelled.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.base import (
    Budget,
    Float64Array,
    Need,
    Oracle,
    PoolView,
    Selection,
    Strategy,
)
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_number

_ALLOWED: frozenset[Need] = frozenset({"embeddings", "logits", "linear_head", "labelled"})


def chances(weight_K: Float64Array) -> Float64Array:
    """Return the chance of every arm, (K,): by weight, and at least 1 / (10 K)."""
    least = 1.0 / (10 * len(weight_K))
    share_K: Float64Array = weight_K / weight_K.sum()
    chance_K: Float64Array = (1.0 - len(weight_K) * least) * share_K + least
    return chance_K


def rewarded(
    weight_K: Float64Array, arm: int, chance: float, reward: float, delta: float
) -> Float64Array:
    """Return the weights after `arm`, drawn with `chance`, earned `reward`; they sum to 1."""
    arms = len(weight_K)
    least = 1.0 / (10 * arms)
    optimism = math.sqrt(math.log(arms / delta) / arms) / chance
    # In logarithms, because a reward weighted by 1 / chance may be large.
    log_K = np.log(weight_K)
    log_K[arm] += least / 2.0 * (reward + optimism)
    # Never so small that its logarithm is lost; `chances` has a floor of its own.
    weight_K = np.maximum(np.exp(log_K - log_K.max()), 1e-300)
    share_K: Float64Array = weight_K / weight_K.sum()
    return share_K


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Albl:
    """One of several strategies, drawn by a bandit that is rewarded by the proxy's accuracy.

    It departs from Hsu and Lin as the published comparisons do: an arm buys a whole batch, the
    horizon in the confidence term is the number of arms, and the reward is the weighted accuracy
    on the *labelled* images, where a proxy that fits them all earns nearly the same whatever was
    bought. Expect the weights to drift rather than to learn.

    The state holds the weights, the last draw, and what each bought image's arm had as chance; it
    names images by their keys. Images that were labelled otherwise count with weight 1.

    Attributes:
        arms: Names of strategies, separated by commas, with their default parameters.
        delta: Probability with which the bandit's bound may fail.
    """

    name: ClassVar[str] = "albl"
    family: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = "learns over the rounds which of several strategies to use"
    needs: ClassVar[frozenset[Need]] = _ALLOWED
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact-law"
    source: ClassVar[str] = "Hsu and Lin 2015; Beygelzimer et al. 2011, Exp4.P"
    scaling: ClassVar[str] = "that of the strategy drawn"
    instead: ClassVar[str] = "one of its arms"

    arms: str = "least_confidence,coreset"
    delta: float = 0.1

    def __post_init__(self) -> None:
        check_number("albl.delta", self.delta, 1e-12, 1.0)
        self._strategies()

    def _strategies(self) -> tuple[Strategy, ...]:
        # The catalogue lists this class, so it can only be asked once both exist.
        from svp.strategies.catalog import build_strategy

        names = [name.strip() for name in self.arms.split(",")]
        if self.name in names or len(set(names)) != len(names):
            raise InputError(
                f"albl.arms must name different strategies other than albl. Got {self.arms!r}. "
                "Write for example least_confidence,coreset."
            )
        built = tuple(build_strategy(name) for name in names)
        for one in built:
            if one.uses_oracle or not one.needs <= _ALLOWED:
                raise InputError(
                    f"albl.arms must be strategies that need embeddings, a proxy and labels only. "
                    f"Got {one.name}. Leave it out."
                )
        return built

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic of the most expensive arm; see `Strategy.cost`."""
        costs = [one.cost(shape) for one in self._strategies()]
        return Cost(
            bytes=max(one.bytes for one in costs)
            + shape.tile_bytes
            + 200 * (shape.labelled + shape.budget),
            flops=max(one.flops for one in costs)
            + 2.0 * shape.labelled * shape.hidden * shape.classes,
            passes=max(one.passes for one in costs),
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Let one arm choose `b` candidates; see `Strategy.select`."""
        strategies = self._strategies()
        names = [one.name for one in strategies]
        state = view.state if view.state.get("arms") == names else {}
        weight_K = np.asarray(state.get("weights", [1.0 / len(names)] * len(names)))
        bought: list[dict[str, Any]] = list(state.get("bought", []))
        if bought:
            reward = _reward(view, bought, seed, budget)
            last = bought[-1]
            weight_K = rewarded(weight_K, last["arm"], last["chance"], reward, self.delta)
        chance_K = chances(weight_K)
        arm = int(numpy_generator(seed, "albl").choice(len(names), p=chance_K))
        inner = dataclasses.replace(view, state=_of_arm(state, names[arm]))
        chosen = strategies[arm].select(inner, b, seed, budget=budget, oracle=oracle)
        keys = [str(key) for key in view.keys_N[chosen.rows_b].tolist()]
        bought.append({"arm": arm, "chance": float(chance_K[arm]), "keys": keys})
        return dataclasses.replace(
            chosen,
            exactness=self.exactness if chosen.exactness[:5] == "exact" else chosen.exactness,
            counters={**chosen.counters, "arm": arm},
            state={
                "arms": names,
                "weights": weight_K.tolist(),
                "bought": bought,
                "inner": {**state.get("inner", {}), names[arm]: dict(chosen.state)},
            },
        )


def _of_arm(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner: Mapping[str, Any] = state.get("inner", {}).get(name, {})
    return inner


def _reward(view: PoolView, bought: list[dict[str, Any]], seed: int, budget: Budget) -> float:
    """Return the mean over labelled images of [right] / chance of the arm that bought it."""
    chance_of = {int(key): one["chance"] for one in bought for key in one["keys"]}
    rows_L = view.centres(seed)
    right = 0.0
    truth_L = view.y_L[np.searchsorted(view.labelled_L, rows_L)]
    for part, z_TC in view.logit_tiles(rows_L, budget):
        hit_T = z_TC.argmax(dim=1).cpu().numpy() == truth_L[part]
        for key in view.keys_N[rows_L[part][hit_T]].tolist():
            right += 1.0 / chance_of.get(key, 1.0)
    return right / max(1, len(rows_L))
