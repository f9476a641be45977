"""Multinomial logistic regression, solved to its optimum.

Minimises mean cross-entropy + l2/2 ||W||^2 over W and an unpenalised bias by L-BFGS (Nocedal
1980, "Updating quasi-Newton matrices with limited storage"). Because the logits are linear in the
parameters, the logits along a search direction are known from one matrix product; the line search
is then a one-dimensional Newton iteration on the logits alone, so an iteration costs exactly two
products with the data: one forward, one for the gradient.

Shapes: L = labelled rows, K = classes with a label, d = features, D = d + 1, m = pairs kept.
"""

import dataclasses
from typing import Final

import torch

_PAIRS: Final = 10
_LINE_STEPS: Final = 4
_FRESH: Final = 25
_NO_MOVE: Final = 1e-8
# A line search need not be finer: the next direction corrects what is left.
_CLOSE: Final = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solution:
    """Where the solver ended.

    Attributes:
        theta_KD: [W | bias], (K, d + 1) float32.
        steps: Iterations.
        converged: Whether the tolerance was met.
        loss: The objective.
        gradient: Gradient norm relative to that of W = 0.
    """

    theta_KD: torch.Tensor
    steps: int
    converged: bool
    loss: float
    gradient: float


class _Objective:
    """Mean cross-entropy + l2/2 ||W||^2 with theta = [W | bias], (K, d + 1).

    Logits are kept one class per row: sums over classes then run along whole vectors of items,
    which is many times faster for few classes, and products need no transposed copies.
    """

    def __init__(self, x_Ld: torch.Tensor, y_L: torch.Tensor, k: int, l2: float) -> None:
        self.x_Ld = x_Ld
        self.onehot_KL = torch.zeros(k, len(x_Ld), device=x_Ld.device)
        self.onehot_KL.scatter_(0, y_L[None, :], 1.0)
        self.l2 = l2

    def logits(self, theta_KD: torch.Tensor) -> torch.Tensor:
        return torch.addmm(theta_KD[:, -1:], theta_KD[:, :-1], self.x_Ld.T)

    def gradient(self, theta_KD: torch.Tensor, z_KL: torch.Tensor) -> torch.Tensor:
        residual_KL = z_KL.softmax(dim=0).sub_(self.onehot_KL).div_(z_KL.shape[1])
        gradient_KD = torch.empty_like(theta_KD)
        gradient_KD[:, :-1] = torch.addmm(theta_KD[:, :-1], residual_KL, self.x_Ld, beta=self.l2)
        gradient_KD[:, -1] = residual_KL.sum(dim=1)
        return gradient_KD

    def value(self, theta_KD: torch.Tensor, z_KL: torch.Tensor) -> float:
        loss_L = torch.logsumexp(z_KL, dim=0) - (z_KL * self.onehot_KL).sum(dim=0)
        penalty = theta_KD[:, :-1].square().sum(dtype=torch.float64)
        return float(loss_L.mean(dtype=torch.float64) + 0.5 * self.l2 * penalty)

    def best_step(
        self,
        theta_KD: torch.Tensor,
        z_KL: torch.Tensor,
        direction_KD: torch.Tensor,
        dz_KL: torch.Tensor,
    ) -> float:
        """Return the step that minimises the objective along a direction.

        The objective is convex along the line; Newton steps are kept inside the bracket that the
        signs of the slope have established.
        """
        w_direction = direction_KD[:, :-1]
        rows = z_KL.shape[1]
        penalty_slope, penalty_curve, target = torch.stack(
            [
                (theta_KD[:, :-1] * w_direction).sum(dtype=torch.float64),
                w_direction.square().sum(dtype=torch.float64),
                (dz_KL * self.onehot_KL).sum(dtype=torch.float64) / rows,
            ]
        ).tolist()
        low, high, step = 0.0, float("inf"), 1.0
        for _ in range(_LINE_STEPS):
            p_KL = torch.add(z_KL, dz_KL, alpha=step).softmax(dim=0)
            weighted_KL = p_KL.mul_(dz_KL)
            mean_L = weighted_KL.sum(dim=0)
            slope, curve = torch.stack(
                [
                    mean_L.sum(dtype=torch.float64),
                    (weighted_KL * dz_KL).sum(dtype=torch.float64)
                    - mean_L.square().sum(dtype=torch.float64),
                ]
            ).tolist()
            slope = slope / rows - target + self.l2 * (penalty_slope + step * penalty_curve)
            curve = curve / rows + self.l2 * penalty_curve
            if slope > 0:
                high = step
            else:
                low = step
            move = -slope / max(curve, 1e-30)
            if abs(move) <= _CLOSE * step:
                return step + move if low <= step + move <= high else step
            proposal = step + move
            if not low < proposal < high:
                proposal = 0.5 * (low + high) if high < float("inf") else 2.0 * step
            step = min(proposal, 8.0 * step)
        return step


