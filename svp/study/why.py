"""Why one item was chosen, or was not: what the round knew of it, and what came instead.

Shapes: M = items that may be labelled and have an embedding, d = features, C = classes.
"""

import dataclasses
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from svp.errors import IdentityError, InputError
from svp.progress import Progress
from svp.seed import numpy_generator
from svp.study.features import Features, split_rows
from svp.study.labels import read_labels
from svp.study.moment import Moment, recall
from svp.study.record import Pick, RoundResult, read_rounds
from svp.study.scattered import ScatteredPool
from svp.study.scoring import is_per_row
from svp.study.study import Study

if TYPE_CHECKING:
    import torch

    from feature_store.pool import Pool
    from svp.strategies.base import Rows

_TOP_CLASSES: Final = 5
_SHOWN: Final = 5
_NEAR: Final = 0.98
_NEIGHBOURS: Final = 10
_SAMPLE: Final = 64
_TILE_ROWS: Final = 8192

Float32Array = npt.NDArray[np.float32]

State = Literal["picked", "candidate", "labelled", "waiting", "failed", "evaluation"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClassChance:
    """A class and the proxy's probability of it."""

    name: str
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """Another item of the pool; `label` is the one known when the round chose."""

    id: str
    cosine: float
    label: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Density:
    """How crowded the place is.

    Attributes:
        mean_cosine: Mean cosine to the ten nearest other items.
        share_denser: Share of a seeded sample of the pool whose mean is larger.
        sampled: Items of that sample.
    """

    mean_cosine: float
    share_denser: float
    sampled: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Why:
    """One item and one round.

    Attributes:
        id: The item.
        state: `picked` by the round; `candidate`: could have been and was not; `labelled` or
            `waiting` before the round; `failed`: it has no embedding; `evaluation`: of a split
            that is never labelled.
        answer: The same in one sentence.
        label: Its label now.
        round: The round that is explained; None before there is one.
        strategy: What chose in that round.
        rank: Place in the order to label, or among all candidates if it was not chosen and the
            strategy scores each item alone; None: it has none of its own.
        utility: Utility, likewise.
        reason: What the strategy says of it.
        candidates: Items that could be chosen.
        budget: Items that were.
        probability: Chance with which it was drawn at random; None: a strategy decided.
        classes: The proxy's likeliest classes at that time.
        labelled: Nearest items with a label at that time.
        duplicates: Items at least 0.98 close, nearest first.
        density: How crowded its place in the pool is.
        instead: What would have been chosen had this item not been there.
        also_changed: Whether other picks would have changed, too.
    """

    id: str
    state: State
    answer: str
    label: str | None
    round: int | None = None
    strategy: str | None = None
    rank: int | None = None
    utility: float | None = None
    reason: str | None = None
    candidates: int | None = None
    budget: int | None = None
    probability: float | None = None
    classes: tuple[ClassChance, ...] = ()
    labelled: tuple[Neighbour, ...] = ()
    duplicates: tuple[Neighbour, ...] = ()
    density: Density | None = None
    instead: tuple[str, ...] = ()
    also_changed: bool = False


def why(
    study: Study,
    item: str,
    *,
    number: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Why:
    """Explain what a round did with one item.

    Args:
        study: The study.
        item: Its id.
        number: The round; None: the one that picked it, else the newest.
        device: Where tensors live.
        progress: Where to report.

    Raises:
        InputError: The item or the round does not exist.
        IdentityError: The study's images are not those of the round any more.
    """
    scan = study.scan(progress=progress)
    pool, now = scan.pool, read_labels(study)
    if item in {failure.id for failure in scan.failures}:
        return Why(id=item, state="failed", answer="Its file cannot be read.", label=now.get(item))
    if item not in set(pool.ids):
        raise InputError(
            f"An id must be an item of the study. Got {item}. Use the id column of selection.csv."
        )
    rounds = read_rounds(study)
    found, pick = _round_of(rounds, item, number)
    row = int(pool.index_of([item])[0])
    if row not in split_rows(pool)["train"].tolist():
        side = None if pool.splits is None else pool.splits[row]
        return Why(
            id=item,
            state="evaluation",
            answer=f"It belongs to the split {side}, which is for evaluation and never labelled.",
            label=now.get(item),
        )
    if found is None:
        state: State = "labelled" if item in now else "candidate"
        said = "It has a label" if item in now else "It can be chosen"
        return Why(id=item, state=state, answer=f"{said}; no round exists.", label=now.get(item))
    moment = _moment(study, found, rounds, pool, device, progress)
    if item not in set(moment.features.ids):
        return Why(
            id=item, state="failed", answer="It could not be embedded.", label=now.get(item),
            round=found.number,
        )  # fmt: skip
    seen = _View(moment, item)
    base = Why(
        id=item,
        state="candidate",
        answer="",
        label=now.get(item),
        round=found.number,
        strategy=found.receipt["strategy"]["name"],
        candidates=len(moment.candidates),
        budget=len(found.picks),
        classes=seen.classes(),
        labelled=seen.nearest_labelled(),
        duplicates=seen.duplicates(),
        density=seen.density(),
    )
    if pick is not None:
        return _picked(base, moment, pick)
    return _not_picked(base, moment, item)


def _round_of(
    rounds: list[RoundResult], item: str, number: int | None
) -> tuple[RoundResult | None, Pick | None]:
    """Return the round to explain, and its pick of the item if there is one."""
    if number is not None and number not in {found.number for found in rounds}:
        known = ", ".join(str(found.number) for found in rounds) or "none"
        raise InputError(f"A round must be one of: {known}. Got {number}. Name one of them.")
    for found in reversed(rounds):
        pick = next((pick for pick in found.picks if pick.id == item), None)
        if found.number == number or (number is None and pick is not None):
            return found, pick
    return (rounds[-1] if rounds else None), None


def _moment(
    study: Study,
    found: RoundResult,
    rounds: list[RoundResult],
    pool: "Pool",
    device: str,
    progress: Progress | None,
) -> Moment:
    if found.receipt["pool"]["id"] != pool.id:
        raise IdentityError(
            f"The images must be those of round {found.number}. Got others. "
            f"To see which: svp replay {study.path} --round {found.number}"
        )
    labels = read_labels(study, found.receipt["labels"]["files"])
    return recall(study, found, rounds, pool, labels, device=device, progress=progress)


def _picked(base: Why, moment: Moment, pick: Pick) -> Why:
    instead, also = _instead(moment, pick.id)
    drawn = pick.probability is not None
    how = (
        f"drawn at random with chance {pick.probability:.3g}"
        if drawn
        else f"chosen by {base.strategy}"
    )
    return dataclasses.replace(
        base,
        state="picked",
        answer=f"Round {base.round} picked it, {how}, as {pick.rank} of {base.budget}.",
        rank=pick.rank,
        utility=pick.utility,
        reason=pick.reason,
        probability=pick.probability,
        instead=instead,
        also_changed=also,
    )


def _instead(moment: Moment, item: str) -> tuple[tuple[str, ...], bool]:
    """Return what is chosen without `item`, and whether other picks change with it."""
    before = {pick.id for pick in moment.found.picks}
    if len(moment.candidates) <= len(before):
        return (), False
    after = [pick.id for pick in moment.choose(without=[item]).picks]
    return tuple(key for key in after if key not in before), bool(before - {item} - {*after})


def _not_picked(base: Why, moment: Moment, item: str) -> Why:
    if item in moment.labels:
        return dataclasses.replace(
            base,
            state="labelled",
            answer=f"It had the label {moment.labels[item]} before round {base.round}.",
        )
    if item in moment.pending:
        return dataclasses.replace(
            base,
            state="waiting",
            answer=f"An earlier round picked it, and its label was awaited in round {base.round}.",
        )
    plan = moment.plan
    first = bool(moment.found.receipt["strategy"]["first_round"])
    strategy = plan.first_strategy if first and plan.first_strategy is not None else plan.strategy
    if not is_per_row(strategy):
        return dataclasses.replace(
            base,
            answer=(
                f"Round {base.round} could have picked it and did not. {base.strategy} weighs "
                "items against each other, so an item that was not picked has no rank."
            ),
        )
    every = moment.choose(budget=len(moment.candidates)).picks
    own = next(pick for pick in every if pick.id == item)
    last = moment.found.picks[-1].utility
    return dataclasses.replace(
        base,
        answer=(
            f"Round {base.round} ranked it {own.rank:,} of {base.candidates:,} by "
            f"{base.strategy} and took {base.budget:,}: its utility {own.utility:.4g} is not above "
            f"{last:.4g}, the last one taken."
        ),
        rank=own.rank,
        utility=own.utility,
        reason=own.reason,
    )


class _View:
    """What a round could see of one item."""

    def __init__(self, moment: Moment, item: str) -> None:
        self._moment, self._item = moment, item
        features = moment.features
        if isinstance(features, ScatteredPool):
            features = features.features(np.arange(len(features.ids)))
        assert isinstance(features, Features)
        self._x_Md: torch.Tensor | Rows = features.x_Md
        self._ids = features.ids
        self._row = features.ids.index(item)
        self._cosine_M = self._cosines([self._row])[0]

    def _cosines(self, rows: list[int]) -> Float32Array:
        """Return the cosines of some items to all, (K, M)."""
        import torch
        from torch.nn.functional import normalize

        from svp.strategies.base import gather

        own_Kd = normalize(gather(self._x_Md, np.asarray(rows)).float(), dim=1)
        tiles = [
            own_Kd @ normalize(gather(self._x_Md, np.arange(at, stop)).float(), dim=1).T
            for at in range(0, len(self._ids), _TILE_ROWS)
            for stop in [min(at + _TILE_ROWS, len(self._ids))]
        ]
        return torch.cat(tiles, dim=1).cpu().numpy()

    def _neighbour(self, row: int) -> Neighbour:
        key = self._ids[row]
        cosine = min(float(self._cosine_M[row]), 1.0)
        return Neighbour(id=key, cosine=cosine, label=self._moment.labels.get(key))

    def _nearest(self, rows: list[int]) -> list[int]:
        return sorted(rows, key=lambda row: (-self._cosine_M[row], self._ids[row]))

    def nearest_labelled(self) -> tuple[Neighbour, ...]:
        """Return the nearest items that had a label."""
        labels = self._moment.labels
        rows = [row for row, key in enumerate(self._ids) if key in labels and row != self._row]
        return tuple(self._neighbour(row) for row in self._nearest(rows)[:_SHOWN])

    def duplicates(self) -> tuple[Neighbour, ...]:
        """Return items that are almost the same."""
        rows = np.flatnonzero(self._cosine_M >= _NEAR).tolist()
        near = self._nearest([row for row in rows if row != self._row])
        return tuple(self._neighbour(row) for row in near[:_SHOWN])

    def density(self) -> Density | None:
        """Return how close the nearest items are, beside a sample of the pool."""
        total = len(self._ids)
        k = min(_NEIGHBOURS, total - 1)
        if k < 1:
            return None
        drawn = numpy_generator(0, "why", self._item).permutation(total)[:_SAMPLE].tolist()
        rows = [self._row, *(row for row in drawn if row != self._row)]
        cosine_KM = self._cosines(rows)
        cosine_KM[np.arange(len(rows)), rows] = -np.inf
        mean_K = np.partition(cosine_KM, -k, axis=1)[:, -k:].mean(axis=1)
        return Density(
            mean_cosine=float(mean_K[0]),
            share_denser=float(np.mean(mean_K[1:] > mean_K[0])) if len(rows) > 1 else 0.0,
            sampled=len(rows) - 1,
        )

    def classes(self) -> tuple[ClassChance, ...]:
        """Return what the proxy of the round, as it is on disk, makes of the item."""
        import torch

        from svp.proxies import load_proxy
        from svp.strategies.base import gather

        found = self._moment.found
        path = found.folder / "proxy.safetensors"
        if not path.is_file():
            return ()
        x_1d = gather(self._x_Md, np.asarray([self._row])).to(torch.float32).cpu()
        chance_C = load_proxy(path).predict_proba(x_1d)[0]
        names = found.receipt["proxy"]["classes"]
        top = chance_C.topk(min(_TOP_CLASSES, len(names)))
        return tuple(
            ClassChance(name=names[index], probability=value)
            for index, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
