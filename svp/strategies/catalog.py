"""The strategies there are, and the one way to build, describe and run them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from svp.errors import InputError
from svp.strategies.activeft_al import ActiveFTAl
from svp.strategies.activeft_pre import ActiveFTPre
from svp.strategies.albl import Albl
from svp.strategies.badge import Badge
from svp.strategies.bait import Bait
from svp.strategies.bait_regression import BaitRegression
from svp.strategies.balanced_random import BalancedRandom
from svp.strategies.balancing import Balancing
from svp.strategies.bald import Bald
from svp.strategies.base import (
    Budget,
    Int64Array,
    ListedStrategy,
    Oracle,
    PoolView,
    Selection,
    Strategy,
)
from svp.strategies.base_sampling import Base
from svp.strategies.bim import Bim
from svp.strategies.cluster_margin import ClusterMargin
from svp.strategies.core_gcn import CoreGCN
from svp.strategies.coreset import CoreSet
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.dbal import Dbal
from svp.strategies.deepfool import DeepFool
from svp.strategies.direct import Direct
from svp.strategies.entropy import Entropy
from svp.strategies.explanation import explain
from svp.strategies.facility_location import FacilityLocation
from svp.strategies.fass import Fass
from svp.strategies.galaxy import Galaxy
from svp.strategies.glister import Glister
from svp.strategies.kmeans import KMeans
from svp.strategies.learning_loss import LearningLoss
from svp.strategies.least_confidence import LeastConfidence
from svp.strategies.margin import Margin
from svp.strategies.mase import Mase
from svp.strategies.mcadl import Mcadl
from svp.strategies.parameters import check_params, near
from svp.strategies.partitioned_badge import PartitionedBadge
from svp.strategies.partitioned_coreset import PartitionedCoreSet
from svp.strategies.plugins import load_plugin, plugin_names
from svp.strategies.probcover import ProbCover
from svp.strategies.random import Random
from svp.strategies.skactiveml import PREFIX, SkActiveML
from svp.strategies.ssl_consistency import SSLConsistency
from svp.strategies.ssl_diff2aug_direct import SSLDiff2AugDirect
from svp.strategies.ssl_diff2aug_kmeans import SSLDiff2AugKmeans
from svp.strategies.ssl_random import SSLRandom
from svp.strategies.typiclust import TypiClust
from svp.strategies.uncertain_gcn import UncertainGCN
from svp.strategies.vaal import Vaal
from svp.strategies.waal import Waal
from svp.strategies.wrapper import innermost
from svp.strategies.wrapping import Wrapping, wrap

STRATEGIES: Final[tuple[type[ListedStrategy], ...]] = (
    Random,
    BalancedRandom,
    LeastConfidence,
    Margin,
    Entropy,
    Mase,
    Base,
    Bald,
    DeepFool,
    Bim,
    CoreSet,
    ProbCover,
    PartitionedCoreSet,
    FacilityLocation,
    Badge,
    PartitionedBadge,
    KMeans,
    TypiClust,
    ActiveFTPre,
    ActiveFTAl,
    Dbal,
    ClusterMargin,
    Galaxy,
    Balancing,
    Direct,
    Glister,
    Bait,
    BaitRegression,
    LearningLoss,
    Vaal,
    Waal,
    UncertainGCN,
    CoreGCN,
    Fass,
    Albl,
    Mcadl,
    SSLRandom,
    SSLConsistency,
    SSLDiff2AugDirect,
    SSLDiff2AugKmeans,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a list of strategies says about one.

    Attributes:
        name: The name users write.
        family: Its kind.
        summary: One line.
        needs: What must be there before it can run, sorted.
        first_round: Whether it runs without any labels.
        stochastic: Whether it draws at random.
        uses_oracle: Whether it reads labels inside the batch.
        pseudo: Whether it can assume the proxy's predictions instead of reading labels.
        exactness: As in `Selection`.
        source: Where it comes from.
        scaling: How its arithmetic grows.
        instead: What to use when it does not fit in memory; empty: nothing.
        params: Default of every parameter by name.
        meanings: What each parameter means, by name, from the docstring.
        doc: What the docstring says before its parameters.
    """

    name: str
    family: str
    summary: str
    needs: tuple[str, ...]
    first_round: bool
    stochastic: bool
    uses_oracle: bool
    pseudo: bool
    exactness: str
    source: str
    scaling: str
    instead: str
    params: Mapping[str, Any]
    meanings: Mapping[str, str]
    doc: str


