"""ActiveFT's optimisation: centroids that follow the pool and repel each other.

For unit features f_i, centroids theta, s = f . theta and c = argmax_j s_ij the loss is
    -mean_i [ s_ic / tau - log( exp(s_ic / tau) + balance * sum_j exp(theta_j . theta_c / tau) ) ]
with the theta_j of the sum held fixed. The published code sums over all j, c included, whose term
exp(1 / tau) dwarfs the others; the paper leaves it out. `include_self` decides.

The maximum is hard, so a feature pulls on its own centroid only: one product, one argmax and one
sum per centroid, and no graph of the n x b similarities.

Source: Xie et al. 2023, "Active finetuning: exploiting annotation budget in the
pretraining-finetuning paradigm", algorithm 1, equations 8 to 10. Adam: Kingma and Ba 2015.
Shapes: n = points, k = centroids, f = fixed ones, h = width, T = rows of one block.
"""

import dataclasses
from typing import Final

import numpy as np
import torch

from svp.strategies.base import Int64Array
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.points import Points

NEAREST: Final = 16
_CENTROID_ROWS: Final = 2048
_FIXED_POINT: Final = 2.0**36
_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPSILON: Final = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How centroids are learned.

    Attributes:
        iterations: Steps of Adam.
        rate: Learning rate.
        temperature: tau.
        balance: Weight of the repulsion.
        minibatch: Points drawn per step; all where there are no more.
        include_self: Repel a centroid from itself too, as the published code does.
    """

    iterations: int
    rate: float = 1e-3
    temperature: float = 0.07
    balance: float = 1.0
    minibatch: int = 100_000
    include_self: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Learned:
    """Centroids after learning.

    Attributes:
        theta_kh: Unit vectors; the fixed ones first, unchanged.
        first_loss: Before the first step.
        last_loss: Before the last step.
    """

    theta_kh: torch.Tensor
    first_loss: float
    last_loss: float


def learn_centroids(
    points: Points,
    start_kh: torch.Tensor,
    fixed: int,
    schedule: Schedule,
    generator: np.random.Generator,
) -> Learned:
    """Move centroids from `start_kh`; the first `fixed` of them stay where they are.

    Args:
        points: Unit vectors.
        start_kh: Unit vectors.
        fixed: How many of them repel and attract, but do not move.
        schedule: Steps.
        generator: Of the minibatches.
    """
    theta_kh = start_kh.clone()
    mean_kh, square_kh = torch.zeros_like(theta_kh), torch.zeros_like(theta_kh)
    losses: list[float] = []
    for step in range(1, schedule.iterations + 1):
        batch = points
        if schedule.minibatch < len(points):
            places = np.sort(generator.permutation(len(points))[: schedule.minibatch])
            batch = Points(points.take(places.astype(np.int64)))
        loss, gradient_kh = loss_and_gradient(batch, theta_kh, schedule)
        losses.append(loss)
        gradient_kh[:fixed] = 0.0
        mean_kh = _BETA1 * mean_kh + (1.0 - _BETA1) * gradient_kh
        square_kh = _BETA2 * square_kh + (1.0 - _BETA2) * gradient_kh.square()
        scale = (square_kh / (1.0 - _BETA2**step)).sqrt_().add_(_EPSILON)
        moved_kh = theta_kh - schedule.rate / (1.0 - _BETA1**step) * mean_kh / scale
        moved_kh = torch.nn.functional.normalize(moved_kh, dim=1)
        theta_kh = torch.cat([theta_kh[:fixed], moved_kh[fixed:]])
    return Learned(
        theta_kh=theta_kh,
        first_loss=losses[0] if losses else 0.0,
        last_loss=losses[-1] if losses else 0.0,
    )


def loss_and_gradient(
    points: Points, theta_kh: torch.Tensor, schedule: Schedule
) -> tuple[float, torch.Tensor]:
    """Return the loss on all the points and its gradient on the centroids, (k, h)."""
    tau = schedule.temperature
    repulsion_k, push_kh = _repulsion(theta_kh, schedule)
    # Fixed point, so that sums are exact and the same on any device.
    pull_kh = torch.zeros(theta_kh.shape, dtype=torch.int64, device=theta_kh.device)
    share_k = torch.zeros(len(theta_kh), dtype=torch.int64, device=theta_kh.device)
    total = torch.zeros((), dtype=torch.float64, device=theta_kh.device)
    for _, block in points.blocks():
        cosine_T, nearest_T = _nearest(block.x_Mh, theta_kh)
        logit_T = cosine_T / tau
        both_T = torch.logaddexp(logit_T, repulsion_k[nearest_T])
        total += (both_T - logit_T).double().sum()
        share_T = (1.0 - torch.exp(logit_T - both_T)).double()
        fixed_Th = (share_T[:, None] * block.x_Mh * _FIXED_POINT).to(torch.int64)
        pull_kh.index_add_(0, nearest_T, fixed_Th)
        share_k.index_add_(0, nearest_T, (share_T * _FIXED_POINT).to(torch.int64))
    pull = pull_kh.double() / _FIXED_POINT
    share = share_k.double() / _FIXED_POINT
    gradient_kh = (share[:, None] * push_kh - pull) / (tau * len(points))
    return float(total) / len(points), gradient_kh.float()


def _repulsion(theta_kh: torch.Tensor, schedule: Schedule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log(balance * sum_j exp(theta_j . theta_c / tau)) and the mean theta_j it weighs."""
    logs, pushes = [], []
    for start in range(0, len(theta_kh), BLOCK_ROWS):
        some_ch = theta_kh[start : start + BLOCK_ROWS]
        logit_ck = some_ch @ theta_kh.T / schedule.temperature
        if not schedule.include_self and len(theta_kh) > 1:
            own = torch.arange(len(some_ch), device=theta_kh.device)
            logit_ck[own, own + start] = -torch.inf
        logs.append(torch.logsumexp(logit_ck, dim=1) + float(np.log(schedule.balance)))
        pushes.append(torch.softmax(logit_ck, dim=1) @ theta_kh)
    return torch.cat(logs), torch.cat(pushes).double()