def solve(
    x_Ld: torch.Tensor,
    y_L: torch.Tensor,
    k: int,
    *,
    l2: float,
    tolerance: float,
    max_iterations: int,
    start_KD: torch.Tensor | None = None,
) -> Solution:
    """Minimise the objective.

    Args:
        x_Ld: Standardised rows, float32.
        y_L: Classes in [0, k), each of which occurs.
        k: Number of classes, at least 2.
        l2: Weight of ||W||^2 / 2.
        tolerance: Stop at this share of the gradient norm that W = 0 has, wherever it starts.
        max_iterations: Most iterations.
        start_KD: Where to start, [W | bias]; used if the objective there is below that of W = 0.
    """
    objective = _Objective(x_Ld, y_L, k, l2)
    theta = torch.zeros(k, x_Ld.shape[1] + 1, device=x_Ld.device)
    # The optimum for W = 0; its mean is removed because adding a constant changes nothing.
    prior = torch.log(objective.onehot_KL.mean(dim=1))
    theta[:, -1] = prior - prior.mean()
    z = theta[:, -1:].expand(-1, len(x_Ld)).contiguous()
    gradient = objective.gradient(theta, z)
    first_norm = norm = float(gradient.norm())
    if start_KD is not None:
        z_start = objective.logits(start_KD)
        if objective.value(start_KD, z_start) < objective.value(theta, z):
            theta, z = start_KD, z_start
            gradient = objective.gradient(theta, z)
            norm = float(gradient.norm())
    pairs: list[_Pair] = []
    steps = 0
    while norm > tolerance * first_norm and steps < max_iterations:
        direction = _two_loop(gradient, pairs)
        if pairs and float(torch.dot(direction.flatten(), gradient.flatten())) >= 0:
            # Rounding has spoilt the memory; a descent direction is always at hand.
            pairs, direction = [], -gradient
        dz = objective.logits(direction)
        step = objective.best_step(theta, z, direction, dz)
        move = step * direction
        theta = theta + move
        steps += 1
        # The running sum of logits drifts by rounding; start it afresh now and then.
        z = z.add_(dz, alpha=step) if steps % _FRESH else objective.logits(theta)
        previous, gradient = gradient, objective.gradient(theta, z)
        change = gradient - previous
        norm, curvature, length = torch.stack(
            [gradient.norm(), torch.dot(move.flatten(), change.flatten()), move.norm()]
        ).tolist()
        if curvature > 0:
            pairs = [*pairs[1 - _PAIRS :], _Pair(move, change, curvature)]
        if length <= _NO_MOVE * float(theta.norm()):
            # Float32 resolves no better point; the report says how far this one is.
            break
    relative = norm / first_norm if first_norm > 0 else 0.0
    return Solution(
        theta_KD=theta,
        steps=steps,
        converged=relative <= tolerance,
        loss=objective.value(theta, z),
        gradient=relative,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    """A step, the change of the gradient along it, and their inner product."""

    move_KD: torch.Tensor
    change_KD: torch.Tensor
    curvature: float


def _two_loop(gradient_KD: torch.Tensor, pairs: list[_Pair]) -> torch.Tensor:
    """Return minus the L-BFGS inverse Hessian times the gradient."""
    shape = gradient_KD.shape
    direction = -gradient_KD.flatten()
    weights = []
    for pair in reversed(pairs):
        weight = torch.dot(pair.move_KD.flatten(), direction) / pair.curvature
        direction -= weight * pair.change_KD.flatten()
        weights.append(weight)
    if pairs:
        direction *= pairs[-1].curvature / pairs[-1].change_KD.square().sum()
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        back = torch.dot(pair.change_KD.flatten(), direction) / pair.curvature
        direction += (weight - back) * pair.move_KD.flatten()
    return direction.reshape(shape)
