"""BAIT: a batch after which the model's parameters would be known best where it matters.

Item i has the Fisher information I_i = P_i (x) x_i x_i' of the last layer, P_i = diag p - p p'.
BAIT lowers tr(M^-1 F), with M the information of labelled rows and batch plus a ridge, and F that
of all items. P has the all-ones vector in its kernel, so it is first expressed on the C - 1
directions orthogonal to it; any orthonormal basis of them gives the same trace.

With U_i U_i' = I_i, W = M^-1 and H = W F W, adding or removing an item changes W and H by low-rank
terms of Y = W U_i and V = H U_i alone (Woodbury), and the trace by tr((I +- U'Y)^-1 U'V).

Source: Ash, Goel, Krishnamurthy and Kakade 2021, "Gone fishing: neural active learning with Fisher
embeddings", algorithm 1; LabelBench (Zhang et al. 2024, appendix G) for the swaps and the basis.
Shapes: n = rows, C = classes, m = C - 1, r = width of x, D = m r, B = items at once.
"""

import dataclasses
from typing import ClassVar, Final, Literal

import numpy as np
import torch

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.base import Budget, Float64Array, Int64Array, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.information import Design, Items, Move, trace
from svp.strategies.parameters import check_choice, check_range
from svp.strategies.principal import Principal

