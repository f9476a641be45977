"""Scores of a pool that no machine holds: computed where the rows are, merged exactly.

Two things decide the last bits of a score beside its row: the shape of the matrix product and
where in it the row stands. One process visits candidates in the order of a seeded hash, 1,024 at a
time (`svp.strategies.base`), so the row of the p-th candidate always stands at p modulo 1,024.
Workers read rows in the order of the store instead. So they place each row where it would have
stood, in blocks of the same height, whoever its neighbours are: products and sums of a row do
not depend on the other rows. Places that stay empty hold zeros and are thrown away; they are a
fifth to a third of a block, which is small beside reading the rows.

Merging keeps the best k of every part by (score, place). That is associative, so the result is
that of one process, ties included.

Shapes: n = rows read at once, U = candidates, d = features, C = classes, k = budget.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from svp.cluster.device import enough_threads, use_threads, worker_device
from svp.cluster.executor import Advance, Executor
from svp.progress import Progress
from svp.study.located import Located, RowReader, TableAddress

if TYPE_CHECKING:
    import torch

    from svp.proxies import Proxy
    from svp.strategies.base import Strategy

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

PART_ROWS: Final = 2**18  # scored by one task: a quarter of a gigabyte of 512 halves, seconds
READ_ROWS: Final = 2**16  # held at once


def is_per_row(strategy: "Strategy") -> bool:
    """Return whether a strategy declares that its utility of a row depends on that row alone.

    It says so by `per_row: ClassVar[bool] = True`, ranks by (utility, place in
    `PoolView.candidates`), and reads the pool by `PoolView.utility_tiles` or `logit_tiles`.
    """
    return bool(getattr(type(strategy), "per_row", False))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Utilities of some candidates, in the order they were given.

    Attributes:
        utility_n: Higher = label sooner.
        reasons_n: A sentence for each, with `{utility}` where the number goes.
        exactness: As in `svp.strategies.base.Selection`.
    """

    utility_n: Float32Array
    reasons_n: tuple[str, ...]
    exactness: str


def score_rows(
    strategy: "Strategy",
    proxy: "Proxy",
    x_nd: npt.NDArray[Any],
    places_n: Int64Array,
    *,
    candidates: int,
    seed: int,
    reasons: bool = False,
) -> Scored:
    """Score some candidates, with the bits that one process would give them.

    Args:
        strategy: One that `is_per_row`.
        proxy: On the device to compute on.
        x_nd: Embeddings as stored.
        places_n: Place of each among all candidates, distinct, in [0, U).
        candidates: U.
        seed: Of the selection.
        reasons: Whether sentences are wanted, too.
    """
    import torch

    from svp.strategies.base import Budget
    from svp.strategies.block import BLOCK_ROWS

    slots_n, blocks = _slots(places_n, candidates, BLOCK_ROWS)
    last = candidates % BLOCK_ROWS
    rows = blocks * BLOCK_ROWS + (last if bool((slots_n >= blocks * BLOCK_ROWS).any()) else 0)
    padded_pd = np.zeros((rows, x_nd.shape[1]), x_nd.dtype)
    padded_pd[slots_n] = x_nd
    view = _aligned_view(torch.from_numpy(padded_pd), proxy)
    # All of them, because the best k of the padded rows need not be the best k of the real ones.
    selection = strategy.select(view, rows, seed, budget=Budget(device=proxy.device))
    rank_p = np.empty(rows, np.int64)
    rank_p[selection.rows_b] = np.arange(rows)
    ranks_n = rank_p[slots_n]
    own = selection.reasons_b
    return Scored(
        utility_n=selection.utility_b[ranks_n],
        reasons_n=tuple(own[rank] if own else selection.reason for rank in ranks_n.tolist())
        if reasons
        else (),
        exactness=selection.exactness,
    )


def _slots(places_n: Int64Array, candidates: int, height: int) -> tuple[Int64Array, int]:
    """Return where each row goes, and how many full blocks there are before the short last one."""
    standing_n = places_n % height
    short_n = places_n >= candidates - candidates % height
    slots_n = np.empty(len(places_n), np.int64)
    full = np.flatnonzero(~short_n)
    order = full[np.argsort(standing_n[full], kind="stable")]
    standing = standing_n[order]
    # The i-th row that stands at a place goes into the i-th block.
    firsts = np.searchsorted(standing, standing, side="left")
    block = np.arange(len(order)) - firsts
    blocks = int(block.max()) + 1 if len(block) else 0
    slots_n[order] = block * height + standing
    # The last block of one process is lower than the others, and its rows stay in one like it.
    slots_n[short_n] = blocks * height + standing_n[short_n]
    return slots_n, blocks


def _aligned_view(x_pd: "torch.Tensor", proxy: "Proxy") -> Any:
    from svp.strategies.base import PoolView

    class Aligned(PoolView):
        """Candidates in the order in which they were placed."""

        def candidates(self, seed: int) -> Int64Array:
            del seed
            return self.unlabelled_U

    none = np.zeros(0, np.int64)
    return Aligned(
        embeddings_Nd=x_pd,
        keys_N=np.zeros(len(x_pd), np.uint64),
        unlabelled_U=np.arange(len(x_pd)),
        labelled_L=none,
        y_L=none,
        n_classes=proxy.n_classes,
        proxy=proxy,
    )


