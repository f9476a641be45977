"""A whole study on embeddings: strategies x seeds x rounds with the linear proxy.

    python -m benchmarks.speed.simulate                 # 6 x 4 x 10 rounds of 1,000 on 50,000 x 512
    python -m benchmarks.speed.simulate --device cuda --jobs 1
    python -m benchmarks.speed.simulate --rows 2000 --batch 50 --rounds 2 --seeds 1

Compared with what LabelBench's authors recorded for CIFAR-10 with CLIP features, 1,000 labels a
round, linear proxy and FlexMatch: the median seconds of one round of one run, on their GPUs.
Their proxy learns from unlabelled images too, so the ratio says what a user waits, not which code
does the same work faster.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.machine import clumps, context
from svp.cluster.executor import Advance, InProcess
from svp.cluster.processes import Processes
from svp.progress import Silent
from svp.proxies import LinearConfig, Standardiser
from svp.strategies.keys import keys_of
from svp.study.cells import SimulationConfig, Stage, run_cell
from svp.study.curves import Cell, curve_points, curve_totals
from svp.study.options import build_named_strategy

# Median seconds between two rounds, from the run times in LabelBench's published results.
LABELBENCH_S = {
    "margin": 1618, "least_confidence": 2062, "badge": 1243, "coreset": 1411, "galaxy": 1207,
    "random": 1907,
}  # fmt: skip
STRATEGIES = ("random", "margin", "least_confidence", "entropy", "badge", "coreset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Cells on overlapping clumps, which every worker makes for itself."""

    config: SimulationConfig
    rows: int
    dim: int
    classes: int
    device: str

    def open(self) -> Stage:
        """Make the pool; see `svp.cluster.executor.Job`."""
        device = torch.device(self.device)
        tests = max(200, self.rows // 5)
        x, y = clumps(self.rows + tests, self.dim, self.classes, device)
        ids = tuple(f"{row:08d}" for row in range(self.rows))
        pool = x[: self.rows]
        return Stage(
            ids=ids,
            classes=tuple(f"{number:04d}" for number in range(self.classes)),
            x_Md=pool,
            y_M=y[: self.rows].cpu().numpy().astype(np.int64),
            keys_M=keys_of(ids),
            x_Td=x[self.rows :],
            y_T=y[self.rows :].cpu().numpy().astype(np.int64),
            standardiser=Standardiser.fit(pool),
            evaluation={},
            identity={},
            device=self.device,
        )

    def run(self, state: Stage, part: tuple[str, int], advance: Advance) -> Cell:
        """Run one cell."""
        name, seed = part
        strategy = build_named_strategy(name, {})
        cell = run_cell(state, self.config, name, strategy, "linear", LinearConfig(), seed)
        advance(1)
        return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10, help="sizes, the first one included")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--strategy", action="append")
    parser.add_argument("--jobs", type=int, default=0, help="0 = one per core, 1 on a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = tuple(options.strategy or STRATEGIES)
    config = SimulationConfig(
        strategies=names,
        seeds=tuple(range(options.seeds)),
        batch=options.batch,
        rounds=options.rounds - 1,
    )
    job = Synthetic(
        config=config,
        rows=options.rows,
        dim=options.dim,
        classes=options.classes,
        device=options.device,
    )
    cores = os.cpu_count() or 1
    jobs = options.jobs or (1 if options.device != "cpu" else cores)
    executor = InProcess() if jobs == 1 else Processes(jobs, threads=max(1, cores // jobs))
    parts = [(name, seed) for seed in config.seeds for name in names]
    start = time.perf_counter()
    with Silent().task("cells", len(parts), "runs") as task:
        cells = [cell for _, cell in executor.run(job, parts, task)]
    total_s = time.perf_counter() - start
    # Only the size that was recorded may be compared.
    same = (options.rows, options.batch, options.classes) == (50_000, 1000, 10)
    rows = {}
    for name in names:
        rounds = [
            numbers["select_s"] + numbers["train_s"]
            for cell in cells
            if cell.strategy == name
            for numbers in cell.rounds[1:]
        ]
        median = statistics.median(rounds) if rounds else float("nan")
        theirs = LABELBENCH_S.get(name)
        rows[name] = {"round_s": median, "labelbench_s": theirs if same else None}
        ratio = f"   LabelBench {theirs:,} s, {theirs / median:,.0f}x" if theirs and same else ""
        print(f"{name:18s} {median:8.3f} s a round{ratio}")
    whole = len(parts) * options.rounds
    print(f"{len(parts)} runs of {options.rounds} rounds: {total_s:.1f} s with {jobs} jobs")
    per_round = total_s * jobs / whole
    print(f"{per_round:.3f} s of one worker a round")
    totals = {}
    if "random" in names:
        ordered = sorted(cells, key=lambda cell: names.index(cell.strategy))
        for total in curve_totals(ordered, curve_points(ordered)):
            totals[total.strategy] = total.mean_gain
    if options.json is not None:
        document = {
            **context(torch.device(options.device)),
            "settings": {k: v for k, v in vars(options).items() if k != "json"},
            "jobs": jobs,
            "total_s": total_s,
            "rounds": rows,
            "mean_gain": totals,
        }
        options.json.write_text(json.dumps(document, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
