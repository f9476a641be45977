"""Quotas per group: every site, camera or patient gets its share of a batch.

Shapes: G = groups, U = candidates, b = budget.
"""

import dataclasses
from typing import Literal

import numpy as np

from svp.errors import InputError
from svp.strategies.base import Budget, Oracle, PoolView, Selection
from svp.strategies.parameters import check_choice
from svp.strategies.quotas import choose_by_quota, equal, proportional
from svp.strategies.wrapper import Wrapper


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GroupQuota(Wrapper):
    """Divides a batch among groups; the inner strategy chooses in each by itself.

    What it chooses in one group it does not know in the next, so a strategy that spreads its
    picks spreads them within groups.

    Attributes:
        mode: `proportional` to the candidates of each group, by largest remainder, or `equal`,
            as far as groups have that many.
    """

    mode: Literal["equal", "proportional"]

    def __post_init__(self) -> None:
        check_choice("groups", self.mode, ("equal", "proportional"))

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        if view.groups_N is None:
            raise InputError(
                "Quotas per group must have groups. Got a pool without. "
                'Add a column "group" to the manifest, or leave groups out of [strategy].'
            )
        found, group_N = np.unique(view.groups_N, return_inverse=True)
        group_N = group_N.reshape(-1)
        part_U = group_N[view.unlabelled_U]
        free_G = np.bincount(part_U, minlength=len(found))
        labelled_G = np.bincount(group_N[view.labelled_L], minlength=len(found))
        divide = equal if self.mode == "equal" else proportional
        quota_G = divide(free_G, labelled_G, b)
        return choose_by_quota(
            self.inner, view, part_U, quota_G, seed, budget, oracle, what="group"
        )