def names() -> tuple[str, ...]:
    """Return the names of all strategies in the order they are listed, plug-ins last."""
    own = tuple(cls.name for cls in STRATEGIES)
    return (*own, *(name for name in plugin_names() if name not in own))


def strategy_class(name: str) -> type[ListedStrategy]:
    """Return the class of a strategy; one of svp's own wins over a plug-in of its name.

    Raises:
        InputError: If there is none, naming the nearest, or a plug-in cannot be used.
    """
    for cls in STRATEGIES:
        if cls.name == name:
            return cls
    if name in plugin_names():
        return load_plugin(name)
    raise InputError(
        f"A strategy must be one that `svp strategies` lists. Got {name!r}. {near(name, names())}"
    )


def describe() -> tuple[Description, ...]:
    """Return one description per strategy."""
    return tuple(_described(strategy_class(name)) for name in names())


def describe_one(name: str) -> Description:
    """Return the description of one strategy.

    Raises:
        InputError: If there is none of that name; names the nearest ones.
    """
    return _described(strategy_class(name))


def estimate(name: str, pool: int, dim: int, classes: int, budget: int) -> Cost:
    """Return what one selection with default parameters costs, with as many labels as picks.

    Args:
        name: The strategy.
        pool: Candidates.
        dim: Width of the embeddings, and of the proxy's last layer.
        classes: Classes.
        budget: Items to select.
    """
    shape = PoolShape(
        pool=pool + budget,
        candidates=pool,
        labelled=budget,
        dim=dim,
        hidden=dim,
        classes=classes,
        budget=min(budget, pool),
        tile_rows=Budget().tile_rows,
    )
    return build_strategy(name).cost(shape)


def _described(cls: type[ListedStrategy]) -> Description:
    doc, meanings = explain(cls)
    return Description(
        name=cls.name,
        family=cls.family,
        summary=cls.summary,
        needs=tuple(sorted(cls.needs)),
        first_round=not cls.needs & {"logits", "linear_head", "labelled"},
        stochastic=cls.stochastic,
        uses_oracle=cls.uses_oracle,
        pseudo="pseudo" in _fields(cls),
        exactness=cls.exactness,
        source=cls.source,
        scaling=cls.scaling,
        instead=cls.instead,
        params=_fields(cls),
        meanings=meanings,
        doc=doc,
    )


def _fields(cls: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(cls)}


def reads_labels(strategy: Strategy) -> bool:
    """Return whether the strategy, as set up, reads labels inside the batch."""
    if getattr(strategy, "oracle_strata", False):
        return True
    return strategy.uses_oracle and not getattr(strategy, "pseudo", False)


def build_strategy(
    name: str, params: Mapping[str, Any] | None = None, wrapping: Wrapping | None = None
) -> Strategy:
    """Return the strategy `name` with `params` and what `wrapping` puts around it.

    `name` is one of `names()`, or `skactiveml:NAME` for a query strategy of scikit-activeml.

    Raises:
        InputError: If the name, a parameter or a value is unknown; names the nearest ones.
    """
    strategy: Strategy
    if name.startswith(PREFIX):
        strategy = SkActiveML(query=name.removeprefix(PREFIX), params=dict(params or {}))
    else:
        cls = strategy_class(name)
        strategy = cls(**check_params(name, cls, params or {}))
    return wrap(strategy, wrapping or Wrapping())


