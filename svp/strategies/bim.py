"""AdversarialBIM: items whose prediction flips after few signed gradient steps.

Every step moves each feature by a fixed amount in the direction that raises the loss of the
predicted class, until the prediction changes. The features are those that the last layer reads;
no image is perturbed.

Source: Kurakin, Goodfellow and Bengio 2017, "Adversarial examples in the physical world",
equation 2 (the step); Ducoffe and Precioso 2018 for adversarial distance as a score.
Shapes: T = rows, A = rows still walking, C = classes, h = width of the last layer's input.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.nn.functional import linear

from svp.strategies.base import Budget, LinearHead, Need, Oracle, PoolView, Selection
from svp.strategies.block import on_whole_block
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice, check_number, check_range
from svp.strategies.rank import check_scores, rank_by_logits
from svp.strategies.weights import FAR, boundary_distances, head_distances


def linf_margin(z_TC: torch.Tensor, distance_CC: torch.Tensor) -> torch.Tensor:
    """Return minus the smallest change of any one feature that flips the prediction, (T,).

    Args:
        z_TC: Logits.
        distance_CC: Sums of absolute differences of the classes' weights
            (`weight_distances(head, p=1)`).
    """
    return -boundary_distances(z_TC, distance_CC).amin(dim=1)


def signed_walk(
    h_Th: torch.Tensor, head: LinearHead, *, step: float, most_steps: int
) -> torch.Tensor:
    """Return the squared length of the walk until the prediction flips, (T,); inf if it never does.

    Rows that have flipped are dropped from the products of later steps. The direction of the
    gradient is taken from the softmax over the *other* classes, to which it is proportional, so
    it does not vanish where the proxy is certain.

    Args:
        h_Th: What the last layer reads.
        head: The last layer.
        step: Change of every feature in one step.
        most_steps: Rows that did not flip by then never do.
    """
    weight_Ch, bias_C = head.weight_Cd, head.bias_C
    square_T = torch.full((len(h_Th),), torch.inf, device=h_Th.device)
    if len(bias_C) == 1:
        return square_T
    index_A = torch.arange(len(h_Th), device=h_Th.device)
    walk_Ah = torch.zeros_like(h_Th)
    start_Ah = h_Th
    z_AC = linear(h_Th, weight_Ch, bias_C)
    first_A1 = z_AC.argmax(dim=1, keepdim=True)
    for _ in range(most_steps):
        other_AC = z_AC.scatter(1, first_A1, -torch.inf).softmax(dim=1)
        gradient_Ah = other_AC.scatter(1, first_A1, -1.0) @ weight_Ch
        # Counted in whole steps, so that walking back and forth leaves no rounding behind.
        sign_Ah = gradient_Ah.sign()
        walk_Ah = walk_Ah + sign_Ah
        z_AC = linear(start_Ah + step * walk_Ah, weight_Ch, bias_C)
        flipped_A = z_AC.argmax(dim=1, keepdim=True) != first_A1
        # Without a gradient nothing will ever change.
        done_A = flipped_A[:, 0] | ~(sign_Ah != 0).any(dim=1)
        if bool(done_A.any()):
            flipped = torch.nonzero(flipped_A[:, 0]).flatten()
            square_T[index_A[flipped]] = step**2 * walk_Ah[flipped].square().sum(dim=1)
            left = torch.nonzero(~done_A).flatten()
            if not len(left):
                break
            index_A, walk_Ah, start_Ah = index_A[left], walk_Ah[left], start_Ah[left]
            z_AC, first_A1 = z_AC[left], first_A1[left]
    return square_T


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bim:
    """Shortest signed walk to another prediction first.

    The score counts whole steps, so very many items tie. Ties are ordered by the smallest change
    of any one feature that flips the prediction (`form = surrogate`), then by hash; the published
    code leaves them to the sort. Items that never flip come last.

    Attributes:
        form: `lockstep` walks, as published. `surrogate` ranks by the closed form of that smallest
            change: the same for two classes, at no more than the cost of MASE.
        step: Change of every feature in one step, in the units of what the last layer reads
            (standard deviations for a linear proxy). The published 0.05 was meant for pixels.
        most_steps: Steps after which an item counts as one that never flips; one published
            implementation has no limit and may never end.
    """

    name: ClassVar[str] = "bim"
    family: ClassVar[str] = "score"
    summary: ClassVar[str] = "images that few small steps in feature space would reclassify"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "linear_head"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Kurakin et al. 2017, equation 2; as compared in Beck et al. 2021"
    scaling: ClassVar[str] = "steps N h C"
    instead: ClassVar[str] = "bim with form=surrogate"

    form: Literal["lockstep", "surrogate"] = "lockstep"
    step: float = 0.05
    most_steps: int = 1000

    def __post_init__(self) -> None:
        check_choice("bim.form", self.form, ("lockstep", "surrogate"))
        check_number("bim.step", self.step, 1e-9)
        check_range("bim.most_steps", self.most_steps, 1)

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        table = 24 * shape.classes**2 + 8 * shape.classes * shape.hidden
        walk = 4 * 1024 * (8 * shape.hidden + 6 * shape.classes) * (self.form == "lockstep")
        # How far items must walk is not known before; ten steps are typical of a trained proxy.
        steps = min(10, self.most_steps) if self.form == "lockstep" else 0
        return Cost(
            bytes=shape.tile_bytes + 64 * shape.candidates + table + walk,
            flops=(1 + 2 * steps) * shape.logits_flops,
            passes=1.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates that flip soonest; see `Strategy.select`."""
        del oracle
        distance_CC = head_distances(view, budget.device, p=1.0)
        if self.form == "surrogate":
            rows_b, utility_b = rank_by_logits(
                view, b, seed, budget, lambda z_TC: linf_margin(z_TC, distance_CC)
            )
            return Selection(
                rows_b=rows_b,
                utility_b=utility_b,
                reason=(
                    "A small change of every feature flips the prediction (minus that change: "
                    "{utility})."
                ),
                exactness="approx:linf-margin",
            )
        head = view.required_proxy().head
        rows_U = view.candidates(seed)
        square_U = np.empty(len(rows_U), dtype=np.float32)
        closer_U = np.empty(len(rows_U), dtype=np.float32)
        for part, h_Th in view.space_tiles(rows_U, budget):
            z_TC = on_whole_block(lambda h: linear(h, head.weight_Cd, head.bias_C), h_Th)
            closer_U[part] = linf_margin(z_TC, distance_CC).cpu().numpy()
            with torch.no_grad():
                square_T = signed_walk(h_Th, head, step=self.step, most_steps=self.most_steps)
            square_U[part] = square_T.clamp_max(FAR).cpu().numpy()
        check_scores(closer_U)
        order = np.lexsort((-closer_U, square_U))[:b]
        return Selection(
            rows_b=rows_U[order],
            utility_b=-square_U[order],
            reason=(
                "Few small steps of its features, not of its pixels, change the prediction (minus "
                "the squared length of the walk: {utility})."
            ),
            exactness=self.exactness,
            counters={"never_flipped": int((square_U >= FAR).sum())},
        )
