"""The one interface of every selection strategy.

A strategy receives arrays and a head, never a trainer, a file or a configuration object. It reads
the pool through a `PoolView` block by block, and returns a `Selection`.

Two rules make a selection the same for every tile size and every order of the pool, although
floating-point sums depend on shapes and positions:

* candidates are visited in the order of a seeded hash of their keys (`PoolView.candidates`), so
  "the first of equals" is also the rule for ties; a score of each row alone reads them as they
  lie, where `svp.strategies.position` finds that this gives the same bits;
* a proxy is always evaluated on blocks of exactly `BLOCK_ROWS` rows (the last one padded), so
  the same matrix product runs whatever the tile size.

Shapes: N = pool, U = unlabelled candidates, L = labelled, C = classes, d = features, h = width of
the representation asked for, b = budget, T = rows of one block.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from svp.errors import InputError
from svp.strategies.block import BLOCK_ROWS, lying, on_whole_block
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.keys import hash_keys

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

Need = Literal["embeddings", "logits", "linear_head", "labelled", "views"]
Space = Literal["input", "hidden"]


class LinearHead(Protocol):
    """The last layer of a proxy: logits = h @ weight.T + bias, on the space it acts on."""

    @property
    def weight_Cd(self) -> torch.Tensor:
        """Weights, float32 (C, h)."""

    @property
    def bias_C(self) -> torch.Tensor:
        """Biases, float32 (C,)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a strategy may use; nothing here ever changes what is selected.

    Attributes:
        device: Where tensor work runs.
        tile_rows: Rows gathered and moved to the device at once, rounded up to whole blocks of
            `BLOCK_ROWS`.
        cache_bytes: What a strategy that reads the pool several times may keep on the device
            instead of computing it again.
        memory_bytes: Most a strategy may hold at once beyond the pool's embeddings, the cache
            included; None: no limit. `run_strategy` refuses a strategy that needs more and
            gives the cache what is left.
    """

    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    tile_rows: int = 4096
    cache_bytes: int = 2 * 1024**3
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.tile_rows < 1:
            raise InputError(
                f"tile_rows must be at least 1. Got {self.tile_rows}. Leave it at its default."
            )
        if self.cache_bytes < 0:
            raise InputError(
                f"cache_bytes must be at least 0. Got {self.cache_bytes}. Use 0 to keep nothing."
            )
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise InputError(
                f"memory_bytes must be at least 1. Got {self.memory_bytes}. "
                "Leave it out for no cap."
            )


class Rows(Protocol):
    """Embeddings of a pool that need not fit in memory, such as those of a store.

    Attributes:
        shape: (N, d).
        device: Where `gather` puts rows.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""

    @property
    def device(self) -> torch.device:
        """Where gathered rows are."""

    def gather(self, rows_M: Int64Array) -> torch.Tensor:
        """Return the embeddings of these rows, (M, d), float16 or float32."""


