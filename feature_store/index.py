"""From digests to rows: a hash table over 32-byte digests, filled and searched with numpy.

Shapes: R = indexed rows, N = asked digests. All 32 bytes decide, so equal hashes are never
confused.
"""

import functools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_store.layout import DIGEST_BYTES
from feature_store.runs import Runs
from feature_store.threads import each

_BLOCK_ROWS: Final = 2**13  # compared together: a quarter of a megabyte a side stays in cache
_SHORT_RUN: Final = 1024  # mean length below which searching beats comparing
_TRIED_RUNS: Final = 3  # before that mean is looked at
_QUICKLY_FOUND: Final = 2**14  # as many are searched in the time of a few tries
_SLOTS_PER_ROW: Final = 3  # at least: 12 to 24 bytes a row
_FREE: Final = -1
_ROWS_PER_ASKED: Final = 16  # at least, where all rows are looked at instead
_SCANS: Final = 2  # then the table is made: a look at all rows costs an eighth of it
_MARKS_PER_ASKED: Final = 64
_MARKS_PER_DIGEST: Final = 8  # at least: about a tenth of them share theirs with another
_CLOSE_PART: Final = 8  # a look is given up where it leaves more than an eighth of the rows
_THREADS: Final = 2
_LOOK_ROWS: Final = 2**15  # looked at together: a megabyte of digests
_TABLE_ROWS: Final = 2**17  # entered together: what is computed of them stays in cache
# Odd numbers: digits of the golden ratio and of the square roots of 2, 3 and 5.
_MIXERS: Final = tuple(
    np.uint64(number)
    for number in (
        0x9E3779B97F4A7C15,
        0x6A09E667F3BCC909,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
    )
)


