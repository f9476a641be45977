"""Lines: all items, labelled or not, sorted by how strongly the proxy proposes one class.

On the line of class k the items that the proxy calls k come first, the surest of them leading;
then all others, those that came closest to k before the rest. Where labels along the line change
from "is k" to "is not k" lies the boundary of the class, which GALAXY and DIRECT search.

Source: Zhang, Katz-Samuels and Nowak 2022, "GALAXY: graph-based active learning at the extreme",
section 3.1, for the score p_k - max p, with the 1e-8 max p of their program that sorts the items
called k by confidence.
Shapes: n = nodes (candidates and labelled rows together), T = rows of one block, C = classes,
G = lines of one reading of the pool.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from svp.strategies.base import Budget, Float64Array, Int64Array, Oracle, PoolView
from svp.strategies.keys import hash_keys

UNKNOWN = -1
_OWN = 1e-8


class Nodes:
    """Candidates and labelled rows in the order that decides ties, and what is known of them.

    Args:
        view: The pool, with a proxy.
        seed: Of the order.
        budget: Device and tile size.
        oracle: Classes of rows; None: the proxy's prediction is assumed to be true.

    Attributes:
        rows_n: Pool row of each node.
        class_n: Class of each node, `UNKNOWN` where it has no label yet.
    """

    def __init__(self, view: PoolView, seed: int, budget: Budget, oracle: Oracle | None) -> None:
        rows_n = np.concatenate([view.unlabelled_U, view.labelled_L])
        class_n = np.concatenate([np.full(len(view.unlabelled_U), UNKNOWN), view.y_L])
        # Rows first, so that of items that share a key the first in the pool comes first.
        order = np.lexsort((rows_n, hash_keys(view.keys_N[rows_n], seed)))
        self.rows_n: Int64Array = rows_n[order]
        self.class_n: Int64Array = class_n[order]
        self._oracle = oracle
        self._predicted_n = None if oracle is not None else _predictions(view, self.rows_n, budget)

    def __len__(self) -> int:
        return len(self.rows_n)

    def label(self, nodes: Int64Array) -> None:
        """Find out the classes of these nodes, in this order."""
        if self._oracle is not None:
            self.class_n[nodes] = self._oracle(self.rows_n[nodes])
        else:
            assert self._predicted_n is not None
            self.class_n[nodes] = self._predicted_n[nodes]


def _predictions(view: PoolView, rows_n: Int64Array, budget: Budget) -> Int64Array:
    predicted_n = np.zeros(len(rows_n), dtype=np.int64)
    for part, z_TC in view.logit_tiles(rows_n, budget):
        predicted_n[part] = z_TC.argmax(dim=1).cpu().numpy()
    return predicted_n


def line_scores(z_TC: torch.Tensor, classes: Sequence[int], own: int | None = None) -> torch.Tensor:
    """Return p_k - max p + 1e-8 max p for some classes k, (T, G) float64.

    Computed from the gaps to the best logit, so that scores near 0 keep their order.

    Args:
        z_TC: Logits.
        classes: The classes k.
        own: Class whose probability replaces max p in the last term, a slip of a published
            program; None: the most likely one.
    """
    z_TC = z_TC.double()
    exp_TC = torch.exp(z_TC - z_TC.amax(dim=1, keepdim=True))
    mass_T1 = exp_TC.sum(dim=1, keepdim=True)
    index_G = torch.tensor(list(classes), device=z_TC.device)
    last_T1 = 1.0 if own is None else exp_TC[:, own : own + 1]
    return (exp_TC[:, index_G] - 1.0 + _OWN * last_T1) / mass_T1


def line_orders(
    view: PoolView,
    rows_n: Int64Array,
    budget: Budget,
    classes: Sequence[int],
    own: int | None = None,
) -> Iterator[tuple[int, Int64Array]]:
    """Yield (class, nodes from the start of its line to the end) for each class in turn.

    The pool is read once for as many lines as the budget's cache can hold; equal scores are in
    node order.

    Args:
        view: The pool, with a proxy.
        rows_n: Pool row of each node.
        budget: Device, tile and cache size.
        classes: Whose lines, in this order.
        own: As for `line_scores`.
    """
    n = len(rows_n)
    group = int(max(1, budget.cache_bytes // (8 * n)))
    for start in range(0, len(classes), group):
        some = classes[start : start + group]
        score_Gn = torch.empty(len(some), n, dtype=torch.float64, device=budget.device)
        for part, z_TC in view.logit_tiles(rows_n, budget):
            score_Gn[:, part] = line_scores(z_TC, some, own).T
        for k, score_n in zip(some, score_Gn, strict=True):
            order = torch.sort(score_n, descending=True, stable=True).indices
            yield k, order.cpu().numpy()


def line_ranks(order_n: Int64Array) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Return the position of every node on a line, int32."""
    rank_n = np.empty(len(order_n), dtype=np.int32)
    rank_n[order_n] = np.arange(len(order_n), dtype=np.int32)
    return rank_n


def agreement(sign_n: Int64Array) -> Float64Array:
    """Return for every threshold t in [0, n] how well "before t is the class" fits the labels.

    Args:
        sign_n: Along a line, +1 for a label of the class, -1 for another, 0 for none.

    Returns:
        Sum before t minus sum from t on, (n + 1,).
    """
    before = np.concatenate([[0], np.cumsum(sign_n)])
    fit: Float64Array = (2 * before - before[-1]).astype(np.float64)
    return fit
