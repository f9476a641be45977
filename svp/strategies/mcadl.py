"""MCADL: novelty, uncertainty and the needs of classes in one score, weighted by progress.

While the proxy is poor, images unlike the labelled ones of their class count most; as it
improves, its uncertainty and the weights of classes take over.

Source: Yuan et al. 2019, "Multi-criteria active deep learning for image classification", in the
form that Li et al. 2024 compared (their implementation; the original was not at hand). That
implementation compares raw pixels; here it is embeddings.
Shapes: U = candidates, L = labelled, C = classes, T = rows of one block, h = width.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import ClassVar, Final, Literal

import numpy as np
import torch

from svp.strategies.base import (
    Budget,
    Float64Array,
    Int64Array,
    Need,
    Oracle,
    PoolView,
    Selection,
    Space,
)
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.points import Points, pool_points
from svp.strategies.rank import rank_scored

_START: Final = 0.9
_FAIR: Final = 0.5
# Up to this many labels the cosines of a block are kept for its second reading.
HELD_LABELS: Final = 65_536


def blends(train_accuracy: float) -> tuple[float, float]:
    """Return (alpha, beta), both 0.9 exp(-accuracy), in [0.9 / e, 0.9]."""
    value = _START * math.exp(-train_accuracy)
    return value, value


def class_weights(accuracy_C: Float64Array, before_C: Float64Array) -> Float64Array:
    """Return the weight of every class, (C,); they sum to 1.

    While any class is right less than half the time, classes that have improved most since the
    round before count most; then the classes that are worst. Without any improvement all count
    the same.
    """
    if accuracy_C.min() < _FAIR:
        weight_C = np.maximum(accuracy_C - before_C, 0.0)
        if not weight_C.sum() > 0:
            weight_C = np.ones_like(accuracy_C)
    else:
        weight_C = 1.0 / accuracy_C
    share_C: Float64Array = weight_C / weight_C.sum()
    return share_C


def concentration(z_TC: torch.Tensor, form: Literal["guarded", "published"]) -> torch.Tensor:
    """Return the uncertainty of every prediction, float64 (T,).

    With Z the fewest largest probabilities that sum to more than one half, it is
    1 - mean |Z - mean Z|. If Z is a single one that is 1, the largest value, for every
    prediction that one class dominates: so it is as `published`. `guarded` takes 1 - p there.
    """
    p_TC = z_TC.double().softmax(dim=1).sort(dim=1, descending=True).values
    in_Z_TC = p_TC.cumsum(dim=1) - p_TC <= _FAIR
    count_T1 = in_Z_TC.sum(dim=1, keepdim=True)
    mean_T1 = torch.where(in_Z_TC, p_TC, 0.0).sum(dim=1, keepdim=True) / count_T1
    spread_TC = torch.where(in_Z_TC, (p_TC - mean_T1).abs(), 0.0)
    value_T = 1.0 - (spread_TC.sum(dim=1, keepdim=True) / count_T1)[:, 0]
    if form == "published":
        return value_T
    return torch.where(count_T1[:, 0] == 1, 1.0 - p_TC[:, 0], value_T)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mcadl:
    """Largest blend of novelty, uncertainty and class weight first.

    score = alpha (density + similarity) / 2 + (1 - alpha) (beta uncertainty + (1 - beta) weight),
    with alpha = beta = 0.9 exp(-accuracy on the labelled images). An image's class is the one the
    proxy predicts for most of its `neighbours` most similar labelled images, the most similar of
    equals; density is 1 minus the mean, similarity 1 minus the largest cosine to the labelled
    images of that class. The mean is taken through the mean of the unit vectors, which is exact.

    The published code fails or ranks NaN first for a class without labelled images; here such
    an image is compared with all labelled images. The state keeps the accuracy of every class.

    Attributes:
        neighbours: Labelled images that vote on the class.
        uncertainty: `guarded` or `published`, see `concentration`.
        space: `hidden` compares what the last layer reads, `input` the embeddings.
    """

    name: ClassVar[str] = "mcadl"
    family: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = "blends novelty, uncertainty and what each class needs"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "labelled"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Yuan et al. 2019, as implemented for Li et al. 2024"
    scaling: ClassVar[str] = "N L h"
    instead: ClassVar[str] = "margin"

    neighbours: int = 5
    uncertainty: Literal["guarded", "published"] = "guarded"
    space: Space = "hidden"

    def __post_init__(self) -> None:
        check_range("mcadl.neighbours", self.neighbours, 1)
        check_choice("mcadl.uncertainty", self.uncertainty, ("guarded", "published"))
        check_choice("mcadl.space", self.space, ("input", "hidden"))

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        held = 8 * shape.hidden * (shape.labelled + 2 * shape.classes)
        block = BLOCK_ROWS * (24 * BLOCK_ROWS + 64 * (shape.classes + self.neighbours))
        cosines = 4 * BLOCK_ROWS * shape.labelled * (shape.labelled <= HELD_LABELS)
        return Cost(
            bytes=2 * shape.tile_bytes + 32 * shape.candidates + held + block + cosines,
            flops=4.0 * shape.candidates * shape.labelled * shape.hidden + shape.logits_flops,
            passes=2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates of largest score; see `Strategy.select`."""
        del oracle
        rows_U, rows_L = view.candidates(seed), view.centres(seed)
        truth_L = view.y_L[np.searchsorted(view.labelled_L, rows_L)]
        said_L = np.empty(len(rows_L), dtype=np.int64)
        for part, z_TC in view.logit_tiles(rows_L, budget):
            said_L[part] = z_TC.argmax(dim=1).cpu().numpy()
        right_L = said_L == truth_L
        count_C = np.bincount(truth_L, minlength=view.n_classes)
        hits_C = np.bincount(truth_L[right_L], minlength=view.n_classes)
        accuracy_C = hits_C / np.maximum(count_C, 1)
        before_C = np.zeros(view.n_classes)
        before = np.asarray(view.state.get("accuracy", []), dtype=np.float64)
        before_C[: len(before)] = before[: view.n_classes]
        weight_C = class_weights(accuracy_C, before_C)
        alpha, beta = blends(float(right_L.mean()))
        novelty = _Novelty(self, view, rows_U, rows_L, said_L, truth_L, seed, budget)
        weights_C = torch.from_numpy(weight_C).to(budget.device)

        def scored() -> Iterator[tuple[slice, torch.Tensor]]:
            tiles = view.logit_tiles(rows_U, budget)
            for (part, z_TC), (novelty_T, class_T) in zip(tiles, novelty.blocks(), strict=True):
                unsure_T = concentration(z_TC, self.uncertainty)
                model_T = beta * unsure_T + (1.0 - beta) * weights_C[class_T]
                yield part, alpha * novelty_T + (1.0 - alpha) * model_T

        rows_b, utility_b = rank_scored(rows_U, b, scored())
        return Selection(
            rows_b=rows_b,
            utility_b=utility_b,
            reason=(
                "New, uncertain, or of a class that matters now (blend of the three: {utility})."
            ),
            exactness=self.exactness,
            state={"accuracy": accuracy_C.tolist()},
        )


