"""The one interface of every selection strategy.

A strategy receives arrays and a head, never a trainer, a file or a configuration object. It reads
the pool through a `PoolView` tile by tile, and returns a `Selection`.

Shapes: N = pool, U = unlabelled candidates, L = labelled, C = classes, d = features, b = budget.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from svp.errors import InputError

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
Float32Array = npt.NDArray[np.float32]

Need = Literal["embeddings", "logits", "linear_head", "labelled"]
Space = Literal["input", "hidden"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinearHead:
    """The last layer of a proxy: logits = x @ weight.T + bias, on the space it acts on."""

    weight_Cd: torch.Tensor
    bias_C: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a strategy may use.

    Attributes:
        device: Where tensor work runs.
        tile_rows: Rows of the pool a tile holds. Never changes what is selected.
    """

    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    tile_rows: int = 16_384


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
            device; tiles are moved to the strategy's device as float32.
        keys_N: One uint64 per item derived from its id, so that ties and random choices do not
            depend on the order of the pool.
        unlabelled_U: Pool rows that may be selected, ascending.
        labelled_L: Pool rows with a label, ascending.
        y_L: Class of each labelled row.
        n_classes: C.
        proxy: The trained proxy, or None in a round without labels.
    """

    embeddings_Nd: torch.Tensor
    keys_N: UInt64Array
    unlabelled_U: Int64Array
    labelled_L: Int64Array
    y_L: Int64Array
    n_classes: int
    proxy: ProxyView | None = None

    def tiles(self, rows: Int64Array, budget: Budget) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (positions in `rows`, embeddings (T, d) float32 on the device) tile by tile."""
        for start in range(0, len(rows), budget.tile_rows):
            part = slice(start, min(start + budget.tile_rows, len(rows)))
            index = torch.from_numpy(rows[part]).to(self.embeddings_Nd.device)
            tile_Td = self.embeddings_Nd.index_select(0, index)
            yield part, tile_Td.to(device=budget.device, dtype=torch.float32)

    def space_tiles(
        self, rows: Int64Array, budget: Budget, space: Space = "hidden"
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Like `tiles`, in the representation `space`; `hidden` needs a proxy."""
        for part, tile_Td in self.tiles(rows, budget):
            if space == "hidden" and self.proxy is not None:
                yield part, self.proxy.hidden(tile_Td)
            else:
                yield part, tile_Td

    def logit_tiles(
        self, rows: Int64Array, budget: Budget
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (positions in `rows`, logits (T, C) float32) tile by tile."""
        if self.proxy is None:
            raise InputError(
                "The first round must use a strategy that needs no proxy. Got one that needs "
                "logits. Use random or kmeans, or import labels first."
            )
        for part, tile_Td in self.tiles(rows, budget):
            yield part, self.proxy.logits(tile_Td)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The ordered items a strategy chose.

    Attributes:
        rows_b: Pool rows, in the order to label.
        utility_b: Utility of each pick when it was made; higher = label sooner.
        reason: One sentence for people, why these rows, with `{utility}` where the number goes.
        exactness: `exact`, `exact-law` (a draw from exactly the stated distribution) or
            `approx:<name>`.
        oracle_calls: Labels read inside the batch.
        counters: What the strategy counted on its way, such as distance columns computed.
    """

    rows_b: Int64Array
    utility_b: Float32Array
    reason: str
    exactness: str
    oracle_calls: int = 0
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)


Oracle = Callable[[Int64Array], Int64Array]


class Strategy(Protocol):
    """A way to choose which items to label next.

    Implementations are frozen dataclasses whose fields are their parameters; one file each.

    Attributes:
        name: The name users write.
        family: `baseline`, `score`, `cover`, `cluster`, `gradient`, ….
        needs: What must be there before it can run, checked by `run_strategy`.
        uses_oracle: Whether it reads labels inside the batch.
        exactness: As in `Selection`.
        source: Author, year and equation or algorithm.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    uses_oracle: ClassVar[bool]
    exactness: ClassVar[str]
    source: ClassVar[str]

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` of the view's unlabelled rows.

        Args:
            view: The pool.
            b: How many, in [1, U].
            seed: Decides ties and draws; the same inputs and seed give the same selection for
                any tile size and any order of the pool.
            budget: Device and tile size.
            oracle: Labels of rows, for strategies that declare `uses_oracle`.
        """
