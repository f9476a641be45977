"""One choice of items from a pool that is read where it is stored, by whoever an executor has.

The same inputs and the same result as `svp.study.choice.choose`. What the client holds is a few
numbers per item (id, key, place, where it lies), the labelled embeddings and those it chooses;
never the pool's. Scores are exact; other strategies choose in two rounds and are named so.

Shapes: M = items that may be labelled and have an embedding, L = labelled, U = candidates.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from svp.cluster.executor import Executor
from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.seed import derive_seed
from svp.study import hierarchy, moments, scoring
from svp.study.choice import Choice, Clock, Plan, learner_before, picks_of
from svp.study.features import Features, split_rows
from svp.study.learner import Learner, codes, fit_learner
from svp.study.located import Located, RowReader, TableAddress, locate
from svp.study.record import RoundResult
from svp.study.stored_views import wants_views
from svp.study.study import Study

if TYPE_CHECKING:
    from feature_store.pool import Pool
    from feature_store.table import Table
    from svp.proxies import Standardiser
    from svp.strategies.base import Selection, Strategy

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScatteredPool:
    """Items with an embedding, left where they are.

    Attributes:
        executor: Whose workers read them.
        address: The table.
        ids: Ids, ascending.
        uris: What the source reads them by.
        located_M: Where their embeddings lie.
        dropped: Items that could not be embedded.
        standardiser: Of all of them.
        device: Where workers compute; also this process.
        progress: Where to report.
    """

    executor: Executor
    address: TableAddress
    ids: tuple[str, ...]
    uris: tuple[str, ...]
    located_M: Located
    dropped: int
    standardiser: "Standardiser"
    device: str
    progress: Progress

    def features(self, rows: Int64Array) -> Features:
        """Read the embeddings of some items."""
        import torch

        x_Kd = RowReader(self.address).read(self.located_M.take(rows))
        return Features(
            ids=tuple(self.ids[row] for row in rows.tolist()),
            uris=tuple(self.uris[row] for row in rows.tolist()),
            labels=(None,) * len(rows),
            x_Md=torch.from_numpy(x_Kd),
            dropped=0,
        )

    def labelled(self, labels: Mapping[str, str]) -> Features:
        """Read the embeddings of the items that have a label."""
        rows = [row for row, key in enumerate(self.ids) if key in labels]
        return self.features(np.asarray(rows, np.int64))


def open_scattered(
    executor: Executor,
    study: Study,
    pool: "Pool",
    encoder_id: str,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ScatteredPool:
    """Find the embeddings of what may be labelled, and standardise them where they are.

    Args:
        executor: Whose workers read them.
        study: Whose store holds the embeddings; workers open its URL.
        pool: The images.
        encoder_id: Whose embeddings to use.
        device: Where workers compute.
        progress: Where to report.

    Raises:
        InputError: Some items were never embedded.
        TemporaryError: Workers were lost again and again.
    """
    progress = progress if progress is not None else Silent()
    store = study.open_store()
    table = store.table(encoder_id)
    part = pool.subset(split_rows(pool)["train"])
    kept_M, located_M = _locate(study, table, part)
    address = TableAddress(
        store_url=store.url if "://" in store.url else str(Path(store.url).resolve()),
        encoder_id=encoder_id,
        view=table.view,
        dim=table.dim or 0,
        dtype=str(table.dtype),
    )
    return ScatteredPool(
        executor=executor,
        address=address,
        ids=tuple(part.ids[row] for row in kept_M.tolist()),
        uris=tuple(part.uris[row] for row in kept_M.tolist()),
        located_M=located_M,
        dropped=len(part) - len(kept_M),
        standardiser=moments.standardise(
            executor, address, located_M, device=device, progress=progress
        ),
        device=device,
        progress=progress,
    )


def choose_scattered(
    pool: ScatteredPool,
    plan: Plan,
    *,
    labels: Mapping[str, str],
    pending: Collection[str],
    budget: int,
    device: str,
    clock: Clock,
    rounds: Sequence[RoundResult] = (),
    memory_bytes: int | None = None,
    part_rows: int | None = None,
) -> Choice:
    """Choose `budget` items; see `svp.study.choice.choose`.

    Args:
        pool: What may be labelled.
        plan: Strategy, proxy and seed.
        labels: Label by id.
        pending: Ids selected earlier that still wait for a label.
        budget: How many to choose.
        device: Where the proxy is fitted.
        clock: Takes the time of each stage.
        rounds: Rounds so far, for a proxy that starts warm; a strategy that keeps state starts
            afresh on workers.
        memory_bytes: Must be None: workers hold a part each, whatever the cap.
        part_rows: Candidates of a task; decides the choice of strategies that are not scores.

    Raises:
        InputError: The budget exceeds the candidates, or something is asked that needs the whole
            pool in one process.
        TemporaryError: Workers were lost again and again.
    """
    import torch

    from svp.strategies.keys import hash_keys, keys_of

    asked = [*plan.wrapping.table(), *(["--memory"] if memory_bytes is not None else [])]
    if wants_views(plan.proxy_config):
        asked.append("a proxy that learns from unlabelled items")
    if asked:
        raise InputError(
            "A selection on several workers must do without what needs the whole pool in one "
            f"process. Got {', '.join(asked)}. Leave --dask out, or these."
        )
    executor, address, located_M = pool.executor, pool.address, pool.located_M
    ids, progress = pool.ids, pool.progress
    labelled_L, candidates_U = _sides(
        ids, labels=labels, pending=pending, dropped=pool.dropped, budget=budget
    )
    names_L = tuple(labels[ids[row]] for row in labelled_L.tolist())
    # A proxy needs two classes to tell apart; before that only the images themselves can speak.
    strategy, name, params, first_round = plan.strategy, plan.name, plan.params, False
    if plan.first_strategy is not None and plan.first is not None and len(set(names_L)) < 2:
        strategy, name, params, first_round = plan.first_strategy, plan.first, {}, True
    seed = derive_seed(plan.seed, "round", plan.number)
    x_Ld = RowReader(address).read(located_M.take(labelled_L))
    learner = fit_learner(
        torch.from_numpy(x_Ld),
        np.arange(len(labelled_L)),
        names_L,
        plan.proxy_config,
        standardiser=pool.standardiser.to(torch.device(device)),
        seed=derive_seed(seed, "proxy"),
        device=device,
        start=learner_before(rounds, plan.number, plan.proxy_config),
    )
    clock.lap("proxy")
    keys_M = keys_of(ids)
    located_U = located_M.take(candidates_U)
    select_seed = derive_seed(seed, "select")
    if not strategy.needs:
        selection = _unseen(strategy, keys_M, candidates_U, budget, select_seed)
    elif scoring.is_per_row(strategy):
        places_U = np.empty(len(candidates_U), np.int64)
        order = np.argsort(hash_keys(keys_M[candidates_U], select_seed), kind="stable")
        places_U[order] = np.arange(len(order))
        selection = _scored(
            executor,
            address,
            located_U,
            places_U,
            order,
            strategy=strategy,
            learner=learner,
            budget=budget,
            seed=select_seed,
            device=pool.device,
            progress=progress,
            part_rows=part_rows or scoring.PART_ROWS,
        )
        selection = _of_pool(selection, candidates_U)
    else:
        selection = hierarchy.choose_in_two(
            executor,
            address,
            located_U,
            keys_M[candidates_U],
            strategy=strategy,
            labelled=hierarchy.Labelled(
                x_Ld=x_Ld,
                keys_L=keys_M[labelled_L],
                y_L=codes(names_L, learner.classes),
                n_classes=len(learner.classes),
            ),
            proxy=learner.proxy,
            budget=budget,
            seed=select_seed,
            device=pool.device,
            progress=progress,
            part_rows=part_rows or hierarchy.PART_ROWS,
        )
        selection = _of_pool(selection, candidates_U)
    chosen = pool.features(selection.rows_b)
    own = dataclasses.replace(selection, rows_b=np.arange(budget))
    picks = picks_of(own, chosen, learner, device)
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
        dropped=pool.dropped,
    )


def _locate(study: Study, table: "Table", part: "Pool") -> tuple[Int64Array, Located]:
    from feature_store.errors import MissingRowsError

    failed = table.failures()
    kept = [row for row, digest in enumerate(part.digests) if digest.tobytes() not in failed]
    kept_M = np.asarray(kept, np.int64) if failed else np.arange(len(part))
    try:
        return kept_M, locate(table, part.digests[kept_M])
    except MissingRowsError as error:
        raise InputError(
            f"Every item must be embedded first. Got {error.missing} of {error.total} without an "
            f"embedding. Run: svp embed {study.path}"
        ) from error


def _sides(
    ids: Sequence[str],
    *,
    labels: Mapping[str, str],
    pending: Collection[str],
    dropped: int,
    budget: int,
) -> tuple[Int64Array, Int64Array]:
    """Return the rows that are labelled and those that may be chosen, both ascending."""
    labelled = [row for row, key in enumerate(ids) if key in labels]
    taken = {*labels, *pending}
    free = [row for row, key in enumerate(ids) if key not in taken]
    if not 1 <= budget <= len(free):
        raise InputError(
            f"The budget must be in [1, {len(free)}], the items left to label. Got {budget}. Of "
            f"{len(ids)} items with an embedding {len(labelled)} are labelled and {len(pending)} "
            f"wait for a label; {dropped} could not be embedded. Lower the budget, or add images."
        )
    return np.asarray(labelled, np.int64), np.asarray(free, np.int64)


def _unseen(
    strategy: "Strategy", keys_M: UInt64Array, candidates_U: Int64Array, budget: int, seed: int
) -> "Selection":
    """Choose by a strategy that looks at no embedding."""
    import torch

    from svp.strategies.base import PoolView
    from svp.strategies.catalog import run_strategy

    none = np.zeros(0, np.int64)
    view = PoolView(
        embeddings_Nd=torch.empty((len(keys_M), 0)),
        keys_N=keys_M,
        unlabelled_U=candidates_U,
        labelled_L=none,
        y_L=none,
        n_classes=0,
    )
    return run_strategy(strategy, view, budget, seed)


def _scored(
    executor: Executor,
    address: TableAddress,
    located_U: Located,
    places_U: Int64Array,
    order_U: Int64Array,
    *,
    strategy: "Strategy",
    learner: Learner,
    budget: int,
    seed: int,
    device: str,
    progress: Progress,
    part_rows: int,
) -> "Selection":
    """Choose by a score; rows of the result count the candidates from 0."""
    from svp.strategies.base import Selection

    if learner.proxy is None:
        raise InputError(
            f"{strategy.name} must have a trained proxy. Got a round without labels of two "
            "classes. Use random, kmeans or coreset for the first round, or import labels first."
        )
    places_b, utility_b = scoring.best_places(
        executor,
        address,
        located_U,
        places_U,
        strategy=strategy,
        proxy=learner.proxy,
        keep=budget,
        seed=seed,
        device=device,
        progress=progress,
        part_rows=part_rows,
    )
    rows_b = order_U[places_b]
    # Sentences, and the proof that this machine computes what the workers did.
    again = scoring.score_rows(
        strategy,
        learner.proxy,
        RowReader(address).read(located_U.take(rows_b)),
        places_b,
        candidates=len(places_U),
        seed=seed,
        reasons=True,
    )
    counters = {
        "scored": len(places_U),
        "parts": -(-len(places_U) // part_rows),
        "scored_differently": scoring.differing(utility_b, again.utility_n),
    }
    return Selection(
        rows_b=rows_b,
        utility_b=utility_b,
        reason=again.reasons_n[0],
        reasons_b=again.reasons_n,
        exactness=again.exactness,
        counters=counters,
    )


def _of_pool(selection: "Selection", candidates_U: Int64Array) -> "Selection":
    return dataclasses.replace(selection, rows_b=candidates_U[selection.rows_b])
