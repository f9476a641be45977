"""One choice of items: a proxy fitted on the labels so far, and a strategy run on the candidates.

Computed from named inputs alone, so that a round can be replayed from its receipt.
Shapes: M = items that may be labelled and have an embedding, L = labelled, U = candidates.
"""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from svp.errors import InputError
from svp.seed import derive_seed
from svp.study.config import StudyConfig
from svp.study.features import StoredRows, place, read_features, split_rows, standardiser_of
from svp.study.learner import Learner, codes, fit_learner, predict, score
from svp.study.options import (
    build_named_strategy,
    build_proxy_config,
    build_wrapping,
    proxy_section,
    proxy_type,
)
from svp.study.record import Pick, RoundResult, state_before
from svp.study.stored_views import wants_views
from svp.study.study import Study
from svp.study.tables import from_table

if TYPE_CHECKING:
    from feature_store.pool import Pool
    from svp.proxies import ProxyConfig
    from svp.strategies.base import Selection, Strategy
    from svp.strategies.wrapping import Wrapping
    from svp.study.features import Features
    from svp.study.stored_views import ItemViews

Int64Array = npt.NDArray[np.int64]


class Clock:
    """Seconds per stage of a round."""

    def __init__(self) -> None:
        """Start the first stage."""
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """End `stage` and start the next."""
        moment = time.monotonic()
        self.seconds[stage] = round(moment - self._last, 4)
        self._last = moment


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a round will use, built and checked before anything slow starts.

    Attributes:
        number: The round.
        seed: The user's seed.
        name: Strategy of a round with labels to learn from.
        params: Its parameters.
        strategy: The same, built.
        first: Strategy before there are labels of two classes; None: `name` in any case.
        first_strategy: The same, built.
        proxy_kind: `linear` or `mlp`.
        proxy_config: Settings of the proxy.
        wrapping: What is around the strategy.
    """

    number: int
    seed: int
    name: str
    params: Mapping[str, Any]
    strategy: "Strategy"
    first: str | None
    first_strategy: "Strategy | None"
    proxy_kind: str
    proxy_config: "ProxyConfig"
    wrapping: "Wrapping"


def plan_round(
    config: StudyConfig,
    *,
    number: int,
    strategy: str | None,
    params: Mapping[str, Any] | None,
    proxy: str | None,
    seed: int | None,
) -> Plan:
    """Build the plan of a new round; arguments win over the study's configuration."""
    section = config.strategy
    name = section.name if strategy is None else strategy
    if params is None:
        params = section.params if name == section.name else {}
    first = section.first_round if strategy is None else None
    chosen = proxy_section(config, proxy)
    wrapping = build_wrapping(section)
    return Plan(
        number=number,
        seed=config.seed if seed is None else seed,
        name=name,
        params=params,
        strategy=build_named_strategy(name, params, wrapping),
        first=first,
        first_strategy=_first(first, wrapping),
        proxy_kind=chosen.kind,
        proxy_config=build_proxy_config(chosen),
        wrapping=wrapping,
    )


def plan_of_receipt(receipt: Mapping[str, Any]) -> Plan:
    """Build the plan that a finished round had."""
    from svp.strategies.wrapping import wrapping_of

    strategy, proxy = receipt["strategy"], receipt["proxy"]
    first = strategy["first"]
    wrapping = wrapping_of(strategy.get("wrapping", {}))
    return Plan(
        number=receipt["round"],
        seed=receipt["seed"],
        name=strategy["asked"],
        params=strategy["asked_params"],
        strategy=build_named_strategy(strategy["asked"], strategy["asked_params"], wrapping),
        first=first,
        first_strategy=_first(first, wrapping),
        proxy_kind=proxy["kind"],
        proxy_config=from_table(proxy_type(proxy["kind"], proxy["config"]), proxy["config"]),
        wrapping=wrapping,
    )


