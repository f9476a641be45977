"""The strategies there are, and the one way to build, describe and run them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

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
    ListedStrategy,
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
from svp.strategies.running import reads_labels as reads_labels
from svp.strategies.running import run_strategy as run_strategy
from svp.strategies.skactiveml import PREFIX, SkActiveML
from svp.strategies.ssl_consistency import SSLConsistency
from svp.strategies.ssl_diff2aug_direct import SSLDiff2AugDirect
from svp.strategies.ssl_diff2aug_kmeans import SSLDiff2AugKmeans
from svp.strategies.ssl_random import SSLRandom
from svp.strategies.typiclust import TypiClust
from svp.strategies.uncertain_gcn import UncertainGCN
from svp.strategies.vaal import Vaal
from svp.strategies.waal import Waal
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