class _Novelty:
    """Cosines of candidates with labelled images, block by block."""

    def __init__(
        self,
        strategy: Mcadl,
        view: PoolView,
        rows_U: Int64Array,
        rows_L: Int64Array,
        said_L: Int64Array,
        truth_L: Int64Array,
        seed: int,
        budget: Budget,
    ) -> None:
        # Sorted into blocks of labelled images that are read again for every candidate block.
        self._points = pool_points(view, rows_U, seed, budget, space=strategy.space, norm="l2")
        labelled = pool_points(view, rows_L, seed, budget, space=strategy.space, norm="l2")
        self._keep = min(strategy.neighbours, len(rows_L))
        self._said_L = torch.from_numpy(said_L).to(budget.device)
        self._truth_L = torch.from_numpy(truth_L).to(budget.device)
        self._blocks_x = [(part, block.x_Mh) for part, block in labelled.blocks()]
        self._mean_Ch, self._filled_C = _class_means(labelled, self._truth_L, view.n_classes)

    def blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (density + similarity) / 2, float64 (T,), and the class, (T,), of each block."""
        for _, block in self._points.blocks():
            x_Th = block.x_Mh
            # Read twice: first to find the class, then for the class alone.
            held = list(self._cosines(x_Th)) if len(self._said_L) <= HELD_LABELS else None
            class_T = self._vote(held or self._cosines(x_Th), len(x_Th))
            mean_Th = self._mean_Ch[class_T]
            density_T = 1.0 - (x_Th.double() * mean_Th).sum(dim=1)
            similarity_T = 1.0 - self._largest(held or self._cosines(x_Th), class_T).double()
            yield (density_T + similarity_T) / 2.0, class_T

    def _cosines(self, x_Th: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        for part, y_Mh in self._blocks_x:
            yield part, x_Th @ y_Mh.T

    def _vote(self, cosines: Iterable[tuple[slice, torch.Tensor]], rows: int) -> torch.Tensor:
        device = self._said_L.device
        top_TK = torch.zeros((rows, 0), device=device)
        said_TK = torch.zeros((rows, 0), dtype=torch.int64, device=device)
        for part, cosine_TM in cosines:
            best = cosine_TM.topk(min(self._keep, cosine_TM.shape[1]), dim=1)
            top_TK = torch.cat([top_TK, best.values], dim=1)
            said_TK = torch.cat([said_TK, self._said_L[part][best.indices]], dim=1)
            # Stable, so that the first of equally similar ones votes first.
            order = torch.argsort(top_TK, dim=1, descending=True, stable=True)[:, : self._keep]
            top_TK, said_TK = top_TK.gather(1, order), said_TK.gather(1, order)
        votes_TK = (said_TK[:, :, None] == said_TK[:, None, :]).sum(dim=2)
        # Of classes with equally many votes, that of the most similar image.
        width = votes_TK.shape[1]
        rank_K = torch.arange(width, device=device)
        winner_T1 = (votes_TK * width - rank_K).argmax(dim=1, keepdim=True)
        return said_TK.gather(1, winner_T1)[:, 0]

    def _largest(
        self, cosines: Iterable[tuple[slice, torch.Tensor]], class_T: torch.Tensor
    ) -> torch.Tensor:
        largest_T = torch.full((len(class_T),), -torch.inf, device=class_T.device)
        everyone_T = ~self._filled_C[class_T]
        for part, cosine_TM in cosines:
            same_TM = (self._truth_L[part] == class_T[:, None]) | everyone_T[:, None]
            own_TM = torch.where(same_TM, cosine_TM, -torch.inf)
            largest_T = torch.maximum(largest_T, own_TM.amax(dim=1))
        return largest_T


def _class_means(
    labelled: Points, truth_L: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean unit vector of every class, float64 (C, h), and which classes have one.

    A class without labelled images gets the mean of all.
    """
    total_Ch: torch.Tensor | None = None
    for part, block in labelled.blocks():
        x_Mh = block.x_Mh.double()
        if total_Ch is None:
            total_Ch = torch.zeros(classes, x_Mh.shape[1], dtype=torch.float64, device=x_Mh.device)
        # A product instead of scattered additions, whose order would vary on a GPU.
        member_CM = torch.nn.functional.one_hot(truth_L[part], classes).double().T
        total_Ch += member_CM @ x_Mh
    assert total_Ch is not None, "there are labelled images"
    count_C = torch.bincount(truth_L, minlength=classes)
    mean_h = total_Ch.sum(dim=0) / len(truth_L)
    mean_Ch = total_Ch / count_C.clamp_min(1)[:, None]
    return torch.where((count_C > 0)[:, None], mean_Ch, mean_h), count_C > 0