def _first(name: str | None, wrapping: "Wrapping") -> "Strategy | None":
    if name is None:
        return None
    return build_named_strategy(name, {}, wrapping.without_proxy())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What came out.

    Attributes:
        picks: The items, in the order to label.
        name: The strategy that chose them.
        params: Its parameters.
        first_round: Whether the first-round strategy stood in.
        selection: What the strategy returned.
        strategy: The strategy.
        learner: The proxy and its classes.
        names_L: Labels it was fitted on.
        candidates: How many items could be chosen.
        dropped: Items without an embedding because they could not be read.
    """

    picks: tuple[Pick, ...]
    name: str
    params: Mapping[str, Any]
    first_round: bool
    selection: "Selection"
    strategy: "Strategy"
    learner: Learner
    names_L: tuple[str, ...]
    candidates: int
    dropped: int


def choose(
    features: "Features",
    plan: Plan,
    *,
    labels: Mapping[str, str],
    pending: Collection[str],
    budget: int,
    device: str,
    clock: Clock,
    rounds: Sequence[RoundResult] = (),
    memory_bytes: int | None = None,
    views: "ItemViews | None" = None,
) -> Choice:
    """Choose `budget` items.

    Args:
        features: Embeddings of everything that may be labelled.
        plan: Strategy, proxy and seed.
        labels: Label by id.
        pending: Ids selected earlier that still wait for a label.
        budget: How many to choose.
        device: Where tensors live.
        clock: Takes the time of each stage.
        rounds: Rounds so far: a strategy gets back what it kept when it chose last.
        memory_bytes: Most that embeddings and strategy may hold together; None: no limit.
            Embeddings that are still in the store are read at once only if both fit.
        views: Views of the same items, for a proxy or a strategy that reads them.

    Raises:
        InputError: The budget exceeds the candidates, or the strategy needs more memory.
    """
    import torch

    from svp.strategies.base import Budget, PoolView
    from svp.strategies.catalog import run_strategy

    x_Md = place(features.x_Md, device)
    labelled_L = _rows(features, labels)
    taken = {*labels, *pending}
    candidates_U = np.asarray(
        [row for row, key in enumerate(features.ids) if key not in taken], dtype=np.int64
    )
    if not len(candidates_U):
        raise InputError(
            f"There must be items left to label. Got none: of {len(features.ids)} with an "
            f"embedding {len(labelled_L)} are labelled and {len(pending)} wait for a label, and "
            f"{features.dropped} could not be embedded. Add images."
        )
    if budget > len(candidates_U):
        raise InputError(
            f"The budget must be at most {len(candidates_U)}, the items left to label. "
            f"Got {budget}. Of {len(features.ids)} items {len(labelled_L)} are labelled and "
            f"{len(pending)} wait for a label. Lower the budget."
        )
    names_L = tuple(labels[features.ids[row]] for row in labelled_L)
    # A proxy needs two classes to tell apart; before that only the images themselves can speak.
    first_round = plan.first_strategy is not None and len(set(names_L)) < 2
    strategy = plan.strategy
    name, params = plan.name, plan.params
    if first_round and plan.first is not None and plan.first_strategy is not None:
        strategy, name, params = plan.first_strategy, plan.first, {}
    seed = derive_seed(plan.seed, "round", plan.number)
    learner = fit_learner(
        x_Md,
        labelled_L,
        names_L,
        plan.proxy_config,
        standardiser=standardiser_of(x_Md),
        seed=derive_seed(seed, "proxy"),
        device=device,
        start=learner_before(rounds, plan.number, plan.proxy_config),
        views=views if wants_views(plan.proxy_config) else None,
    )
    clock.lap("proxy")
    view = PoolView(
        embeddings_Nd=x_Md,
        keys_N=features.keys(),
        unlabelled_U=candidates_U,
        labelled_L=labelled_L,
        y_L=codes(names_L, learner.classes),
        n_classes=len(learner.classes),
        proxy=learner.proxy,
        views=() if views is None else views.shown(strategy),
        groups_N=features.group_numbers(),
        state=state_before(rounds, name, plan.number),
        finite=True,  # or it had no standardiser
    )
    means = Budget(device=torch.device(device), memory_bytes=memory_bytes)
    if memory_bytes is not None and isinstance(x_Md, StoredRows):
        needed = strategy.cost(view.shape(budget, means)).bytes
        if x_Md.nbytes + needed <= memory_bytes:
            view = dataclasses.replace(view, embeddings_Nd=place(x_Md.load(), device))
            means = dataclasses.replace(means, memory_bytes=memory_bytes - x_Md.nbytes)
    selection = run_strategy(strategy, view, budget, derive_seed(seed, "select"), budget=means)
    picks = picks_of(selection, features, learner, device)
    clock.lap("select")
    return Choice(
        picks=picks,
        name=name,
        params=params,
        first_round=first_round,
        selection=selection,
        strategy=strategy,
        learner=learner,
        names_L=names_L,
        candidates=len(candidates_U),
        dropped=features.dropped,
    )


def learner_before(
    rounds: Sequence[RoundResult], number: int, config: "ProxyConfig"
) -> Learner | None:
    """Return the learner of the round before `number`, if a fit by `config` may start from it."""
    from svp.proxies import LinearConfig, load_proxy

    if not isinstance(config, LinearConfig) or not config.warm_start:
        return None
    for earlier in rounds:
        path = earlier.folder / "proxy.safetensors"
        if earlier.number == number - 1 and path.is_file():
            classes = tuple(earlier.receipt["proxy"]["classes"])
            return Learner(classes=classes, proxy=load_proxy(path), train_s=0.0)
    return None


def evaluate(
    study: Study,
    pool: "Pool",
    encoder_id: str,
    learner: Learner,
    *,
    labels: Mapping[str, str],
    device: str,
) -> dict[str, dict[str, float]]:
    """Score the proxy on the labelled items of the source's val and test splits, if any.

    Labels imported into the study win over the source's own.
    """
    scores: dict[str, dict[str, float]] = {}
    if learner.proxy is None:
        return scores
    own = pool.labels or (None,) * len(pool)
    sides = split_rows(pool)
    for side in ("val", "test"):
        truth = {
            pool.ids[row]: name
            for row in sides[side].tolist()
            if (name := labels.get(pool.ids[row], own[row])) is not None
        }
        rows = [row for row in sides[side].tolist() if pool.ids[row] in truth]
        if not rows:
            continue
        part = read_features(study, study.open_store(), pool, encoder_id, rows)
        if part.ids:
            scores[side] = score(learner, part.x_Md, [truth[key] for key in part.ids], device)
    return scores


def _rows(features: "Features", labels: Mapping[str, str]) -> Int64Array:
    rows = [row for row, key in enumerate(features.ids) if key in labels]
    return np.asarray(rows, dtype=np.int64)


def picks_of(
    selection: "Selection", features: "Features", learner: Learner, device: str
) -> tuple[Pick, ...]:
    """Return what a selection of these items says of each, with the proxy's prediction."""
    from svp.strategies.base import gather

    predicted = None
    reasons, chance_b = selection.reasons_b, selection.probability_b
    if learner.proxy is not None:
        predicted = predict(learner, gather(features.x_Md, selection.rows_b), device)
    return tuple(
        Pick(
            rank=index + 1,
            id=features.ids[row],
            uri=features.uris[row],
            utility=utility,
            reason=(reasons[index] if reasons else selection.reason).replace(
                "{utility}", f"{utility:.4g}"
            ),
            predicted=learner.classes[predicted.class_M[index]] if predicted else None,
            confidence=float(predicted.confidence_M[index]) if predicted else None,
            probability=None
            if chance_b is None or np.isnan(chance_b[index])
            else float(chance_b[index]),
        )
        for index, (row, utility) in enumerate(
            zip(selection.rows_b.tolist(), selection.utility_b.tolist(), strict=True)
        )
    )
