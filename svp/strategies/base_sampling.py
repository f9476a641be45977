"""BASE: for every class, items nearest that class's own decision boundary.

MASE asks which items are nearest any boundary, and may take them all from few classes. BASE
measures the distance to the boundary of each class and gives every class an equal share.

Source: Emam et al. 2021, "Active learning at the ImageNet scale" (BASE), algorithm 2, equation 3.
Shapes: C = classes, T = rows of one block, k = items kept per class, E = entries of a stream.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Final, Literal

import numpy as np
import torch

from svp.errors import InputError
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.keys import hash_keys
from svp.strategies.parameters import check_choice
from svp.strategies.polyhedron import region_distances
from svp.strategies.position import position_free
from svp.strategies.weights import FAR, boundary_distances, weight_distances

# With more classes the quadratic programmes of the exact distance are no longer small.
POLYHEDRON_CLASSES: Final = 32
_HELD: Final = 2**14
_SIGN: Final = np.uint64(1 << 63)  # flipped, signed numbers sort like unsigned ones
_SPARE: Final = 64


def class_distances(z_TC: torch.Tensor, distance_CC: torch.Tensor) -> torch.Tensor:
    """Return the distance of every item to the boundary of every class, (T, C), as published.

    For the predicted class that is the distance to its nearest boundary, as in MASE. For another
    class it is the distance to the single boundary between it and the predicted class: exact if
    nothing else lies between, else too small.

    Args:
        z_TC: Logits.
        distance_CC: Euclidean distances of the classes' weights.
    """
    distance_TC = boundary_distances(z_TC, distance_CC)
    best_T1 = z_TC.argmax(dim=1, keepdim=True)
    return distance_TC.scatter(1, best_T1, distance_TC.amin(dim=1, keepdim=True))


def region_bounds(z_TC: torch.Tensor, distance_CC: torch.Tensor) -> torch.Tensor:
    """Return a lower bound of the exact distances, (T, C): every boundary of the class alone."""
    bound_TC = torch.zeros_like(z_TC)
    for other in range(z_TC.shape[1]):
        between_C = distance_CC[other]
        lead_TC = (z_TC[:, other : other + 1] - z_TC) / torch.where(between_C > 0, between_C, 1.0)
        bound_TC = torch.maximum(bound_TC, lead_TC)
    return bound_TC


class _Nearest:
    """The k nearest items of every class, of a stream.

    Args:
        ties_U: What decides between items at the same distance, by place, lowest first.
        classes: C.
        k: How many of each class.
    """

    def __init__(self, ties_U: torch.Tensor, classes: int, k: int) -> None:
        self._ties_U, self._classes, self._k = ties_U, classes, k
        device = ties_U.device
        self.reach_C = torch.full((classes,), torch.inf, device=device)
        self._class_E = torch.zeros(0, dtype=torch.int32, device=device)
        self._distance_E = torch.zeros(0, device=device)
        self._place_E = torch.zeros(0, dtype=torch.int64, device=device)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._held = 0

    def push(self, class_E: torch.Tensor, distance_E: torch.Tensor, place_E: torch.Tensor) -> None:
        """Offer entries, in the order of their places."""
        self._waiting.append((class_E.to(torch.int32), distance_E, place_E))
        self._held += len(place_E)
        if self._held > 2 * self._k * self._classes + _HELD:
            self._compact()

    def _compact(self) -> None:
        if not self._waiting:
            return
        parts = [(self._class_E, self._distance_E, self._place_E), *self._waiting]
        class_E, distance_E, place_E = (
            torch.cat(list(column)) for column in zip(*parts, strict=True)
        )
        order = torch.argsort(distance_E, stable=True)
        order = order[torch.argsort(class_E[order], stable=True)]
        class_E, distance_E, place_E = class_E[order], distance_E[order], place_E[order]
        place_E = self._untied(class_E, distance_E, place_E)
        count_C = torch.bincount(class_E, minlength=self._classes)
        first_C = count_C.cumsum(0) - count_C
        rank_E = torch.arange(len(class_E), device=class_E.device) - first_C[class_E]
        keep = rank_E < self._k
        self._class_E, self._distance_E = class_E[keep], distance_E[keep]
        self._place_E = place_E[keep]
        full = rank_E[keep] == self._k - 1
        self.reach_C[self._class_E[full].long()] = self._distance_E[full]
        self._waiting, self._held = [], 0

    def _untied(
        self, class_E: torch.Tensor, distance_E: torch.Tensor, place_E: torch.Tensor
    ) -> torch.Tensor:
        """Return sorted places with those of one class at one distance in the order of ties."""
        again_E = (class_E[1:] == class_E[:-1]) & (distance_E[1:] == distance_E[:-1])
        if not bool(again_E.any()):
            return place_E
        pad = torch.nn.functional.pad
        tied = torch.nonzero(pad(again_E, (1, 0)) | pad(again_E, (0, 1))).flatten()
        run_E = (~pad(again_E, (1, 0))).cumsum(0)
        place_T = place_E[tied]
        # Keys may repeat: of such items the first in the pool comes first.
        order = torch.argsort(place_T)
        order = order[torch.argsort(self._ties_U[place_T[order]], stable=True)]
        order = order[torch.argsort(run_E[tied][order], stable=True)]
        return place_E.index_copy(0, tied, place_T[order])

    def lists(self) -> list[tuple[list[int], list[float]]]:
        """Return places and distances per class, nearest first."""
        self._compact()
        count_C = torch.bincount(self._class_E, minlength=self._classes).cpu().numpy()
        cuts = np.cumsum(count_C)[:-1]
        places = np.split(self._place_E.cpu().numpy(), cuts)
        distances = np.split(self._distance_E.cpu().numpy(), cuts)
        return [(p.tolist(), d.tolist()) for p, d in zip(places, distances, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """An equal share of the batch for every class, nearest its boundary first.

    Attributes:
        distance: `pairwise`, as in the published code and results: for a class that is not
            predicted, the distance to the one boundary between it and the prediction.
            `polyhedral`: the published definition (equation 3), the distance to where the class
            beats *all* others, which is never smaller; solved exactly for up to 32 classes.
        order: `roundrobin` is algorithm 2: every class takes one item in turn. `sequential` is
            the published code: class 0 takes its whole share, then class 1, and so on. They
            differ where an item is near the boundaries of several classes.

    The first (budget mod C) classes get one more. Distances are taken where the last layer reads,
    see MASE.
    """

    name: ClassVar[str] = "base"
    family: ClassVar[str] = "score"
    summary: ClassVar[str] = "for each class, the images closest to becoming or leaving it"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "linear_head"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Emam et al. 2021, algorithm 2"
    scaling: ClassVar[str] = "N h C"
    instead: ClassVar[str] = "mase"

    distance: Literal["pairwise", "polyhedral"] = "pairwise"
    order: Literal["roundrobin", "sequential"] = "roundrobin"

    def __post_init__(self) -> None:
        check_choice("base.distance", self.distance, ("pairwise", "polyhedral"))
        check_choice("base.order", self.order, ("roundrobin", "sequential"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        classes = shape.classes
        kept = 4 * -(-shape.budget // classes) + _SPARE
        # What waits, and one sort of it: classes, distances, places, and orders of each.
        entries = 3 * kept * classes + _HELD + 1024 * classes
        flops = shape.logits_flops + 6.0 * shape.candidates * classes
        extra = 0
        if self.distance == "polyhedral":
            extra = 8 * 8 * 2048 * classes**2
            flops += shape.candidates * classes * (2.0 * classes + classes**3 / 8)
        return Cost(
            bytes=2 * shape.tile_bytes
            + 16 * shape.candidates
            + 72 * entries
            + 24 * classes**2
            + 16 * classes * shape.hidden
            + extra,
            flops=flops,
            passes=1.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates, an equal share per class; see `Strategy.select`."""
        del oracle
        return _Run(self, view, b, seed, budget).selection()