def run_strategy(
    strategy: Strategy,
    view: PoolView,
    b: int,
    seed: int,
    *,
    budget: Budget | None = None,
    oracle: Oracle | None = None,
) -> Selection:
    """Check what goes in, let the strategy choose, and check what comes out.

    Args:
        strategy: What chooses.
        view: The pool.
        b: How many to choose, in [1, U].
        seed: Decides ties and draws.
        budget: Device, tile size and memory; by default the CPU without a cap.
        oracle: Labels of rows, for strategies that declare `uses_oracle`. Each row asked for is
            metered and must be a candidate.

    Returns:
        The selection: `b` distinct unlabelled rows.

    Raises:
        InputError: If the budget, the view or an embedding cannot be used.
        RuntimeError: If the strategy broke its contract, which is a bug.
    """
    budget = budget if budget is not None else Budget()
    _check_view(view)
    candidates = len(view.unlabelled_U)
    if not 1 <= b <= candidates:
        raise InputError(
            f"The budget of a round must be in [1, {candidates}], the images left to label. "
            f"Got {b}. {'Lower it.' if b > candidates else 'Ask for at least one.'}"
        )
    _check_needs(strategy, view, oracle)
    budget = _capped(strategy, view, b, budget)
    if strategy.needs:
        _check_finite(view, budget)
    meter = None if oracle is None or not reads_labels(strategy) else _Meter(oracle, view)
    selection = strategy.select(view, b, seed, budget=budget, oracle=meter)
    _check_selection(strategy, view, b, selection)
    if meter is not None:
        selection = dataclasses.replace(selection, oracle_calls=len(meter.asked))
    return selection


class _Meter:
    """An oracle that counts what it is asked."""

    def __init__(self, oracle: Oracle, view: PoolView) -> None:
        self._oracle, self._view = oracle, view
        self.asked: set[int] = set()

    def __call__(self, rows: Int64Array) -> Int64Array:
        if not np.isin(rows, self._view.unlabelled_U).all():
            raise RuntimeError("A strategy asked for the label of an item that is no candidate.")
        self.asked.update(rows.tolist())
        return self._oracle(rows)


def _capped(strategy: Strategy, view: PoolView, b: int, budget: Budget) -> Budget:
    """Refuse a strategy that does not fit the memory cap; give the cache what is left."""
    if budget.memory_bytes is None:
        return budget
    needed = strategy.cost(view.shape(b, budget)).bytes
    if needed > budget.memory_bytes:
        step = (
            f"Use {strategy.instead}, or raise the cap."
            if strategy.instead
            else "Raise the cap, or lower the budget."
        )
        raise InputError(
            f"{strategy.name} must fit in the memory cap of {budget.memory_bytes / 2**20:,.0f} "
            f"MiB. It needs {needed / 2**20:,.0f} MiB for {b} of {len(view.unlabelled_U)} "
            f"candidates. {step}"
        )
    left = budget.memory_bytes - needed
    return dataclasses.replace(budget, cache_bytes=min(budget.cache_bytes, left))


