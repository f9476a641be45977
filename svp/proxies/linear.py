"""The linear proxy: multinomial logistic regression, solved to its optimum.

The problem is convex, so a start from the last round's solution changes the time it takes and not
where it ends (`svp.proxies.logistic` solves it).

Shapes: L = labelled rows, K = classes with a label, C = all classes, d = features, D = d + 1.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import torch

from svp.errors import InputError
from svp.proxies.logistic import solve
from svp.proxies.proxy import FitReport, Head, Proxy, affine
from svp.proxies.regularisation import choose_l2
from svp.proxies.standardiser import Standardiser

# exp(-1e4) is exactly 0 in float32, and finite, so that no 0 * inf can arise downstream.
ABSENT_LOGIT: Final = -1.0e4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig:
    """Settings of the linear proxy.

    Attributes:
        l2: Weight of ||W||^2 / 2 beside the mean cross-entropy, on standardised features. In
            scikit-learn's terms C = 1 / (l2 * L). `auto` chooses it by five-fold cross-validation
            on the labels (`svp.proxies.regularisation`); the report says which it was.
        tolerance: Stop when the gradient norm has fallen to this share of the norm at the start.
        max_iterations: Give up after this many; the report then says `converged = False`.
        warm_start: Whether a study starts each round from the last round's solution. The optimum
            is the same; within the tolerance, the digits are not.
    """

    l2: float | Literal["auto"] = 0.01
    tolerance: float = 1e-4
    max_iterations: int = 500
    warm_start: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.l2, str):
            if self.l2 != "auto":
                raise InputError(f"l2 must be a number or auto. Got {self.l2!r}. Correct it.")
        elif not 0.0 < self.l2 < float("inf"):
            raise InputError(
                f"l2 must be positive. Got {self.l2}. Without it separable labels have no optimum; "
                "use a small value such as 1e-6."
            )
        if not 0.0 < self.tolerance < 1.0:
            raise InputError(
                f"tolerance must be in (0, 1). Got {self.tolerance}. Leave it at its default."
            )
        if self.max_iterations < 1:
            raise InputError(
                f"max_iterations must be at least 1. Got {self.max_iterations}. "
                "Leave it at its default."
            )


_PART_ROWS: Final = 256


class LinearProxy(Proxy):
    """A linear head on standardised embeddings."""

    kind: ClassVar[str] = "linear"

    def __init__(
        self, standardiser: Standardiser, head: Head, report: FitReport, config: LinearConfig
    ) -> None:
        super().__init__(standardiser, head, report)
        self.config = config
        # Dividing C x d weights once instead of every embedding saves a pass over the pool.
        self._scaled_Cd = head.weight_Cd / standardiser.std_d.to(head.weight_Cd.device)

    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return the standardised embeddings, (B, d)."""
        return self.standardiser(x_Bd)

    def logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return class logits, (B, C) float32."""
        mean_d = self.standardiser.mean_d.to(x_Bd.device)
        # On a CPU in parts whose centred copy stays in the cache, and in the heap: a larger one
        # may be given back to the system, and cleared by it, every time.
        step = _PART_ROWS if x_Bd.device.type == "cpu" else max(1, len(x_Bd))
        with torch.no_grad():
            z = [
                affine(
                    x_Bd[start : start + step].to(torch.float32) - mean_d,
                    self._scaled_Cd,
                    self.head.bias_C,
                )
                for start in range(0, max(1, len(x_Bd)), step)
            ]
        return z[0] if len(z) == 1 else torch.cat(z)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return standardiser and head by name."""
        return {
            "standardiser.mean": self.standardiser.mean_d,
            "standardiser.std": self.standardiser.std_d,
            "head.weight": self.head.weight_Cd,
            "head.bias": self.head.bias_C,
        }

    def settings(self) -> dict[str, Any]:
        """Return the configuration."""
        return dataclasses.asdict(self.config)