class _Run:
    def __init__(self, strategy: Base, view: PoolView, b: int, seed: int, budget: Budget) -> None:
        self._strategy, self._view, self._b, self._budget = strategy, view, b, budget
        head = view.required_proxy().head
        self._classes = len(head.bias_C)
        if strategy.distance == "polyhedral" and self._classes > POLYHEDRON_CLASSES:
            raise InputError(
                f"base.distance=polyhedral must be used with at most {POLYHEDRON_CLASSES} classes. "
                f"Got {self._classes}. Use distance=pairwise, a lower bound that costs nothing."
            )
        self._weight_Ch = head.weight_Cd.to(budget.device)
        self._distance_CC = weight_distances(head).to(budget.device)
        self._polyhedral = strategy.distance == "polyhedral"
        # As they lie, if that gives the same bits; else in an order that the pool's has no part
        # in. Programmes are solved for several rows at once, so their bits may depend on it.
        free = not self._polyhedral and position_free(
            view.required_proxy(), self._distances_of, view.embeddings_Nd.shape[1], budget.device
        )
        self._rows_U = view.unlabelled_U if free else view.candidates(seed)
        self._ties_U = torch.from_numpy(
            (hash_keys(view.keys_N[self._rows_U], seed) ^ _SIGN).view(np.int64)
        ).to(budget.device)
        self._taken_U = torch.zeros(len(self._rows_U), dtype=torch.bool, device=budget.device)
        share, more = divmod(b, self._classes)
        self._quota_C = [share + (c < more) for c in range(self._classes)]
        self._places: list[int] = []
        self._distances: list[float] = []
        self._counters = {"passes": 0, "programmes": 0}

    def selection(self) -> Selection:
        open_turns = self._turns()
        while open_turns:
            # A class rarely loses more than its spare items to others; if so, read again
            # without what is taken.
            k = 4 * max(self._quota_C) + _SPARE
            open_turns = self._serve(open_turns, self._read(k).lists())
        return Selection(
            rows_b=self._rows_U[np.asarray(self._places, dtype=np.int64)],
            utility_b=-np.asarray(self._distances, dtype=np.float32),
            reason=(
                "Near the boundary of one class, each class having an equal share (minus the "
                "distance to it: {utility})."
            ),
            exactness=self._strategy.exactness,
            counters=self._counters,
        )

    def _turns(self) -> list[int]:
        """Return the classes in the order in which they take one item each."""
        classes = range(self._classes)
        if self._strategy.order == "sequential":
            return [c for c in classes for _ in range(self._quota_C[c])]
        rounds = range(max(self._quota_C))
        return [c for turn in rounds for c in classes if turn < self._quota_C[c]]

    def _serve(self, turns: list[int], lists: list[tuple[list[int], list[float]]]) -> list[int]:
        """Let classes take items until one list runs out; return the turns that are left."""
        taken = set(self._places)
        new: list[int] = []
        at = [0] * self._classes
        for index, c in enumerate(turns):
            places, distances = lists[c]
            while at[c] < len(places) and places[at[c]] in taken:
                at[c] += 1
            if at[c] == len(places):
                turns = turns[index:]
                break
            place = places[at[c]]
            taken.add(place)
            new.append(place)
            self._distances.append(distances[at[c]])
        else:
            turns = []
        self._places.extend(new)
        self._taken_U[torch.tensor(new, dtype=torch.int64, device=self._taken_U.device)] = True
        return turns

    def _distances_of(self, z_TC: torch.Tensor) -> torch.Tensor:
        return class_distances(z_TC, self._distance_CC)

    def _read(self, k: int) -> _Nearest:
        self._counters["passes"] += 1
        nearest = _Nearest(self._ties_U, self._classes, k)
        for part, distance_TC in self._tiles(nearest):
            good_TC = (distance_TC <= nearest.reach_C) & ~self._taken_U[part][:, None]
            row_E, class_E = torch.nonzero(good_TC, as_tuple=True)
            nearest.push(class_E, distance_TC[row_E, class_E], row_E + part.start)
        return nearest

    def _tiles(self, nearest: _Nearest) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (positions, distances (T, C)) block by block."""
        if not self._polyhedral:
            yield from self._view.utility_tiles(self._rows_U, self._budget, self._distances_of)
            return
        for part, z_TC in self._view.logit_tiles(self._rows_U, self._budget):
            distance_TC = self._distances_of(z_TC)
            self._refine(z_TC, distance_TC, nearest.reach_C, self._taken_U[part])
            yield part, distance_TC

    def _refine(
        self,
        z_TC: torch.Tensor,
        distance_TC: torch.Tensor,
        reach_C: torch.Tensor,
        taken_T: torch.Tensor,
    ) -> None:
        """Replace distances to classes that are not predicted by exact ones where it matters."""
        best_T1 = z_TC.argmax(dim=1, keepdim=True)
        matters_TC = (region_bounds(z_TC, self._distance_CC) * (1.0 - 1e-5) <= reach_C) & ~taken_T[
            :, None
        ]
        matters_TC = matters_TC.scatter(1, best_T1, False)
        away_TC = torch.ones_like(matters_TC).scatter(1, best_T1, False)
        exact_TC = torch.where(away_TC, torch.inf, distance_TC)
        for c in range(self._classes):
            index = torch.nonzero(matters_TC[:, c]).flatten()
            if len(index):
                distance_M = region_distances(z_TC[index], self._weight_Ch, c)
                exact_TC[index, c] = distance_M.float()
                self._counters["programmes"] += len(index)
        # Where it does not matter an infinite distance says so: it is beyond the reach.
        distance_TC.copy_(exact_TC.clamp_max(FAR))