class ProxyView(Protocol):
    """What a strategy may ask of a trained proxy."""

    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return the input of the last layer, (B, h); for a linear proxy the standardised x."""

    def logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return class logits (B, C), float32."""

    @property
    def head(self) -> LinearHead:
        """The last layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolView:
    """What a strategy sees of a pool.

    Attributes:
        embeddings_Nd: Embeddings of the whole pool in pool order, float16 or float32, on any
            device, or `Rows` that fetch them; blocks are moved to the strategy's device as
            float32.
        keys_N: One uint64 per item derived from its id (`svp.strategies.keys.keys_of`), so that
            ties and random choices do not depend on the order of the pool.
        unlabelled_U: Pool rows that may be selected, ascending.
        labelled_L: Pool rows with a label, ascending.
        y_L: Class of each labelled row.
        n_classes: C.
        proxy: The trained proxy, or None in a round without labels.
        views: Embeddings of the same pool under other stored views (`weak-0`, `weak-1`, …).
        groups_N: Group of each item (a site, a camera, a patient), or None.
        state: What the same strategy returned as `Selection.state` in the round before; empty
            in its first round. JSON values; items are named by their keys, not their rows.
        finite: Whether every embedding is known to be a finite number, as after fitting their
            standardiser; if not, `run_strategy` reads all of them once to see.
    """

    embeddings_Nd: torch.Tensor | Rows
    keys_N: UInt64Array
    unlabelled_U: Int64Array
    labelled_L: Int64Array
    y_L: Int64Array
    n_classes: int
    proxy: ProxyView | None = None
    views: tuple[torch.Tensor | Rows, ...] = ()
    groups_N: Int64Array | None = None
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finite: bool = False

    def candidates(self, seed: int) -> Int64Array:
        """Return the rows that may be selected, in the order that decides ties under `seed`."""
        return self._ordered(self.unlabelled_U, seed)

    def centres(self, seed: int) -> Int64Array:
        """Return the labelled rows in the order of the same hash."""
        return self._ordered(self.labelled_L, seed)

    def _ordered(self, rows: Int64Array, seed: int) -> Int64Array:
        keys = self.keys_N[rows]
        # Distinct keys have distinct hashes (the hash is a bijection), so the order is total; of
        # items that share a key, the first in the pool comes first.
        return rows[np.argsort(hash_keys(keys, seed), kind="stable")]

    def tiles(
        self, rows: Int64Array, budget: Budget, view: int | None = None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (positions in `rows`, embeddings (T, d) float32 on the device) block by block.

        Args:
            rows: Pool rows, in any order.
            budget: Device and tile size.
            view: Position in `views`; None: the plain embeddings.
        """
        source = self.embeddings_Nd if view is None else self.views[view]
        return self._tiles(source, rows, budget)

    @staticmethod
    def _tiles(
        source: "torch.Tensor | Rows", rows: Int64Array, budget: Budget, *, shared: bool = False
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        gathered = -(-budget.tile_rows // BLOCK_ROWS) * BLOCK_ROWS
        for start in range(0, len(rows), gathered):
            index = rows[start : start + gathered]
            # A block that lies in the pool must not be written to.
            tile = lying(source, index) if shared and isinstance(source, torch.Tensor) else None
            tile = (gather(source, index) if tile is None else tile).to(device=budget.device)
            for inner in range(0, len(index), BLOCK_ROWS):
                block_Td = tile[inner : inner + BLOCK_ROWS].to(torch.float32)
                yield slice(start + inner, start + inner + len(block_Td)), block_Td

    def space_tiles(
        self,
        rows: Int64Array,
        budget: Budget,
        space: Space = "hidden",
        view: int | None = None,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Like `tiles` in the representation `space`; without a proxy `hidden` is `input`."""
        for part, block_Td in self.tiles(rows, budget, view):
            if space == "hidden" and self.proxy is not None:
                yield part, on_whole_block(self.proxy.hidden, block_Td)
            else:
                yield part, block_Td

    def logit_tiles(
        self, rows: Int64Array, budget: Budget, view: int | None = None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (positions in `rows`, logits (T, C) float32) block by block."""
        proxy = self.required_proxy()
        for part, block_Td in self.tiles(rows, budget, view):
            yield part, on_whole_block(proxy.logits, block_Td)

    def utility_tiles(
        self,
        rows: Int64Array,
        budget: Budget,
        utility: Callable[[torch.Tensor], torch.Tensor],
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (positions in `rows`, utilities) block by block, computed on whole blocks.

        Args:
            rows: Pool rows; those that follow each other in memory are not copied.
            budget: Device and tile size.
            utility: Maps logits (T, C) to utilities, (T,) or (T, C).
        """
        proxy = self.required_proxy()
        for part, block_Td in self._tiles(self.embeddings_Nd, rows, budget, shared=True):
            yield part, on_whole_block(lambda x_Td: utility(proxy.logits(x_Td)), block_Td)

    def shape(self, b: int, budget: Budget) -> PoolShape:
        """Return the sizes that decide what a selection of `b` costs."""
        dim = self.embeddings_Nd.shape[1]
        return PoolShape(
            pool=len(self.keys_N),
            candidates=len(self.unlabelled_U),
            labelled=len(self.labelled_L),
            dim=dim,
            hidden=dim if self.proxy is None else self.proxy.head.weight_Cd.shape[1],
            classes=max(self.n_classes, 1),
            budget=b,
            tile_rows=-(-budget.tile_rows // BLOCK_ROWS) * BLOCK_ROWS,
            views=len(self.views),
        )

    def required_proxy(self) -> ProxyView:
        """Return the proxy, or explain that this round has none."""
        if self.proxy is None:
            raise InputError(
                "A strategy that ranks by a model must have a trained proxy. Got a round without "
                "one. Use random, kmeans or coreset for the first round, or import labels first."
            )
        return self.proxy


def gather(source: torch.Tensor | Rows, rows_M: Int64Array) -> torch.Tensor:
    """Return rows of a pool's embeddings, (M, d), where the source keeps them."""
    if isinstance(source, torch.Tensor):
        return source.index_select(0, torch.from_numpy(rows_M).to(source.device))
    return source.gather(rows_M)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The ordered items a strategy chose.

    Attributes:
        rows_b: Pool rows, in the order to label.
        utility_b: Utility of each pick when it was made; higher = label sooner.
        reason: One sentence for people, why these rows, with `{utility}` where the number goes.
        exactness: `exact`, `exact-law` (a draw from exactly the stated distribution) or
            `approx:<name>`.
        oracle_calls: Labels read inside the batch, as metered by `run_strategy`.
        counters: What the strategy counted on its way, such as distance columns computed.
        reasons_b: One sentence per pick where they differ, in the form of `reason`; empty: the
            same for all.
        probability_b: Chance with which each pick was drawn at random, whatever the strategy
            thinks of it; NaN for picks that the strategy chose, whose chance nobody knows; None:
            known for none. See `svp.strategies.random_share`.
        state: What the strategy wants back as `PoolView.state` in the next round; JSON values.
    """

    rows_b: Int64Array
    utility_b: Float32Array
    reason: str
    exactness: str
    oracle_calls: int = 0
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    reasons_b: tuple[str, ...] = ()
    probability_b: Float64Array | None = None
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Oracle = Callable[[Int64Array], Int64Array]


class Strategy(Protocol):
    """A way to choose which items to label next.

    Implementations are frozen dataclasses whose fields are their parameters; one file each. Those
    of the catalogue are `ListedStrategy`, wrappers around another one are not.

    Attributes:
        name: The name users write.
        family: `baseline`, `score`, `cover`, `cluster`, `gradient`, ….
        summary: One line for a list of strategies.
        needs: What must be there before it can run, checked by `run_strategy`.
        stochastic: Whether it draws at random; if not, the seed decides ties only.
        uses_oracle: Whether it reads labels inside the batch. Such a strategy may have a field
            `pseudo: bool`; when true it assumes the proxy's prediction instead and asks nobody.
        exactness: As in `Selection`; a strategy whose parameters make it an approximation says
            so in `Selection.exactness`.
        source: Author, year and equation or algorithm.
        scaling: How arithmetic grows, in the letters above, for people: `N C`, `(L + b) N h`.
        instead: What to use when it does not fit a memory cap, for people; empty: nothing.
    """

    @property
    def name(self) -> str:
        """The name users write."""

    @property
    def family(self) -> str:
        """Its kind."""

    @property
    def summary(self) -> str:
        """One line for a list of strategies."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be there before it can run."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws at random."""

    @property
    def uses_oracle(self) -> bool:
        """Whether it reads labels inside the batch."""

    @property
    def exactness(self) -> str:
        """As in `Selection`."""

    @property
    def source(self) -> str:
        """Where it comes from."""

    @property
    def scaling(self) -> str:
        """How arithmetic grows."""

    @property
    def instead(self) -> str:
        """What to use when it does not fit a memory cap."""

    def cost(self, shape: PoolShape) -> Cost:
        """Return what a selection of this shape costs, before it starts."""

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` of the view's unlabelled rows.

        Args:
            view: The pool.
            b: How many, in [1, U].
            seed: Decides ties and draws; the same inputs and seed give the same selection for
                any tile size and any order of the pool.
            budget: Device, tile size and memory.
            oracle: Labels of rows, for strategies that declare `uses_oracle`.
        """


class ListedStrategy(Strategy, Protocol):
    """A strategy of the catalogue: everything but its parameters belongs to its class."""

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    stochastic: ClassVar[bool]
    uses_oracle: ClassVar[bool]
    exactness: ClassVar[str]
    source: ClassVar[str]
    scaling: ClassVar[str]
    instead: ClassVar[str]
