"""A finished round brought back: the labels, settings and embeddings that it had.

What replays and explanations share. Everything is read anew from the study; nothing is trusted
that can be computed.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from svp.cluster.executor import InProcess
from svp.errors import InputError
from svp.progress import Progress
from svp.study.choice import Choice, Clock, Plan, choose, plan_of_receipt
from svp.study.features import Features, read_features, split_rows
from svp.study.hierarchy import EXACTNESS as HIERARCHICAL
from svp.study.record import RoundResult, pending_ids, read_rounds
from svp.study.scattered import ScatteredPool, choose_scattered, open_scattered
from svp.study.stored_views import ItemViews, read_views
from svp.study.study import Study

if TYPE_CHECKING:
    from feature_store.pool import Pool


def find_round(study: Study, number: int) -> tuple[RoundResult, list[RoundResult]]:
    """Return a finished round, and all rounds, oldest first.

    Raises:
        InputError: There is no such round.
    """
    done = read_rounds(study)
    found = next((earlier for earlier in done if earlier.number == number), None)
    if found is None:
        known = ", ".join(str(earlier.number) for earlier in done) or "none"
        raise InputError(f"A round must be one of: {known}. Got {number}. Name one of them.")
    return found, done


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """What a round chose from.

    Attributes:
        found: The round.
        rounds: All rounds of the study.
        plan: Strategy, proxy and seed, by its receipt.
        features: Embeddings of what may be labelled.
        labels: Label by id, of that time.
        pending: Ids that waited for a label.
        views: For a proxy that learns from unlabelled items.
        device: Where tensors live.
    """

    found: RoundResult
    rounds: list[RoundResult]
    plan: Plan
    features: "Features | ScatteredPool"
    labels: Mapping[str, str]
    pending: frozenset[str]
    views: ItemViews | None
    device: str

    @property
    def candidates(self) -> list[str]:
        """Ids that could be chosen."""
        taken = {*self.labels, *self.pending}
        return [key for key in self.features.ids if key not in taken]

    def choose(self, *, without: Collection[str] = (), budget: int | None = None) -> Choice:
        """Choose again.

        Args:
            without: Ids that must not be chosen this time.
            budget: How many; None: as many as the round.
        """
        receipt = self.found.receipt
        pending = {*self.pending, *without}
        count = int(receipt["budget"]) if budget is None else budget
        if isinstance(self.features, ScatteredPool):
            return choose_scattered(
                self.features,
                self.plan,
                labels=self.labels,
                pending=pending,
                budget=count,
                device=self.device,
                clock=Clock(),
                rounds=self.rounds,
                part_rows=receipt["strategy"]["counters"]["part_rows"],
            )
        return choose(
            self.features,
            self.plan,
            labels=self.labels,
            pending=pending,
            budget=count,
            device=self.device,
            clock=Clock(),
            rounds=self.rounds,
            views=self.views,
        )


def recall(
    study: Study,
    found: RoundResult,
    rounds: list[RoundResult],
    pool: "Pool",
    labels: Mapping[str, str],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Moment:
    """Bring a round back.

    Args:
        study: The study.
        found: The round.
        rounds: All rounds.
        pool: The study's images.
        labels: Label by id, of that time.
        device: Where tensors live.
        progress: Where to report.

    Raises:
        InputError: Embeddings are missing, or the receipt cannot be read as a plan.
    """
    receipt = found.receipt
    plan, encoder_id = plan_of_receipt(receipt), str(receipt["encoder"]["id"])
    features: Features | ScatteredPool
    views = None
    if receipt["strategy"]["exactness"] == HIERARCHICAL:
        # Its parts belong to what was chosen, whoever worked them off.
        features = open_scattered(
            InProcess(), study, pool, encoder_id, device=device, progress=progress
        )
    else:
        store = study.open_store()
        features = read_features(study, store, pool, encoder_id, split_rows(pool)["train"])
        views = read_views(
            study, store, pool, encoder_id, features.ids, plan.proxy_config, [plan.strategy]
        )
    before = [earlier for earlier in rounds if earlier.number < found.number]
    return Moment(
        found=found,
        rounds=rounds,
        plan=plan,
        features=features,
        labels=labels,
        pending=frozenset(pending_ids(before, labels)),
        views=views,
        device=device,
    )
