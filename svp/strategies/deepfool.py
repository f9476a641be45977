"""AdversarialDeepFool: items whose predicted class the smallest push changes.

DeepFool walks to the nearest boundary of the linearised classifier, again and again until the
prediction flips. Here the push is in the embedding or in the hidden layer, never in an image: the
encoder is frozen and no pixel is touched.

Source: Moosavi-Dezfooli, Fawzi and Frossard 2016, "DeepFool", algorithm 2; Ducoffe and Precioso
2018, "Adversarial active learning for deep networks" (its use).
Shapes: T = rows, C = classes, K = classes compared, d = width of the space of the push.
"""

import dataclasses
from typing import ClassVar, Final, Literal

import torch

from svp.strategies.base import Budget, Need, Oracle, PoolView, ProxyView, Selection
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.mase import mase
from svp.strategies.parameters import check_choice, check_number, check_range
from svp.strategies.rank import rank_by_logits, rank_scored
from svp.strategies.weights import FAR, head_distances

# Keeps a step from ending exactly on the boundary, as in the published code.
_NUDGE: Final = 1e-4


def linear_push(z_TC: torch.Tensor, distance_CC: torch.Tensor, overshoot: float) -> torch.Tensor:
    """Return minus the squared length of DeepFool's push under a linear head, (T,).

    The linearisation is exact, so one step flips the prediction: its length is
    (1 + overshoot) (distance to the nearest boundary + 1e-4), and the order is that of MASE.

    Args:
        z_TC: Logits.
        distance_CC: Euclidean distances of the classes' weights.
        overshoot: Share by which a step is lengthened.
    """
    length_T = (1.0 + overshoot) * (_NUDGE - mase(z_TC, distance_CC))
    return -length_T.square().clamp_max_(FAR)