def fit_linear(
    x_Ld: torch.Tensor,
    y_L: torch.Tensor,
    n_classes: int,
    config: LinearConfig,
    *,
    standardiser: Standardiser,
    start: LinearProxy | None = None,
    start_classes: Sequence[int] | None = None,
) -> LinearProxy:
    """Fit the linear proxy; the optimum is unique, so no seed is needed.

    A class without a label would push its own bias to minus infinity. It is left out of the
    problem and gets weight 0 and the logit `ABSENT_LOGIT`, that is probability 0.

    Args:
        x_Ld: Raw embeddings of the labelled rows, on the device to fit on.
        y_L: Their classes in [0, n_classes).
        n_classes: C.
        config: Settings.
        standardiser: Of the pool.
        start: A solution to start from, on the same features; its standardiser may differ.
        start_classes: Number here of each class of `start`, -1 where it is gone; None: the same.

    Raises:
        InputError: If `start` has other dimensions, or `start_classes` does not fit it.
    """
    device = x_Ld.device
    seen_K, y_index_L = torch.unique(y_L, return_inverse=True)
    weight_Cd = torch.zeros(n_classes, x_Ld.shape[1], device=device)
    bias_C = torch.full((n_classes,), ABSENT_LOGIT, device=device)
    if len(seen_K) == 1:
        bias_C[seen_K] = 0.0
        report = FitReport(
            rows=len(y_L),
            classes_seen=1,
            constant=int(seen_K[0]),
            steps=0,
            converged=True,
            loss=0.0,
            gradient=0.0,
        )
    else:
        with torch.no_grad():
            z_Ld = standardiser(x_Ld)
            start_KD = None
            if start is not None:
                start_KD = _start(start, start_classes, y_index_L, seen_K, n_classes, standardiser)
            l2 = config.l2
            if isinstance(l2, str):
                l2 = choose_l2(z_Ld, y_index_L, len(seen_K))
            solution = solve(
                z_Ld,
                y_index_L,
                len(seen_K),
                l2=l2,
                tolerance=config.tolerance,
                max_iterations=config.max_iterations,
                start_KD=start_KD,
            )
        weight_Cd[seen_K] = solution.theta_KD[:, :-1]
        bias_C[seen_K] = solution.theta_KD[:, -1]
        report = FitReport(
            rows=len(y_L),
            classes_seen=len(seen_K),
            constant=None,
            steps=solution.steps,
            converged=solution.converged,
            loss=solution.loss,
            gradient=solution.gradient,
            l2=l2 if config.l2 == "auto" else None,
        )
    head = Head(weight_Cd=weight_Cd, bias_C=bias_C)
    return LinearProxy(standardiser.to(device), head, report, config)


def _start(
    start: LinearProxy,
    start_classes: Sequence[int] | None,
    y_index_L: torch.Tensor,
    seen_K: torch.Tensor,
    n_classes: int,
    standardiser: Standardiser,
) -> torch.Tensor:
    """Return another proxy's solution as [W | bias] of the classes seen here, (K, D).

    It is carried over to this standardiser; a class it does not know starts at weight 0.
    """
    numbers = range(start.n_classes) if start_classes is None else start_classes
    known = [number for number in numbers if number >= 0]
    if (
        start.standardiser.dim != standardiser.dim
        or len(numbers) != start.n_classes
        or len(set(known)) != len(known)
        or max(known, default=-1) >= n_classes
    ):
        raise InputError(
            f"start must be a proxy on the same {standardiser.dim} features, with a number in "
            f"[0, {n_classes}) or -1 for each of its classes, none twice. Got "
            f"{start.standardiser.dim} features, {start.n_classes} classes and {list(numbers)}. "
            "Start without it."
        )
    device = seen_K.device
    mean_d, std_d = standardiser.mean_d.to(device), standardiser.std_d.to(device)
    raw_Cd = start.head.weight_Cd.to(device) / start.standardiser.std_d.to(device)
    bias_C = start.head.bias_C.to(device) + raw_Cd @ (mean_d - start.standardiser.mean_d.to(device))
    # Absent classes carry the logit of probability 0, which no optimum would start from.
    fitted_C = start.head.bias_C.to(device) > 0.5 * ABSENT_LOGIT
    count_K = torch.bincount(y_index_L, minlength=len(seen_K)).float()
    theta_CD = torch.zeros(n_classes, standardiser.dim + 1, device=device)
    theta_CD[seen_K, -1] = count_K.log() - count_K.log().mean()
    number_C = torch.tensor(list(numbers), device=device)
    used_C = fitted_C & (number_C >= 0)
    theta_CD[number_C[used_C]] = torch.cat([raw_Cd * std_d, bias_C[:, None]], dim=1)[used_C]
    return theta_CD[seen_K]
