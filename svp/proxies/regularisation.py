"""How strongly to regularise a linear proxy, chosen on its own labels.

Five-fold cross-validation of the log-loss along a path from strong to weak. It assumes nothing
about the model, where the evidence of a softmax needs an approximation of a C d x C d Hessian
that is poorest with few labels, the case that matters here. Folds are warm-started along the
path, and the path ends once the loss has risen twice, so a choice costs about as much as ten to
twenty fits. The penalty counts per label as a prior does: a fold with fewer rows gets
l2 L / L_fold.

Source: Stone 1974, "Cross-validatory choice and assessment of statistical predictions"; path with
warm starts as in Friedman, Hastie and Tibshirani 2010, "Regularization paths for generalized
linear models via coordinate descent".

Shapes: L = labelled rows, K = classes with a label, d = features, T = rows of a fold's training.
"""

from typing import Final

import torch

from svp.proxies.logistic import solve

LADDER: Final = tuple(10.0 ** (-step / 2.0) for step in range(11))
DEFAULT: Final = 0.01
FOLDS: Final = 5
# Coarser, a warm start of separable folds would count as solved and end the path.
_TOLERANCE: Final = 1e-3
_ITERATIONS: Final = 100
_RISES: Final = 2


def folds(y_L: torch.Tensor, k: int) -> torch.Tensor:
    """Return the fold of each row, int64 (L,): rows of a class are dealt round in their order.

    Each class starts dealing where the one before stopped, so folds differ by one row at most.
    """
    order_L = torch.sort(y_L, stable=True).indices
    fold_L = torch.empty_like(y_L)
    fold_L[order_L] = torch.arange(len(y_L), device=y_L.device) % min(k, len(y_L))
    return fold_L


def choose_l2(
    x_Ld: torch.Tensor, y_L: torch.Tensor, k: int, *, held_L: torch.Tensor | None = None
) -> float:
    """Return the l2 of `LADDER` with the lowest log-loss, cross-validated or on given rows.

    The same rows in the same order give the same answer. A held-out row whose class has no other
    label cannot be scored; if that is so for all rows, the answer is `DEFAULT`.

    Args:
        x_Ld: Standardised rows.
        y_L: Classes in [0, k), each of which occurs.
        k: Number of classes, at least 2.
        held_L: Bool, the rows to score by, a fold of their own; None: five folds.
    """
    if held_L is None:
        fold_L = folds(y_L, FOLDS)
        held = [fold_L == number for number in range(int(fold_L.max()) + 1)]
    else:
        held = [held_L]
    parts = [part for rows_L in held if (part := _Fold.of(x_Ld, y_L, rows_L, k)) is not None]
    if not parts:
        return DEFAULT
    best, best_loss, rises = DEFAULT, float("inf"), 0
    for l2 in LADDER:
        loss = float(sum(part.loss(l2) for part in parts))
        if loss < best_loss:
            best, best_loss, rises = l2, loss, 0
        else:
            rises += 1
            if rises == _RISES:
                break
    return best


class _Fold:
    """One fold: solved on the rest of the rows, scored on its own."""

    def __init__(
        self, x_Td: torch.Tensor, y_T: torch.Tensor, k: int, held: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        self._x_Td, self._y_T, self._k, self._held = x_Td, y_T, k, held
        self._theta_KD: torch.Tensor | None = None
        self._scale = 1.0

    @classmethod
    def of(
        cls, x_Ld: torch.Tensor, y_L: torch.Tensor, held_L: torch.Tensor, k: int
    ) -> "_Fold | None":
        """Return the fold, or None if its training has one class or it can score no row."""
        y_T = y_L[~held_L]
        counts_K = torch.bincount(y_T, minlength=k)
        seen_K = counts_K > 0
        scored_L = held_L & seen_K[y_L]
        if int(seen_K.sum()) < 2 or not bool(scored_L.any()):
            return None
        number_K = seen_K.cumsum(0) - 1
        held = (x_Ld[scored_L], number_K[y_L[scored_L]])
        made = cls(x_Ld[~held_L], number_K[y_T], int(seen_K.sum()), held)
        made._scale = len(y_L) / len(y_T)
        return made

    def loss(self, l2: float) -> torch.Tensor:
        """Return the sum of the log-loss on the held-out rows that can be scored."""
        solution = solve(
            self._x_Td,
            self._y_T,
            self._k,
            l2=l2 * self._scale,
            tolerance=_TOLERANCE,
            max_iterations=_ITERATIONS,
            start_KD=self._theta_KD,
        )
        self._theta_KD = solution.theta_KD
        x_Hd, y_H = self._held
        z_HK = torch.addmm(solution.theta_KD[:, -1], x_Hd, solution.theta_KD[:, :-1].T)
        return torch.nn.functional.cross_entropy(z_HK, y_H, reduction="sum")
