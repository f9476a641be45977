"""Facility location: images that together resemble the whole pool, as a start without labels.

Source: greedy facility location over cosines as in DISTIL (Beck et al. 2021, section 4.6), whose
notebook ran it *inside each true class* with the same number of picks per class. That reads the
labels of the whole pool, so it is an option here (`oracle_strata`) and never the default.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.base import Budget, Int64Array, Need, Oracle, PoolView, Selection, Space
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.facility import Similarity, facility_bytes, facility_location
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Points, pool_points


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FacilityLocation:
    """Greedy maximisation of the sum, over all candidates, of the cosine to the nearest pick.

    Attributes:
        similarity: `clipped` is max(0, cosine); `shifted` is (1 + cosine) / 2.
        represented: Candidates, drawn at random, whose similarity counts; 0: all of them. Fewer
            make it the named approximation `sampled-represented`.
        include_labelled: Count labelled images as chosen already. Makes no difference without
            labels.
        oracle_strata: Choose inside each true class, as the published seeds were (Beck et al.
            2021). Reads the label of every candidate, so it serves simulations only.
        space: `input` measures in the embeddings, `hidden` in the input of the proxy's last
            layer (the embeddings when there is no proxy).
    """

    name: ClassVar[str] = "facility_location"
    family: ClassVar[str] = "cover"
    summary: ClassVar[str] = "images that together resemble the whole pool; needs no labels"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Nemhauser et al. 1978; as seeds, Beck et al. 2021, section 4.6"
    scaling: ClassVar[str] = "N^2 h log b"
    instead: ClassVar[str] = "facility_location with represented = 50000"

    similarity: Similarity = "clipped"
    represented: int = 0
    include_labelled: bool = True
    oracle_strata: bool = False
    space: Space = "input"

    def __post_init__(self) -> None:
        check_choice("facility_location.similarity", self.similarity, ("clipped", "shifted"))
        check_range("facility_location.represented", self.represented, 0)
        check_choice("facility_location.space", self.space, ("input", "hidden"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        rows = min(self.represented or shape.candidates, shape.candidates)
        rounds = 1.0 + np.log(max(shape.budget, 1))
        return Cost(
            bytes=shape.tile_bytes
            + 48 * shape.candidates
            + facility_bytes(rows, shape.candidates, shape.hidden)
            + (4 * rows * shape.hidden if rows < shape.candidates else 0),
            flops=2.0 * rows * shape.hidden * (rounds * shape.candidates + 2.0 * shape.labelled),
            passes=rows / 8192 + 3.0 * shape.budget,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates by greedy facility location; see `Strategy.select`."""
        rows_U = view.candidates(seed)
        centres = view.centres(seed) if self.include_labelled else np.zeros(0, dtype=np.int64)
        covered = self._points(view, centres, seed, budget)
        if self.oracle_strata:
            if oracle is None:
                raise InputError(
                    "facility_location.oracle_strata must be given known labels. Got none. "
                    "Use it in a simulation only, or set it to false."
                )
            strata = _strata(oracle(rows_U), b)
        else:
            strata = [(np.arange(len(rows_U), dtype=np.int64), b)]
        places, gains = [], []
        counters: dict[str, int] = {}
        approximate = False
        generator = numpy_generator(seed, "facility_location")
        for members, quota in strata:
            points = self._points(view, rows_U[members], seed, budget)
            represented = points
            if 0 < self.represented < len(members):
                approximate = True
                sample = np.sort(generator.permutation(len(members))[: self.represented])
                represented = self._points(view, rows_U[members[sample]], seed, budget)
            found = facility_location(
                represented, points, quota, similarity=self.similarity, covered=covered
            )
            places.append(members[found.places_b])
            gains.append(found.gains_b)
            for what, count in found.counters.items():
                counters[what] = counters.get(what, 0) + count
        gain_b = np.concatenate(gains)
        # Strata, if any, are merged by gain, so that a prefix of the batch is a good smaller one.
        order = np.argsort(-gain_b, kind="stable") if len(strata) > 1 else np.arange(b)
        return Selection(
            rows_b=rows_U[np.concatenate(places)[order]],
            utility_b=gain_b[order].astype(np.float32),
            reason=(
                "Resembles many images that nothing chosen before resembles (similarity gained: "
                "{utility})."
            ),
            exactness="approx:sampled-represented" if approximate else self.exactness,
            counters=counters,
        )

    def _points(self, view: PoolView, rows: Int64Array, seed: int, budget: Budget) -> Points:
        return pool_points(view, rows, seed, budget, space=self.space, norm="l2")


def _strata(classes_U: Int64Array, b: int) -> list[tuple[Int64Array, int]]:
    """Return the members of each class and how many to choose: equal, where there are enough."""
    members = [np.flatnonzero(classes_U == one) for one in np.unique(classes_U)]
    quotas = np.zeros(len(members), dtype=np.int64)
    sizes = np.array([len(some) for some in members])
    while (left := b - int(quotas.sum())) > 0:
        open_classes = np.flatnonzero(quotas < sizes)
        each = max(1, left // len(open_classes))
        quotas[open_classes[:left]] += np.minimum(each, (sizes - quotas)[open_classes[:left]])
    return [(some, int(quota)) for some, quota in zip(members, quotas, strict=True) if quota > 0]