def embedding_push(
    proxy: ProxyView, x_Td: torch.Tensor, *, overshoot: float, classes: int, steps: int
) -> torch.Tensor:
    """Return minus the squared length of DeepFool's push of every embedding, (T,).

    All rows walk in step; a row stops when its prediction changes. Rows that never change get
    -`FAR`.

    Args:
        proxy: The proxy, whose hidden layer can be differentiated.
        x_Td: Embeddings.
        overshoot: Share by which the whole push is lengthened.
        classes: Only this many classes of largest logit at the start are compared.
        steps: Most steps.
    """
    head = proxy.head

    def logits(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(proxy.hidden(x), head.weight_Cd, head.bias_C)

    x_Td = torch.nn.functional.pad(x_Td, (0, 0, 0, BLOCK_ROWS - len(x_Td)))
    push_Td = torch.zeros_like(x_Td)
    with torch.no_grad():
        top_TK = logits(x_Td).topk(min(classes, len(head.bias_C)), dim=1).indices
    walking_T = torch.ones(len(x_Td), dtype=torch.bool, device=x_Td.device)
    for _ in range(steps + 1):
        with torch.enable_grad():
            at_Td = (x_Td + (1.0 + overshoot) * push_Td).requires_grad_(True)
            z_TC = logits(at_Td)
            walking_T &= z_TC.detach().argmax(dim=1) == top_TK[:, 0]
            if not bool(walking_T.any()):
                break
            z_TK = z_TC.gather(1, top_TK)
            # Rows do not mix, so the gradient of a sum over rows holds each row's own.
            slope_KTd = [
                torch.autograd.grad(z_TK[:, k].sum(), at_Td, retain_graph=True)[0]
                for k in range(z_TK.shape[1])
            ]
        best_T = torch.full((len(x_Td),), torch.inf, device=x_Td.device)
        step_Td = torch.zeros_like(push_Td)
        z_TK = z_TK.detach()
        for k in range(1, len(slope_KTd)):
            normal_Td = slope_KTd[k] - slope_KTd[0]
            norm_T = normal_Td.square().sum(dim=1).sqrt()
            distance_T = torch.where(
                norm_T > 0, (z_TK[:, 0] - z_TK[:, k]).abs() / norm_T, torch.inf
            )
            nearer_T = distance_T < best_T
            length_T = torch.where(nearer_T, (distance_T + _NUDGE) / norm_T, 0.0)
            step_Td = torch.where(nearer_T[:, None], length_T[:, None] * normal_Td, step_Td)
            best_T = torch.where(nearer_T, distance_T, best_T)
        push_Td = torch.where(walking_T[:, None], push_Td + step_Td, push_Td)
    square_T = ((1.0 + overshoot) * push_Td).square().sum(dim=1)
    return -torch.where(walking_T, FAR, square_T).clamp_max_(FAR)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeepFool:
    """Smallest push that changes the prediction first.

    Two published implementations compare with the last class instead of the nearest, because
    they never update the smallest distance found; here the nearest counts.

    Attributes:
        space: `hidden` pushes what the last layer reads. That layer is linear, so one step is
            exact and the choice equals that of MASE. `input` pushes the embedding through the
            whole proxy, step by step; for a linear proxy that differs from `hidden` by the
            standardisation only.
        classes: With `input`, the classes compared, those of largest logit. Fewer than all are an
            approximation, named in the selection; 0 compares all.
        steps: With `input`, most steps.
        overshoot: Share by which a push is lengthened.
    """

    name: ClassVar[str] = "deepfool"
    family: ClassVar[str] = "score"
    summary: ClassVar[str] = "images that the smallest push in feature space would reclassify"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "linear_head"})
    stochastic: ClassVar[bool] = False
    uses_oracle: ClassVar[bool] = False
    per_row: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact"
    source: ClassVar[str] = "Ducoffe and Precioso 2018; Moosavi-Dezfooli et al. 2016, algorithm 2"
    scaling: ClassVar[str] = "N h C"
    instead: ClassVar[str] = "mase"

    space: Literal["hidden", "input"] = "hidden"
    classes: int = 10
    steps: int = 50
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        check_choice("deepfool.space", self.space, ("hidden", "input"))
        check_range("deepfool.classes", self.classes, 0)
        check_range("deepfool.steps", self.steps, 1)
        check_number("deepfool.overshoot", self.overshoot, 0.0)

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        held = shape.tile_bytes + 32 * shape.candidates
        held += 24 * shape.classes**2 + 8 * shape.classes * shape.hidden
        flops = shape.logits_flops + 4.0 * shape.candidates * shape.classes
        if self.space == "input":
            compared = min(self.classes or shape.classes, shape.classes)
            held += (
                4
                * BLOCK_ROWS
                * ((compared + 10) * shape.dim + 6 * shape.hidden + 6 * shape.classes)
            )
            per_row = 2.0 * shape.hidden * (shape.dim + shape.classes)
            flops = shape.candidates * per_row * (1 + compared) * min(self.steps, 3)
        return Cost(bytes=held, flops=flops, passes=1.0)

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates pushed over most easily; see `Strategy.select`."""
        del oracle
        exactness = self.exactness
        if self.space == "hidden":
            distance_CC = head_distances(view, budget.device)
            rows_b, utility_b = rank_by_logits(
                view, b, seed, budget, lambda z_TC: linear_push(z_TC, distance_CC, self.overshoot)
            )
        else:
            proxy = view.required_proxy()
            total = len(proxy.head.bias_C)
            compared = min(self.classes or total, total)
            exactness = self.exactness if compared == total else f"approx:top-{compared}-classes"
            rows_U = view.candidates(seed)
            scored = (
                (
                    part,
                    embedding_push(
                        proxy,
                        x_Td,
                        overshoot=self.overshoot,
                        classes=compared,
                        steps=self.steps,
                    )[: len(x_Td)],
                )
                for part, x_Td in view.tiles(rows_U, budget)
            )
            rows_b, utility_b = rank_scored(rows_U, b, scored)
        return Selection(
            rows_b=rows_b,
            utility_b=utility_b,
            reason=(
                "A small push of its features, not of its pixels, changes the prediction (minus "
                "its squared length: {utility})."
            ),
            exactness=exactness,
        )
