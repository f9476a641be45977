"""Ranking by one number per candidate: the best k of a stream, with ties decided by hash.

Shapes: U = candidates, k = how many are kept, T = rows of one block, C = classes.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from svp.errors import InputError
from svp.strategies.base import Budget, Float32Array, Int64Array, PoolView, UInt64Array
from svp.strategies.keys import hash_keys
from svp.strategies.position import position_free


def check_scores(scores_T: Float32Array) -> None:
    """Refuse NaN, which has no rank.

    Raises:
        InputError: If a score is NaN.
    """
    if np.isnan(scores_T).any():
        raise InputError(
            f"Scores must be numbers. Got NaN for {int(np.isnan(scores_T).sum())} of "
            f"{len(scores_T)} items. Check the proxy and the embeddings."
        )


class TopK:
    """The k highest scores of a stream of (score, place) pairs.

    Order is by score, highest first, then by place, lowest first. Callers use as place the
    position in `PoolView.candidates`, the order of the seeded hash, or pool rows in ascending
    order with `ties` to look their hash up. Memory is O(k + block), and merging two partial
    results equals ranking both streams at once.

    Args:
        k: How many to keep, at least 1.
        ties: Maps places to what decides between equal scores, lowest first; of equals the one
            that came first. Default: the place itself.
    """

    def __init__(
        self, k: int, ties: Callable[[Int64Array], Int64Array | UInt64Array] | None = None
    ) -> None:
        self._k = k
        self._ties = ties if ties is not None else lambda places: places
        self._scores: list[Float32Array] = []
        self._places: list[Int64Array] = []
        self._held = 0
        self._threshold = np.float32(-np.inf)

    def push(self, scores_T: Float32Array, places_T: Int64Array) -> None:
        """Offer scores, float32, with their places.

        Raises:
            InputError: If a score is NaN, which has no rank.
        """
        check_scores(scores_T)
        # Equal to the threshold may still win by its place.
        good = scores_T >= self._threshold
        if not good.all():
            scores_T, places_T = scores_T[good], places_T[good]
        self._scores.append(scores_T)
        self._places.append(places_T)
        self._held += len(scores_T)
        if self._held > 4 * self._k + 65_536:
            self._compact()

    def merge(self, other: "TopK") -> None:
        """Take in what another stream kept."""
        for scores, places in zip(other._scores, other._places, strict=True):
            self.push(scores, places)

    def best(self) -> tuple[Int64Array, Float32Array]:
        """Return places and scores of the best k, best first."""
        self._compact()
        scores, places = self._scores[0], self._places[0]
        order = np.lexsort((self._ties(places), -scores))
        return places[order], scores[order]

    def _compact(self) -> None:
        scores = np.concatenate(self._scores) if self._scores else np.zeros(0, np.float32)
        places = np.concatenate(self._places) if self._places else np.zeros(0, np.int64)
        if len(scores) > self._k:
            cut = np.partition(scores, len(scores) - self._k)[len(scores) - self._k]
            above = np.flatnonzero(scores > cut)
            equal = np.flatnonzero(scores == cut)
            order = np.argsort(self._ties(places[equal]), kind="stable")
            keep = np.concatenate([above, equal[order[: self._k - len(above)]]])
            scores, places = scores[keep], places[keep]
            self._threshold = np.float32(cut)
        self._scores, self._places, self._held = [scores], [places], len(scores)


def rank_by_logits(
    view: PoolView,
    b: int,
    seed: int,
    budget: Budget,
    utility: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Int64Array, Float32Array]:
    """Return the `b` candidates of highest utility and their utilities.

    Args:
        view: The pool, with a proxy.
        b: How many.
        seed: Decides ties.
        budget: Device and tile size.
        utility: Maps logits (T, C) to utilities (T,), higher = label sooner.
    """
    proxy, dim = view.required_proxy(), view.embeddings_Nd.shape[1]
    # As they lie, if that gives the same bits; else in an order that the pool's has no part in.
    free = position_free(proxy, utility, dim, budget.device)
    rows_U = view.unlabelled_U if free else view.candidates(seed)
    top = TopK(b, lambda rows: hash_keys(view.keys_N[rows], seed))
    for part, utility_T in view.utility_tiles(rows_U, budget, utility):
        top.push(utility_T.to(device="cpu", dtype=torch.float32).numpy(), rows_U[part])
    return top.best()


def rank_scored(
    rows_U: Int64Array, b: int, scored: Iterable[tuple[slice, torch.Tensor]]
) -> tuple[Int64Array, Float32Array]:
    """Return the `b` rows of highest utility and their utilities.

    Args:
        rows_U: Candidates, in the order that decides ties.
        b: How many.
        scored: Utilities block by block, with their positions in `rows_U`.
    """
    top = TopK(b)
    for part, utility_T in scored:
        scores_T = utility_T.to(device="cpu", dtype=torch.float32).numpy()
        top.push(scores_T, np.arange(part.start, part.stop, dtype=np.int64))
    places_b, utility_b = top.best()
    return rows_U[places_b], utility_b
