"""One strategy on one pool, in a process of its own: time, and most memory beyond the pool.

`benchmarks.speed.strategies` starts it. The result is one JSON object on stdout; the rows chosen
go to a file. The first call is not a warm-up: a small one on a part of the pool loads what has to
be loaded, unless the strategy is expected to take long, where that no longer matters.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.speed import pools
from benchmarks.speed.machine import peak_bytes, synchronise
from svp.strategies.base import Budget
from svp.strategies.catalog import build_strategy, reads_labels, run_strategy

_WARM_ROWS: Final = 4096
_QUICK_S: Final = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("strategy")
    parser.add_argument("--params", type=json.loads, default={})
    parser.add_argument("--rows", type=Path, required=True, help="where the chosen rows go (.npy)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-bytes", type=int, default=None)
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    pool = pools.read(options.folder, device)
    strategy = build_strategy(options.strategy, options.params)
    budget = Budget(device=device, memory_bytes=options.memory_bytes)
    views = 2 if "views" in strategy.needs else 0
    oracle = pool.labels if reads_labels(strategy) else None
    if options.warm:
        small = pool.view(views, rows=_WARM_ROWS)
        run_strategy(strategy, small, 8, 0, budget=budget, oracle=oracle)
    view = pool.view(views)
    b = pool.case.budget
    held: list[Any] = []
    times: list[float] = []

    def once() -> None:
        synchronise(device)
        start = time.perf_counter()
        held[:] = [run_strategy(strategy, view, b, 0, budget=budget, oracle=oracle)]
        synchronise(device)
        times.append(time.perf_counter() - start)

    # The clock is inside: setting the memory mark back is none of the strategy's time.
    peak = peak_bytes(once, device)
    while len(times) < options.repeats and times[0] < _QUICK_S:
        once()
    selection = held[0]
    np.save(options.rows, selection.rows_b)
    result = {
        "seconds": statistics.median(times),
        "runs": len(times),
        "peak_bytes": peak,
        "exactness": selection.exactness,
        "oracle_calls": selection.oracle_calls,
        "counters": dict(selection.counters),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