def check_digests(digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return digests as one contiguous (N, 32) uint8 array, or raise ValueError."""
    if digests.ndim != 2 or digests.shape[1] != DIGEST_BYTES or digests.dtype != np.uint8:
        raise ValueError(
            f"Digests must be an (N, {DIGEST_BYTES}) uint8 array. "
            f"Got {digests.shape} {digests.dtype}. Pass Pool.digests."
        )
    return np.ascontiguousarray(digests)


def first_occurrences(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the positions (K,) of the first occurrence of each distinct digest, ascending."""
    digests = check_digests(digests)
    if len(digests) == 0:
        return np.zeros(0, np.int64)
    words_N4 = digests.view(np.uint64)
    # Twice, by different words: of a million distinct digests a tenth are left, then a hundredth.
    close = _close(words_N4[:, 0])
    close = close[_close(words_N4[close, 1])]
    if len(close) == 0:
        return np.arange(len(digests))
    order = close[np.argsort(words_N4[close, 0], kind="stable")]
    sorted_K4 = words_N4[order]
    prefix_repeats = sorted_K4[1:, 0] == sorted_K4[:-1, 0]
    repeats = prefix_repeats & _equal_rows(sorted_K4[1:], sorted_K4[:-1])
    if np.array_equal(repeats, prefix_repeats):
        repeated = order[1:][repeats]
    else:
        # Different digests share eight bytes: only then is the order above not enough.
        _, firsts = np.unique(digests[close].view(f"V{DIGEST_BYTES}")[:, 0], return_index=True)
        repeated = np.delete(close, firsts)
    first = np.ones(len(digests), bool)
    first[repeated] = False
    return np.flatnonzero(first)


def _close(words_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the positions, ascending, of words that share their mark with another.

    Equal words do. For a million this takes a third of the time of a sort.
    """
    # Only slots that are written are read, so they begin with anything.
    slots = 1 << (_MARKS_PER_DIGEST * len(words_N)).bit_length()
    rows = np.arange(len(words_N), dtype=_row_type(len(words_N)))
    holder = np.empty(slots, rows.dtype)
    at = _marks(words_N, slots)
    holder[at] = rows
    holders = np.take(holder, at, mode="clip")
    shared = holders != rows
    shared[holders[shared]] = True
    return np.flatnonzero(shared)


def _row_type(rows: int) -> type[np.signedinteger[Any]]:
    return np.int32 if rows < 2**31 else np.int64


class DigestIndex:
    """Finds the row of a digest.

    A hash table in one array, filled and asked for many digests at a time: for a million rows it is
    made in a third of the time of a sort, and finds 10,000 in an eighth of the time of binary
    searches. It is made when a question first needs it: the first two that ask for few rows are
    answered by looking at all.

    Args:
        digests: (R, 32) uint8. All-zero rows stand for failed items and are never found; of equal
            digests the first row is found.
        distinct: Whether the caller knows that no digest repeats. Then reading all in stored order
            needs no table.
    """

    def __init__(self, digests: NDArray[np.uint8], *, distinct: bool = False) -> None:
        self._words_R4 = check_digests(digests).view(np.uint64)
        self._known_distinct = distinct
        self._scans = 0

    def __len__(self) -> int:
        """Return the number of distinct digests."""
        return self._table[1]

    @functools.cached_property
    def _table(self) -> tuple[NDArray[Any], int]:
        """Return the row of each slot, -1 in a free one, and how many are taken."""
        slots = 1 << max(4, (_SLOTS_PER_ROW * len(self._words_R4) - 1).bit_length())
        table = np.full(slots, _FREE, _row_type(len(self._words_R4)))
        taken = 0
        for start in range(0, len(self._words_R4), _TABLE_ROWS):
            taken += self._enter(table, start, self._words_R4[start : start + _TABLE_ROWS])
        return table, taken

    def _enter(self, table: NDArray[Any], start: int, words_B4: NDArray[np.uint64]) -> int:
        """Give a slot to each of the rows from `start` on; return to how many."""
        rows = np.arange(len(words_B4))
        if not words_B4[:, 0].all():
            rows = rows[words_B4.any(axis=1)]
        # Of several rows that want one slot numpy lets the last have it: that is the first row.
        rows = rows[::-1]
        at = _slots(words_B4, len(table))[rows]
        rows = (rows + start).astype(table.dtype)
        taken = 0
        while len(rows):
            free = table[at] == _FREE
            table[at[free]] = rows[free]
            holders = table[at]
            left = holders != rows
            taken += len(rows) - int(np.count_nonzero(left))
            rows, at, holders = rows[left], at[left], holders[left]
            # Equal digests walk the same way, so a repeated one meets its first row.
            left = self._words_R4[rows, 0] != self._words_R4[holders, 0]
            close = np.flatnonzero(~left)
            if len(close):
                left[close] = ~_equal_rows(
                    self._words_R4[rows[close]], self._words_R4[holders[close]]
                )
            rows, at = rows[left], (at[left] + 1) & (len(table) - 1)
        return taken

    @property
    def _distinct(self) -> bool:
        if self._known_distinct:
            return True
        words_R4 = self._words_R4
        zero = 0 if words_R4[:, 0].all() else int((~words_R4.any(axis=1)).sum())
        return len(self) + zero == len(words_R4)

    def runs(self, digests: NDArray[np.uint8]) -> Runs | None:
        """Return the same rows as `find` as runs, None if any digest has none."""
        # Learning whether rows are distinct makes the table, which a look at all rows does without.
        if self._known_distinct or not self._can_scan(len(digests)):
            runs = self._long_runs(digests)
            if runs is not None:
                return runs
        found = self.find(digests)
        return None if (found < 0).any() else Runs.of(found)

    def _long_runs(self, digests: NDArray[np.uint8]) -> Runs | None:
        """Find rows by comparing stretches; None where searching each row is the better way.

        Reading all in stored order is the most frequent question, and comparing 32 bytes a row is
        10 times faster than a million binary searches.
        """
        words_N4 = check_digests(digests).view(np.uint64)
        # Of equal digests the first row counts, and zero rows never do: left to the search.
        if not self._distinct or not words_N4[:, 0].all():
            return None
        starts: list[tuple[int, int, int]] = []
        position = 0
        tried = _TRIED_RUNS if len(words_N4) > _QUICKLY_FOUND else 0
        while position < len(words_N4):
            if position < _SHORT_RUN * (len(starts) - tried):
                return None
            row = self._first(words_N4[position])
            if row < 0:
                return None
            length = _common_length(self._words_R4[row:], words_N4[position:])
            starts.append((row, position, length))
            position += length
        columns = np.asarray(starts, np.int64).reshape(-1, 3).T
        return Runs(columns[0], columns[1], columns[2])

    def find(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row (N,) of each digest, -1 where there is none."""
        words_N4 = check_digests(digests).view(np.uint64)
        if len(words_N4) == 0:
            return np.zeros(0, np.int64)
        if len(self._words_R4) == 0:
            return np.full(len(words_N4), _FREE, np.int64)
        if self._can_scan(len(words_N4)):
            self._scans += 1
            look = Look(digests)
            each(
                lambda start: look.at(start, self._words_R4[start : start + _LOOK_ROWS]),
                range(0, len(self._words_R4), _LOOK_ROWS),
                _THREADS,
            )
            looked = look.rows()
            if looked is not None:
                return looked
        return self._search(words_N4)

    def _search(self, words_N4: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row (N,) of each digest by the table."""
        # take is twice as fast as brackets: rows have a fixed width, and clip spares a copy.
        table, _ = self._table
        at = _slots(words_N4, len(table))
        found: NDArray[np.int64] = np.take(table, at, mode="clip").astype(np.int64)
        # A free slot ends the search; another digest's row sends it to the next slot.
        asked = self._others(np.arange(len(found)), found, words_N4)
        while len(asked):
            at[asked] = (at[asked] + 1) & (len(table) - 1)
            found[asked] = table[at[asked]]
            asked = self._others(asked, found[asked], words_N4[asked])
        return found

    def _others(
        self, asked: NDArray[np.int64], found: NDArray[np.int64], words_N4: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Return those of `asked` whose row is there and holds another digest."""
        same = _equal_rows(np.take(self._words_R4, found, 0, mode="clip"), words_N4)
        return asked[~same & (found >= 0)]

    def _can_scan(self, asked: int) -> bool:
        """Return whether looking at all rows once costs less than making the table now."""
        few = Look.pays(asked, len(self._words_R4))
        return few and self._scans < _SCANS and "_table" not in self.__dict__

    def _first(self, words_4: NDArray[np.uint64]) -> int:
        """Return the row of one digest that is not zero, -1 if there is none."""
        if "_table" in self.__dict__ or not self._known_distinct:
            return int(self.find(words_4.view(np.uint8)[None])[0])
        for row in np.flatnonzero(self._words_R4[:, 0] == words_4[0]).tolist():
            if np.array_equal(self._words_R4[row], words_4):
                return int(row)
        return -1


class Look:
    """One look at all rows for few digests: costs less than a table that is used once.

    Blocks of rows may be shown in any order, and from several threads.

    Args:
        digests: (N, 32) uint8, what is looked for.
    """

    def __init__(self, digests: NDArray[np.uint8]) -> None:
        self._words_N4 = check_digests(digests).view(np.uint64)
        self._marks = np.zeros(1 << (_MARKS_PER_ASKED * len(digests)).bit_length(), bool)
        self._marks[_marks(self._words_N4[:, 0], len(self._marks))] = True
        self._blocks: dict[int, tuple[int, NDArray[np.int64], NDArray[np.uint64]]] = {}
        """By first row: how many rows, those that look alike, and their words."""

    @staticmethod
    def pays(asked: int, rows: int) -> bool:
        """Return whether so few are asked of so many rows."""
        return 0 < _ROWS_PER_ASKED * asked < rows

    def at(self, start: int, digests_B: NDArray[Any]) -> None:
        """Look at the digests of rows from `start` on: (B, 32) bytes or (B, 4) words."""
        words_B4 = digests_B.view(np.uint64)
        if len(words_B4) == 0:
            return
        marked = np.take(self._marks, _marks(words_B4[:, 0], len(self._marks)), mode="clip")
        close = np.flatnonzero(marked)
        # Copied: the caller reads the next block into the same place.
        self._blocks[start] = len(words_B4), close + start, np.take(words_B4, close, 0)

    def rows(self) -> NDArray[np.int64] | None:
        """Return the first row (N,) of each digest, -1 where it was not shown.

        None if so many others look alike that it was not worth it.
        """
        blocks = [self._blocks[start] for start in sorted(self._blocks)]
        rows = np.concatenate([np.zeros(0, np.int64), *(close for _, close, _ in blocks)])
        if len(rows) == 0:
            return np.full(len(self._words_N4), _FREE, np.int64)
        if _CLOSE_PART * len(rows) > sum(length for length, _, _ in blocks):
            return None
        words_K4 = np.concatenate([words for _, _, words in blocks])
        found = DigestIndex(words_K4.view(np.uint8))._search(self._words_N4)
        return np.where(found >= 0, np.append(rows, _FREE)[found], _FREE)


def _slots(words_N4: NDArray[np.uint64], slots: int) -> NDArray[np.int64]:
    """Return the slot (N,) at which each digest's search begins; `slots` is a power of two."""
    # All words count, for digests need not be uniform: somebody may number the items instead.
    mixed_N = words_N4[:, 0] * _MIXERS[0]
    for word in range(1, len(_MIXERS)):
        mixed_N += words_N4[:, word] * _MIXERS[word]
    mixed_N ^= mixed_N >> np.uint64(32)
    mixed_N *= _MIXERS[0]
    mixed_N >>= np.uint64(64 - (slots.bit_length() - 1))
    return mixed_N.astype(np.int64)


def _marks(words_N: NDArray[np.uint64], marks: int) -> NDArray[np.uint64]:
    """Return the mark (N,) of a word of each digest; `marks` is a power of two."""
    # Quicker than slots: what is left is compared anyhow, and given up where it is too much.
    mixed_N = words_N * _MIXERS[0]
    mixed_N >>= np.uint64(64 - (marks.bit_length() - 1))
    return mixed_N


def _equal_rows(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return where two (., 4) arrays have equal rows."""
    # Four truth values looked at as one number: several times faster than all(axis=1).
    equal: NDArray[np.bool_] = (one == other).view(np.uint32)[:, 0] == 0x01010101
    return equal


def _common_length(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> int:
    """Return how many rows two (., 4) arrays have in common at their start."""
    most = min(len(one), len(other))
    start, step = 0, 8
    while start < most:
        stop = min(start + step, most)
        equal = one[start:stop] == other[start:stop]
        if not equal.all():
            return start + int(np.argmin(_equal_rows(one[start:stop], other[start:stop])))
        # Most tries end at once, the others go on for long.
        start, step = stop, min(4 * step, _BLOCK_ROWS)
    return most
