"""A named approximation for strategies that weigh items against each other: choose, then choose.

Every part of the pool proposes as many items as the budget asks for, by the strategy itself, with
all labelled items known to it; the final choice is made among what all parts proposed, by the
strategy again. Parts are runs of candidates in pool order, so the result does not depend on
workers, segments or their order, and one process can repeat it.

Source: the two rounds of greedy of Mirzasoleiman, Karbasi, Sarkar and Krause 2013, "Distributed
submodular maximization: identifying representative elements in massive data" (GreeDi).

Shapes: n = candidates of a part, L = labelled, d = features, b = budget.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from svp.cluster.device import enough_threads, use_threads, worker_device
from svp.cluster.executor import Advance, Executor
from svp.progress import Progress
from svp.study.located import Located, RowReader, TableAddress
from svp.study.scoring import proxy_bytes, proxy_of

if TYPE_CHECKING:
    from svp.proxies import Proxy
    from svp.strategies.base import Selection, Strategy

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

PART_ROWS: Final = 2**17
EXACTNESS: Final = "approx:hierarchical"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labelled:
    """What every part knows of the labelled items.

    Attributes:
        x_Ld: Embeddings as stored.
        keys_L: Keys.
        y_L: Classes.
        n_classes: C.
    """

    x_Ld: npt.NDArray[Any]
    keys_L: UInt64Array
    y_L: Int64Array
    n_classes: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CandidatesPart:
    """Some candidates: where they lie, and their keys."""

    located: Located
    keys_n: UInt64Array


@dataclasses.dataclass(frozen=True, slots=True)
class _Chooser:
    reader: RowReader
    proxy: "Proxy | None"
    device: str
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProposeJob:
    """What a part proposes, as a `svp.cluster.executor.Job`.

    Attributes:
        address: The table.
        proxy: Its file, or None without one.
        strategy: What chooses.
        labelled: Known to every part.
        budget: b.
        seed: Of the selection.
        device: Where to compute.
        threads: Of the client's torch.
    """

    address: TableAddress
    proxy: bytes | None
    strategy: "Strategy"
    labelled: Labelled
    budget: int
    seed: int
    device: str
    threads: int

    def open(self) -> _Chooser:
        """Open the store's table and the proxy."""
        import torch

        device = worker_device(self.device)
        proxy = None if self.proxy is None else proxy_of(self.proxy, device)
        x_nd = torch.randn(2048, self.address.dim, generator=torch.Generator().manual_seed(0))
        x_nd = x_nd.to(device)

        def sample() -> torch.Tensor:
            parts = [x_nd @ x_nd[:1024].T, x_nd.square().sum(dim=1), x_nd.sum(dim=0)]
            if proxy is not None:
                parts += [proxy.hidden(x_nd), proxy.logits(x_nd).softmax(dim=1)]
            return torch.cat([part.flatten() for part in parts]).cpu()

        return _Chooser(
            RowReader(self.address), proxy, device, enough_threads(self.threads, sample)
        )

    def run(self, state: _Chooser, part: CandidatesPart, advance: Advance) -> "Selection":
        """Return the choice of a part; its rows count the part's candidates from 0."""
        use_threads(state.threads)
        selection = _choose(
            self.strategy,
            state.reader.read(part.located),
            part.keys_n,
            self.labelled,
            state.proxy,
            min(self.budget, len(part.keys_n)),
            self.seed,
            state.device,
        )
        advance(len(part.keys_n))
        return selection


def choose_in_two(
    executor: Executor,
    address: TableAddress,
    located_U: Located,
    keys_U: UInt64Array,
    *,
    strategy: "Strategy",
    labelled: Labelled,
    proxy: "Proxy | None",
    budget: int,
    seed: int,
    device: str,
    progress: Progress,
    part_rows: int = PART_ROWS,
) -> "Selection":
    """Choose `budget` candidates in two rounds; with a single part, exactly.

    Args:
        executor: Where parts choose.
        address: The table.
        located_U: Where the candidates lie, in pool order.
        keys_U: Their keys.
        strategy: What chooses.
        labelled: Known to every part.
        proxy: The trained proxy, or None.
        budget: b.
        seed: Of the selection.
        device: Where workers compute, and where the final choice is made.
        progress: Where to report.
        part_rows: Candidates of a part.

    Returns:
        The selection; its rows count the candidates from 0.
    """
    import torch

    job = ProposeJob(
        address=address,
        proxy=None if proxy is None else proxy_bytes(proxy),
        strategy=strategy,
        labelled=labelled,
        budget=budget,
        seed=seed,
        device=device,
        threads=torch.get_num_threads(),
    )
    starts = range(0, len(keys_U), part_rows)
    parts = (
        CandidatesPart(
            located=located_U.take(slice(start, start + part_rows)),
            keys_n=keys_U[start : start + part_rows],
        )
        for start in starts
    )
    with progress.task("choosing", len(keys_U), "rows") as task:
        proposed = {
            number: dataclasses.replace(selection, rows_b=selection.rows_b + starts[number])
            for number, selection in executor.run(job, parts, task)
        }
    if len(starts) == 1:
        return proposed[0]
    union = np.sort(np.concatenate([selection.rows_b for selection in proposed.values()]))
    device = worker_device(device)
    selection = _choose(
        strategy,
        RowReader(address).read(located_U.take(union)),
        keys_U[union],
        labelled,
        None if job.proxy is None else proxy_of(job.proxy, device),
        budget,
        seed,
        device,
    )
    counters = {"parts": len(starts), "part_rows": part_rows, "proposed": len(union)}
    return dataclasses.replace(
        selection,
        rows_b=union[selection.rows_b],
        exactness=EXACTNESS,
        counters={**selection.counters, **counters},
    )


def _choose(
    strategy: "Strategy",
    x_nd: npt.NDArray[Any],
    keys_n: UInt64Array,
    labelled: Labelled,
    proxy: "Proxy | None",
    budget: int,
    seed: int,
    device: str,
) -> "Selection":
    import torch

    from svp.strategies.base import Budget, PoolView
    from svp.strategies.catalog import run_strategy

    view = PoolView(
        embeddings_Nd=torch.from_numpy(np.concatenate([x_nd, labelled.x_Ld])),
        keys_N=np.concatenate([keys_n, labelled.keys_L]),
        unlabelled_U=np.arange(len(keys_n)),
        labelled_L=np.arange(len(keys_n), len(keys_n) + len(labelled.keys_L)),
        y_L=labelled.y_L,
        n_classes=labelled.n_classes,
        proxy=proxy,
    )
    return run_strategy(strategy, view, budget, seed, budget=Budget(device=torch.device(device)))