def _check_view(view: PoolView) -> None:
    if len(view.embeddings_Nd.shape) != 2:
        raise InputError(
            "Embeddings must be one vector per item, (N, d). Got shape "
            f"{tuple(view.embeddings_Nd.shape)}. Flatten each item to one vector."
        )
    total = view.embeddings_Nd.shape[0]
    if any(tuple(other.shape) != tuple(view.embeddings_Nd.shape) for other in view.views):
        raise InputError(
            f"Views must have the shape of the embeddings, {tuple(view.embeddings_Nd.shape)}. Got "
            f"{[tuple(other.shape) for other in view.views]}. Embed every view of the same pool."
        )
    if view.groups_N is not None and len(view.groups_N) != total:
        raise InputError(
            f"groups_N must give each of {total} items a group. Got {len(view.groups_N)}. "
            "Derive both from the same pool."
        )
    if len(view.keys_N) != total:
        raise InputError(
            f"keys_N must have one key per embedding, {total}. Got {len(view.keys_N)}. "
            "Derive both from the same pool."
        )
    for what, rows in (("unlabelled_U", view.unlabelled_U), ("labelled_L", view.labelled_L)):
        if len(rows) and (rows[0] < 0 or rows[-1] >= total or np.any(np.diff(rows) <= 0)):
            raise InputError(
                f"{what} must be distinct ascending rows in [0, {total}). Got others. "
                "Sort the rows and drop repeats."
            )
    if len(np.intersect1d(view.unlabelled_U, view.labelled_L, assume_unique=True)):
        raise InputError(
            "unlabelled_U must not contain labelled rows. Got rows in both. "
            "Take the labelled ones out."
        )
    if len(view.y_L) != len(view.labelled_L) or (
        len(view.y_L) and not (view.y_L.min() >= 0 and view.y_L.max() < view.n_classes)
    ):
        raise InputError(
            f"y_L must give each of {len(view.labelled_L)} labelled rows a class in "
            f"[0, {view.n_classes}). Got {len(view.y_L)} values or one out of range. "
            "Number the classes from 0."
        )


def _check_needs(strategy: Strategy, view: PoolView, oracle: Oracle | None) -> None:
    if strategy.needs & {"logits", "linear_head"}:
        view.required_proxy()
    if "labelled" in strategy.needs and not len(view.labelled_L):
        raise InputError(
            f"{strategy.name} must have labelled images. Got none. "
            "Use random or kmeans for the first round, or import labels first."
        )
    if "views" in strategy.needs and not view.views:
        raise InputError(
            f"{strategy.name} must have stored views of the pool. Got none. "
            "Embed them first: svp embed STUDY --views eval,weak:2"
        )
    if reads_labels(strategy) and oracle is None:
        step = (
            f"Set {strategy.name}.pseudo = true to assume the proxy's predictions instead."
            if "pseudo" in _fields(type(innermost(strategy)))
            else "Use it in a simulation only, or choose another strategy."
        )
        raise InputError(
            f"{strategy.name} must be given known labels, because it reads them inside the batch. "
            f"Got none. {step}"
        )


def _check_finite(view: PoolView, budget: Budget) -> None:
    # One fast pass: NaN and infinities survive a sum. Only then are the rows that matter examined.
    source = view.embeddings_Nd
    if isinstance(source, torch.Tensor) and bool(torch.isfinite(source.sum(dtype=torch.float32))):
        return
    bad = 0
    for rows in (view.unlabelled_U, view.labelled_L):
        for _, tile_Td in view.tiles(rows, dataclasses.replace(budget, device=source.device)):
            bad += int((~torch.isfinite(tile_Td).all(dim=1)).sum())
    if bad:
        raise InputError(
            f"Embeddings must be finite. Got NaN or infinity in {bad} of "
            f"{len(view.unlabelled_U) + len(view.labelled_L)} rows. "
            "Verify the store, or embed these images again."
        )


def _check_selection(strategy: Strategy, view: PoolView, b: int, selection: Selection) -> None:
    rows_b: Int64Array = selection.rows_b
    broken = (
        "another number of rows"
        if len(rows_b) != b or len(selection.utility_b) != b
        else "a row twice"
        if len(np.unique(rows_b)) != b
        else "a row that is not a candidate"
        if not np.isin(rows_b, view.unlabelled_U).all()
        else "a utility that is not finite"
        if not np.isfinite(selection.utility_b).all()
        else "another number of reasons"
        if selection.reasons_b and len(selection.reasons_b) != b
        else "chances that do not fit"
        if selection.probability_b is not None and len(selection.probability_b) != b
        else None
    )
    if broken is not None:
        raise RuntimeError(f"{strategy.name} returned {broken} for a budget of {b}.")