def _nearest(x_Th: torch.Tensor, theta_kh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    best_T = torch.full((len(x_Th),), -torch.inf, device=x_Th.device)
    index_T = torch.zeros(len(x_Th), dtype=torch.int64, device=x_Th.device)
    for start in range(0, len(theta_kh), _CENTROID_ROWS):
        found = (x_Th @ theta_kh[start : start + _CENTROID_ROWS].T).max(dim=1)
        nearer_T = found.values > best_T
        best_T = torch.where(nearer_T, found.values, best_T)
        index_T = torch.where(nearer_T, found.indices + start, index_T)
    return best_T, index_T


def match(points: Points, theta_kh: torch.Tensor) -> tuple[Int64Array, torch.Tensor]:
    """Return for each centroid in order the nearest point that none before took, and its cosine.

    The nearest few of every centroid are found in one reading; a centroid whose nearest are all
    taken asks for all points again.
    """
    k, device = len(theta_kh), theta_kh.device
    depth = min(NEAREST, len(points))
    cosine_kD = torch.full((k, depth), -torch.inf, device=device)
    place_kD = torch.zeros((k, depth), dtype=torch.int64, device=device)
    for part, block in points.blocks():
        for start in range(0, k, _CENTROID_ROWS):
            some = slice(start, start + _CENTROID_ROWS)
            cosine_kT = theta_kh[some] @ block.x_Mh.T
            top = cosine_kT.topk(min(depth, len(block)), dim=1)
            cosines_kM = torch.cat([cosine_kD[some], top.values], dim=1)
            places_kM = torch.cat([place_kD[some], top.indices + part.start], dim=1)
            best = cosines_kM.topk(depth, dim=1)
            cosine_kD[some], place_kD[some] = best.values, places_kM.gather(1, best.indices)
    taken_n = torch.zeros(len(points), dtype=torch.bool, device=device)
    taken: set[int] = set()
    places, cosines = [], []
    for index, (near, values) in enumerate(zip(place_kD.tolist(), cosine_kD.tolist(), strict=True)):
        found = next((i for i, place in enumerate(near) if place not in taken), None)
        if found is None:
            place, value = _nearest_open(points, theta_kh[index], taken_n)
        else:
            place, value = near[found], values[found]
        taken.add(place)
        taken_n[place] = True
        places.append(place)
        cosines.append(value)
    return np.asarray(places, dtype=np.int64), torch.tensor(cosines)


def _nearest_open(
    points: Points, theta_h: torch.Tensor, taken_n: torch.Tensor
) -> tuple[int, float]:
    best, at = -float("inf"), -1
    for part, block in points.blocks():
        cosine_T = torch.mv(block.x_Mh, theta_h).masked_fill_(taken_n[part], -torch.inf)
        value = float(cosine_T.max())
        if value > best:
            best, at = value, int(cosine_T.argmax()) + part.start
    return at, best