_ENTRIES: Final = 4_194_304
_RECOMPUTE: Final = 256


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bait:
    """Lowers the trace by swaps of a random batch, or builds it greedily.

    Attributes:
        form: `swap`: LabelBench's search, in which each member of a random batch in turn gives
            way to the best of a few random candidates if that lowers the trace. `greedy`: adds the
            best of all candidates until the batch is twice as large, then removes the least
            useful (Ash et al. 2021); exact, and b N C^2 D work.
        dims: Principal axes of the last layer's input to use; 0: all. LabelBench uses 30.
        ridge: Added to the diagonal of M. LabelBench's program has none (0), which fails where
            the information is singular, as with a class without labels; Ash et al. use 1 or 0.01.
        weights: `sum` adds up the information of labelled rows and batch alike. `published`
            takes the mean over labelled rows times L / (L + b) and each pick's times
            b / (L + b), as the authors' program does, so that a pick weighs L times as much.
        proposals: Candidates tried per swap.
        sweeps: Swaps per member of the batch.
        candidates: `greedy` only: look at this many random candidates (`approx:candidates`);
            0: all. At least twice the budget are taken.
    """

    name: ClassVar[str] = "bait"
    family: ClassVar[str] = "design"
    summary: ClassVar[str] = "a batch that would pin the proxy's weights down best"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:swap"
    source: ClassVar[str] = "Ash et al. 2021, algorithm 1; LabelBench, appendix G"
    scaling: ClassVar[str] = "N (C dims)^2 + b proposals (C dims)^2"
    instead: ClassVar[str] = "bait with dims = 10, or bait_regression"

    form: Literal["swap", "greedy"] = "swap"
    dims: int = 30
    ridge: float = 1.0
    weights: Literal["sum", "published"] = "sum"
    proposals: int = 10
    sweeps: int = 1
    candidates: int = 0

    def __post_init__(self) -> None:
        check_choice("bait.form", self.form, ("swap", "greedy"))
        check_choice("bait.weights", self.weights, ("sum", "published"))
        check_range("bait.dims", self.dims, 0)
        check_range("bait.proposals", self.proposals, 1)
        check_range("bait.sweeps", self.sweeps, 1)
        check_range("bait.candidates", self.candidates, 0)
        if not 0.0 <= self.ridge < float("inf"):
            raise InputError(
                f"bait.ridge must be at least 0. Got {self.ridge}. The authors use 1 or 0.01."
            )

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        classes = shape.classes
        r = min(self.dims, shape.hidden) if self.dims else shape.hidden
        m = max(1, classes - 1)
        square = (m * r) ** 2
        rows = shape.candidates + shape.labelled
        looked = self._looked(shape.candidates, shape.budget) if self.form == "greedy" else 0
        held = 8 * rows * (r + classes) * 2 + 8 * looked * (4 * classes**2 + 2 * m * classes)
        tries = self.sweeps * shape.budget * (self.proposals + 2 * classes) * 4.0 * square
        updates = 2 * shape.budget * looked * (4.0 * r * m * classes + 12.0 * classes**3)
        return Cost(
            bytes=shape.tile_bytes
            + held
            + 8 * (8 + self.proposals // max(1, r)) * square
            + 64 * shape.candidates
            + 24 * shape.hidden**2
            + 8 * 4 * _ENTRIES
            + 16 * shape.tile_rows * shape.hidden,
            flops=2.0 * rows * (square + shape.hidden**2) + tries + updates,
            passes=4.0,
        )

    def _looked(self, candidates: int, b: int) -> int:
        return min(candidates, max(self.candidates, 2 * b)) if self.candidates else candidates

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        del oracle
        rows_U, rows_L = view.candidates(seed), view.centres(seed)
        principal = Principal(view, seed, budget, self.dims)
        share_L = share_b = 1.0
        if self.weights == "published":
            share_L, share_b = 1.0 / (len(rows_L) + b), b / (len(rows_L) + b)
        items = Items(principal.rows(rows_U), _probabilities(view, rows_U, budget), share_b)
        labelled = Items(principal.rows(rows_L), _probabilities(view, rows_L, budget), share_L)
        of_labelled = labelled.information()
        target = (items.information() / share_b + of_labelled / share_L) / (
            len(items) + len(labelled)
        )
        base = of_labelled
        base.diagonal().add_(self.ridge)
        exactness = self.exactness
        if self.form == "swap":
            chosen, trace = self._swap(items, base, target, b, seed)
        else:
            looked = self._looked(len(items), b)
            chosen, trace = _greedy(items, base, target, b, looked)
            exactness = "exact" if looked == len(items) else "approx:candidates"
        utility_b = _worth(items, base, target, chosen)
        order = np.lexsort((chosen, -utility_b))
        return Selection(
            rows_b=rows_U[chosen[order]],
            utility_b=utility_b[order].astype(np.float32),
            reason=(
                "Part of a batch that tells most about the proxy's weights (without it their "
                "expected error would rise by {utility})."
            ),
            exactness=exactness,
            counters={"trace_micro": round(1e6 * trace)},
        )

    def _swap(
        self, items: Items, base: torch.Tensor, target: torch.Tensor, b: int, seed: int
    ) -> tuple[Int64Array, float]:
        generator = numpy_generator(seed, "bait")
        batch = generator.permutation(len(items))[:b].tolist()
        free = np.ones(len(items), dtype=bool)
        free[batch] = False
        design = _design(items, base, target, np.asarray(batch))
        for done in range(1, self.sweeps * b + 1):
            proposed = _proposals(generator, free, self.proposals)
            leaving = batch.pop(0)
            kept = np.concatenate([[leaving], proposed])
            x_Br, a_BmC = items.take(kept)
            design.move(x_Br[0], a_BmC[0], -1.0)
            gain_B = design.gains(x_Br, a_BmC, 1.0)
            # The first of equals: the one that leaves stays unless another is better.
            best = int(gain_B.argmax())
            design.move(x_Br[best], a_BmC[best], 1.0)
            free[leaving] = True
            free[kept[best]] = False
            batch.append(int(kept[best]))
            if done % _RECOMPUTE == 0:
                design = _design(items, base, target, np.asarray(batch))
        return np.asarray(batch, dtype=np.int64), _design(items, base, target, batch).trace


def _proposals(
    generator: np.random.Generator, free: np.ndarray[tuple[int], np.dtype[np.bool_]], count: int
) -> Int64Array:
    """Return up to `count` distinct free places, drawn at random."""
    if int(free.sum()) <= count:
        return np.flatnonzero(free)
    found: list[int] = []
    while len(found) < count:
        for place in generator.integers(len(free), size=2 * count).tolist():
            if free[place] and place not in found and len(found) < count:
                found.append(place)
    return np.asarray(found, dtype=np.int64)


def _design(
    items: Items, base: torch.Tensor, target: torch.Tensor, batch: Int64Array | list[int]
) -> Design:
    x_br, a_bmC = items.take(np.asarray(batch, dtype=np.int64))
    total = base.clone()
    step = max(1, _ENTRIES // (base.shape[0] * a_bmC.shape[2]))
    for start in range(0, len(x_br), step):
        some = slice(start, start + step)
        u_BDC = (a_bmC[some, :, None, :] * x_br[some, None, :, None]).flatten(1, 2)
        flat = u_BDC.permute(1, 0, 2).flatten(1)
        total += flat @ flat.T
    return Design(total, target)


def _worth(
    items: Items, base: torch.Tensor, target: torch.Tensor, batch: Int64Array
) -> Float64Array:
    """Return how much the trace would grow without each member."""
    design = _design(items, base, target, batch)
    found = []
    step = max(1, _ENTRIES // max(1, base.shape[0] * 8))
    for start in range(0, len(batch), step):
        x_Br, a_BmC = items.take(batch[start : start + step])
        found.append(design.gains(x_Br, a_BmC, -1.0))
    worth_b = torch.cat(found).cpu().numpy()
    # Rounding can make a worthless member infinitely or negatively worthy.
    clipped: Float64Array = np.clip(np.nan_to_num(worth_b, posinf=3e38), 0.0, 3e38)
    return clipped


def _greedy(
    items: Items, base: torch.Tensor, target: torch.Tensor, b: int, looked: int
) -> tuple[Int64Array, float]:
    """Add the best of the first `looked` items until there are 2 b, then remove the least useful.

    U'WU and U'HU of every item are kept and follow each move by its low-rank terms.
    """
    design = Design(base, target)
    x_nr, a_nmC = items.take(np.arange(looked, dtype=np.int64))
    inner, outer = _all_quadratic(design, x_nr, a_nmC)
    one = torch.eye(a_nmC.shape[2], dtype=torch.float64, device=x_nr.device)
    open_n = torch.ones(looked, dtype=torch.bool, device=x_nr.device)
    picks: list[int] = []
    for _ in range(min(2 * b, looked)):
        gain_n = trace(torch.linalg.solve(one + inner, outer))
        best = int(torch.where(open_n, gain_n, -torch.inf).argmax())
        open_n[best] = False
        picks.append(best)
        _follow(design.move(x_nr[best], a_nmC[best], 1.0), x_nr, a_nmC, inner, outer)
    places = np.asarray(picks, dtype=np.int64)
    index = torch.from_numpy(places).to(x_nr.device)
    x_nr, a_nmC, inner, outer = x_nr[index], a_nmC[index], inner[index], outer[index]
    open_n = torch.ones(len(places), dtype=torch.bool, device=x_nr.device)
    for _ in range(len(places) - b):
        loss_n = trace(torch.linalg.solve(one - inner, outer))
        worst = int(torch.where(open_n, loss_n, torch.inf).argmin())
        open_n[worst] = False
        _follow(design.move(x_nr[worst], a_nmC[worst], -1.0), x_nr, a_nmC, inner, outer)
        # A removed item no longer has a meaningful loss; zero keeps its system solvable.
        inner[worst] = 0.0
        a_nmC[worst] = 0.0
    return places[open_n.cpu().numpy()], design.trace


def _all_quadratic(
    design: Design, x_nr: torch.Tensor, a_nmC: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    m, r = a_nmC.shape[1], x_nr.shape[1]
    step = max(1, _ENTRIES // (m * r * m))
    parts = [
        design.quadratic(x_nr[start : start + step], a_nmC[start : start + step])
        for start in range(0, len(x_nr), step)
    ]
    return torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts])


def _follow(
    move: Move,
    x_nr: torch.Tensor,
    a_nmC: torch.Tensor,
    inner: torch.Tensor,
    outer: torch.Tensor,
) -> None:
    """Update U'WU and U'HU of all items, in place, after one item moved."""
    m, r = a_nmC.shape[1], x_nr.shape[1]
    for start in range(0, len(x_nr), 1024):
        some = slice(start, start + 1024)
        sides = []
        for term_DC in (move.y_DC, move.v_DC):
            flat = term_DC.reshape(m, r, -1).permute(1, 0, 2).reshape(r, -1)
            along = (x_nr[some] @ flat).reshape(-1, m, term_DC.shape[1])
            sides.append(a_nmC[some].transpose(1, 2) @ along)
        k_BCC, r_BCC = sides
        kz_BCC = k_BCC @ move.z_CC
        cross = kz_BCC @ r_BCC.transpose(1, 2)
        inner[some] -= move.sign * (kz_BCC @ k_BCC.transpose(1, 2))
        outer[some] -= move.sign * (cross + cross.transpose(1, 2))
        outer[some] += kz_BCC @ move.q_CC @ kz_BCC.transpose(1, 2)


def _probabilities(view: PoolView, rows: Int64Array, budget: Budget) -> torch.Tensor:
    found = [z_TC.double().softmax(dim=1) for _, z_TC in view.logit_tiles(rows, budget)]
    return torch.cat(found)
