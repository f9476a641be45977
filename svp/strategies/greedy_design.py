"""Greedy design for least squares: the best item again and again, added or removed.

With W = M^-1 and H = W F W, an item x is worth c / (1 + a) by a = x'Wx and c = x'Hx: adding it
lowers tr(W F) by that much. Removing it raises the trace by c / (1 - a). Either move changes W and
H by rank-one terms of y = W x and v = H x, and a and c of every other item by its inner products
with y and v.

One move at a time would read all items for two inner products each, which is slow on any machine.
So moves are guessed: some items that stand best now play the next moves out among themselves. One
product of all items with the vectors of all guesses then shows which item really was best after
each of them. The guesses before the first wrong one stand, and the others are forgotten, so that
what is chosen is what one move at a time would choose.

Source: Ash, Goel, Krishnamurthy and Kakade 2021, "Gone fishing: neural active learning with Fisher
embeddings", algorithm 1; the guesses are ours.
Shapes: n = items, T = items of one block, h = width, g = width of an item as it is stored,
m = items that play moves out, k = guesses.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
import torch

AHEAD: Final = 32
WATCHED: Final = 1024
_BLOCK: Final = 1024


class Items(Protocol):
    """Items whose representation x is linear in what is stored of them."""

    def __len__(self) -> int:
        """Return n."""

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (positions, stored (T, g)), the same blocks every time."""

    def represent(self, stored_Tg: torch.Tensor) -> torch.Tensor:
        """Return x, (T, h) float64."""

    def back(self, sides_hk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (g, k) and b (k,) with x @ sides = stored @ A - b."""


class Held:
    """Items held in memory as they are.

    Args:
        x_nh: All of them, float64.
    """

    def __init__(self, x_nh: torch.Tensor) -> None:
        self._x_nh = x_nh

    def __len__(self) -> int:
        return len(self._x_nh)

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (positions, x)."""
        for start in range(0, len(self), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(self)))
            yield part, self._x_nh[part]

    def represent(self, stored_Tg: torch.Tensor) -> torch.Tensor:
        """Return them."""
        return stored_Tg

    def back(self, sides_hk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sides and zeros."""
        return sides_hk, torch.zeros_like(sides_hk[0])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Moves:
    """Moves in a row: y = W x, v = H x, s = 1 / (1 + sign x'y), q = x'v."""

    y_kh: torch.Tensor
    v_kh: torch.Tensor
    s_k: torch.Tensor
    q_k: torch.Tensor

    def first(self, k: int) -> "_Moves":
        return _Moves(y_kh=self.y_kh[:k], v_kh=self.v_kh[:k], s_k=self.s_k[:k], q_k=self.q_k[:k])


class _Inverse:
    """W and H, with the latest moves held back as vectors."""

    def __init__(self, moment_hh: torch.Tensor, target_hh: torch.Tensor, sign: float) -> None:
        self.w_hh, self.h_hh = inverse_and_product(moment_hh, target_hh)
        self._sign = sign
        vectors_kh = moment_hh.new_empty(AHEAD, len(moment_hh))
        numbers_k = moment_hh.new_empty(AHEAD)
        self._pending = _Moves(
            y_kh=vectors_kh,
            v_kh=vectors_kh.clone(),
            s_k=numbers_k,
            q_k=numbers_k.clone(),
        )
        self._held = 0

    def move(self, x_h: torch.Tensor) -> _Moves:
        """Add or remove x; return this move alone."""
        past, sign, k = self._pending.first(self._held), self._sign, self._held
        along_y_k, along_v_k = past.y_kh @ x_h, past.v_kh @ x_h
        weighted_k = past.s_k * along_y_k
        y_h = self.w_hh @ x_h - sign * (weighted_k @ past.y_kh)
        v_h = self.h_hh @ x_h - sign * (weighted_k @ past.v_kh)
        v_h += (past.s_k * (past.q_k * weighted_k - sign * along_v_k)) @ past.y_kh
        self._pending.y_kh[k], self._pending.v_kh[k] = y_h, v_h
        self._pending.s_k[k] = 1.0 / (1.0 + sign * (x_h @ y_h))
        self._pending.q_k[k] = x_h @ v_h
        self._held = k + 1
        now = self._pending
        return _Moves(
            y_kh=now.y_kh[k:][:1], v_kh=now.v_kh[k:][:1], s_k=now.s_k[k:][:1], q_k=now.q_k[k:][:1]
        )

    def pending(self) -> _Moves:
        """Return the moves held back."""
        return self._pending.first(self._held)

    def settle(self, k: int) -> None:
        """Make the first k of them for good, forget the others."""
        done, sign = self._pending.first(k), self._sign
        scaled_kh = done.s_k[:, None] * done.y_kh
        cross_hh = scaled_kh.T @ done.v_kh
        self.w_hh -= sign * (scaled_kh.T @ done.y_kh)
        self.h_hh += (done.q_k[:, None] * scaled_kh).T @ scaled_kh
        self.h_hh -= sign * (cross_hh + cross_hh.T)
        self._held = 0


class GreedyDesign:
    """Moves that keep the trace lowest, one after the other.

    Args:
        items: What may be added, or what is there and may be removed.
        moment_hh: M before the first move, float64.
        target_hh: F, float64.
        adds: Whether items are added; if not, they are removed.
    """

    def __init__(
        self, items: Items, moment_hh: torch.Tensor, target_hh: torch.Tensor, *, adds: bool
    ) -> None:
        self._items, self._moment_hh, self._target_hh = items, moment_hh, target_hh
        self._sign = 1.0 if adds else -1.0
        zeros_n = moment_hh.new_zeros(len(items))
        self._a_n, self._c_n = zeros_n, zeros_n.clone()
        self._next_a_n, self._next_c_n = zeros_n.clone(), zeros_n.clone()
        self._open_n = torch.ones(len(items), dtype=torch.bool, device=zeros_n.device)
        self.recomputed = 0
        self.readings = 0

    def run(self, count: int) -> tuple[list[int], torch.Tensor]:
        """Make moves; return the items in order, and their x, (count, h)."""
        places: list[int] = []
        x_kh = self._moment_hh.new_zeros(count, len(self._moment_hh))
        due, ahead = 0, 1
        while (done := len(places)) < count:
            if done == due:
                # Rounding of the products would add up beside a and c, which shrink. They shrink
                # most until all directions were seen, then by half while moves double.
                inverse = self._recompute(x_kh[:done])
                due = max(2 * due, len(self._moment_hh))
            k = min(ahead, count - done, due - done)
            guesses, x_gh = self._guess(inverse, k)
            moves = inverse.pending()
            best = self._follow(guesses, moves)
            right = 1
            while right < k and best[right - 1] == guesses[right]:
                right += 1
            if right < k:
                self._follow(guesses[:right], moves.first(right))
            inverse.settle(right)
            self._a_n, self._next_a_n = self._next_a_n, self._a_n
            self._c_n, self._next_c_n = self._next_c_n, self._c_n
            self._open_n[guesses[:right]] = False
            x_kh[done : done + right] = x_gh[:right]
            places.extend(guesses[:right])
            ahead = min(2 * right, AHEAD)
        return places, x_kh

    def _recompute(self, x_kh: torch.Tensor) -> _Inverse:
        self.recomputed += 1
        moment_hh = self._moment_hh + self._sign * (x_kh.T @ x_kh)
        inverse = _Inverse(moment_hh, self._target_hh, self._sign)
        for part, stored_Tg in self._read():
            x_Th = self._items.represent(stored_Tg)
            self._a_n[part] = ((x_Th @ inverse.w_hh) * x_Th).sum(dim=1)
            self._c_n[part] = ((x_Th @ inverse.h_hh) * x_Th).sum(dim=1)
        return inverse

    def _read(self) -> Iterator[tuple[slice, torch.Tensor]]:
        self.readings += 1
        yield from self._items.blocks()

    def _worth(self, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Return by how much a move lowers the trace."""
        return torch.div(c * self._sign, a * self._sign + 1.0)

    def _guess(self, inverse: _Inverse, k: int) -> tuple[list[int], torch.Tensor]:
        """Play k moves out among the items that stand best; the first is certain.

        Returns:
            The items, and their x, (k, h).
        """
        worth_n = torch.where(self._open_n, self._worth(self._a_n, self._c_n), -torch.inf)
        watched_m = worth_n.argmax().reshape(1)
        if k > 1:
            among = worth_n.topk(min(WATCHED, len(worth_n)))
            best_m = among.indices[among.values > -torch.inf]
            watched_m = torch.cat([watched_m, best_m[best_m != watched_m]]).sort().values
        stored_mg = self._rows(watched_m.cpu().numpy())
        a_m, c_m = self._a_n[watched_m], self._c_n[watched_m]
        open_m = torch.ones_like(watched_m, dtype=torch.bool)
        guesses, x_gh = [], []
        for turn in range(k):
            worth_m = torch.where(open_m, self._worth(a_m, c_m), -torch.inf)
            at_1 = worth_m.argmax().reshape(1)
            open_m[at_1] = False
            guesses.append(watched_m[at_1])
            x_gh.append(self._items.represent(stored_mg.index_select(0, at_1))[0])
            move = inverse.move(x_gh[-1])
            if turn + 1 < k:
                sides = self._sides(move, stored_mg.dtype)
                a_1m, c_1m = self._after(stored_mg, move, sides, a_m, c_m)
                a_m, c_m = a_1m[0], c_1m[0]
        return torch.cat(guesses).tolist(), torch.stack(x_gh)

    def _rows(self, places_m: np.ndarray[tuple[int], np.dtype[np.int64]]) -> torch.Tensor:
        """Return stored items from the same blocks as everywhere, (m, g); places ascend."""
        found = []
        for part, stored_Tg in self._read():
            low, high = np.searchsorted(places_m, (part.start, part.stop))
            if high > low:
                inside = torch.from_numpy(places_m[low:high] - part.start)
                found.append(stored_Tg[inside.to(stored_Tg.device)])
        return torch.cat(found)

    def _follow(self, guesses: list[int], moves: _Moves) -> list[int]:
        """Bring all items up to date with these moves; return which was best after each."""
        k = len(guesses)
        best_k = self._a_n.new_full((k,), -torch.inf)
        place_k = torch.zeros(k, dtype=torch.int64, device=best_k.device)
        sides = None
        for part, stored_Tg in self._read():
            sides = self._sides(moves, stored_Tg.dtype) if sides is None else sides
            a_kT, c_kT = self._after(stored_Tg, moves, sides, self._a_n[part], self._c_n[part])
            self._next_a_n[part], self._next_c_n[part] = a_kT[-1], c_kT[-1]
            worth_kT = self._worth(a_kT, c_kT).masked_fill_(~self._open_n[part], -torch.inf)
            for turn, place in enumerate(guesses):
                if part.start <= place < part.stop:
                    worth_kT[turn:, place - part.start] = -torch.inf
            at_k1 = worth_kT.argmax(dim=1, keepdim=True)
            most_k = worth_kT.gather(1, at_k1)[:, 0]
            better_k = most_k > best_k
            best_k = torch.where(better_k, most_k, best_k)
            place_k = torch.where(better_k, at_k1[:, 0] + part.start, place_k)
        return place_k.tolist()

    def _sides(self, moves: _Moves, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A' (2k, g) and b (2k, 1): x @ [y v] = stored @ A - b."""
        sides_gj, shift_j = self._items.back(torch.cat([moves.y_kh, moves.v_kh]).T)
        # In the items' own type: the changes are small beside what they change.
        return sides_gj.T.to(dtype).contiguous(), shift_j[:, None]

    def _after(
        self,
        stored_Tg: torch.Tensor,
        moves: _Moves,
        sides: tuple[torch.Tensor, torch.Tensor],
        a_T: torch.Tensor,
        c_T: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a and c of some items after each of the moves, (k, T) both."""
        along_jT = (sides[0] @ stored_Tg.T).double().sub_(sides[1])
        y_kT, v_kT = along_jT.chunk(2)
        scaled_kT = y_kT * moves.s_k[:, None]
        a_kT = y_kT.mul_(scaled_kT).cumsum(dim=0).mul_(-self._sign).add_(a_T)
        v_kT.mul_(-2.0 * self._sign).addcmul_(scaled_kT, moves.q_k[:, None])
        return a_kT, v_kT.mul_(scaled_kT).cumsum(dim=0).add_(c_T)


def inverse_and_product(
    moment_hh: torch.Tensor, target_hh: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W = M^-1 and W F W."""
    inverse_hh = torch.linalg.inv(moment_hh)
    inverse_hh = (inverse_hh + inverse_hh.T) / 2.0
    return inverse_hh, inverse_hh @ target_hh @ inverse_hh


def recomputations(moves: int, width: int) -> int:
    """Return how often W, H and all a and c are computed anew in so many moves."""
    return 1 + max(0, math.ceil(math.log2(max(1, moves) / width)))