def proxy_bytes(proxy: "Proxy") -> bytes:
    """Return the proxy's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proxy.safetensors"
        proxy.save(path)
        return path.read_bytes()


def proxy_of(data: bytes, device: str) -> "Proxy":
    """Return the proxy whose file holds `data`, on `device`."""
    from svp.proxies import load_proxy

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proxy.safetensors"
        path.write_bytes(data)
        return load_proxy(path, device=device)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowsPart:
    """Some candidates: where they lie, and their places among all."""

    located: Located
    places_n: Int64Array


@dataclasses.dataclass(frozen=True, slots=True)
class _Scorer:
    reader: RowReader
    proxy: "Proxy"
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScoreJob:
    """The best k of a part, as a `svp.cluster.executor.Job`.

    Attributes:
        address: The table.
        proxy: Its file.
        strategy: One that `is_per_row`.
        candidates: U.
        keep: k.
        seed: Of the selection.
        device: Where to compute; `auto` takes a GPU if the worker has one.
        threads: Of the client's torch: kernels share their work by it, and so round by it.
    """

    address: TableAddress
    proxy: bytes
    strategy: "Strategy"
    candidates: int
    keep: int
    seed: int
    device: str
    threads: int

    def open(self) -> _Scorer:
        """Open the store's table and the proxy."""
        import torch

        from svp.strategies.block import BLOCK_ROWS

        proxy = proxy_of(self.proxy, worker_device(self.device))
        rows = 2 * BLOCK_ROWS
        generator = torch.Generator().manual_seed(0)
        x_nd = torch.randn(rows, self.address.dim, generator=generator)

        def sample() -> torch.Tensor:
            scored = score_rows(
                self.strategy, proxy, x_nd.numpy(), np.arange(rows), candidates=rows, seed=0
            )
            utility_n = torch.from_numpy(scored.utility_n)
            return torch.cat([proxy.logits(x_nd.to(proxy.device)).cpu().flatten(), utility_n])

        return _Scorer(RowReader(self.address), proxy, enough_threads(self.threads, sample))

    def run(
        self, state: _Scorer, part: RowsPart, advance: Advance
    ) -> tuple[Int64Array, Float32Array]:
        """Return places and utilities of the best k of a part, best first."""
        from svp.strategies.rank import TopK

        use_threads(state.threads)
        top = TopK(self.keep)
        for start in range(0, len(part.places_n), READ_ROWS):
            rows = slice(start, start + READ_ROWS)
            places_n = part.places_n[rows]
            scored = score_rows(
                self.strategy,
                state.proxy,
                state.reader.read(part.located.take(rows)),
                places_n,
                candidates=self.candidates,
                seed=self.seed,
            )
            top.push(scored.utility_n, places_n)
            advance(len(places_n))
        return top.best()


def best_places(
    executor: Executor,
    address: TableAddress,
    located_U: Located,
    places_U: Int64Array,
    *,
    strategy: "Strategy",
    proxy: "Proxy",
    keep: int,
    seed: int,
    device: str,
    progress: Progress,
    part_rows: int = PART_ROWS,
) -> tuple[Int64Array, Float32Array]:
    """Return places and utilities of the best candidates, best first, as one process would.

    Args:
        executor: Where rows are scored.
        address: The table.
        located_U: Where the candidates lie.
        places_U: Their places, a permutation of 0 … U-1.
        strategy: One that `is_per_row`.
        proxy: What scores them.
        keep: k.
        seed: Of the selection.
        device: Where workers compute.
        progress: Where to report.
        part_rows: Rows of a task.
    """
    import torch

    from svp.strategies.rank import TopK

    job = ScoreJob(
        address=address,
        proxy=proxy_bytes(proxy),
        strategy=strategy,
        candidates=len(located_U),
        keep=keep,
        seed=seed,
        device=device,
        threads=torch.get_num_threads(),
    )
    top = TopK(keep)
    with progress.task("scoring", len(located_U), "rows") as task:
        for _, (places_k, utility_k) in executor.run(
            job, stored_order(located_U, places_U, part_rows), task
        ):
            top.push(utility_k, places_k)
    return top.best()


def stored_order(located_U: Located, places_U: Int64Array, part_rows: int) -> Iterator[RowsPart]:
    """Cut candidates into parts in the order of the store: each chunk is read by one task."""
    order = np.lexsort((located_U.row_M, located_U.segment_M))
    for start in range(0, len(order), part_rows):
        chosen = order[start : start + part_rows]
        yield RowsPart(located=located_U.take(chosen), places_n=places_U[chosen])


def differing(one: Float32Array, other: Float32Array) -> int:
    """Return how many numbers differ in any bit."""
    return int((one.view(np.int32) != other.view(np.int32)).sum())
