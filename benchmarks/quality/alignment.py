"""LogME and PED beside the authors' code: equal numbers, and how much faster.

    python -m benchmarks.quality.alignment --logme CLONE/LogME.py --ped CLONE/metrics.py

The two files are those of github.com/thuml/LogME (56551ca) and github.com/lixiaotong97/PED
(e5af6e7). They are executed, so take them from there. `official` mode must give their scores;
the `corrected` score is printed beside it. Takes about a minute.
"""

import argparse
import contextlib
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.machine import context
from svp.alignment import PED, class_statistics, logme

SHAPES = ((5_000, 512, 10), (5_000, 512, 100), (20_000, 1024, 10), (600, 2048, 10))


def _peer(path: Path, start: str = "") -> dict[str, Any]:
    """Execute a peer's file, from `start` on; its compiler decorator is not needed."""
    text = path.read_text(encoding="utf-8").replace("from numba import njit", "njit = lambda f: f")
    space: dict[str, Any] = {"__name__": "peer", "np": np, "time": time, "tqdm": lambda x: x}
    exec(compile(text[text.index(start) :], str(path), "exec"), space)
    return space


def _median_s(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def _clumps(n: int, d: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, c, n)
    y[:c] = np.arange(c)
    x = np.maximum(rng.normal(size=(c, d))[y] * 0.3 + rng.normal(size=(n, d)), 0.0)
    return x, y


def main() -> None:
    """Compare scores and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logme", type=Path, required=True)
    parser.add_argument("--ped", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/alignment.json"))
    arguments = parser.parse_args()
    theirs = _peer(arguments.logme)
    mover = _peer(arguments.ped, "def compute_per_class_mean_variance_num")
    mover["LogME_Score"] = lambda x, y: float(theirs["LogME"]().fit(x, y))
    rows = []
    for n, d, c in SHAPES:
        x, y = _clumps(n, d, c)
        score = float(theirs["LogME"]().fit(x, y))
        ours = logme(x, y, mode="official").score
        row: dict[str, Any] = {
            "shape": [n, d, c],
            "logme": {"theirs": score, "official": ours, "corrected": logme(x, y).score},
        }
        interleaved = [
            (
                _median_s(lambda x=x, y=y: theirs["LogME"]().fit(x, y), 1),
                _median_s(lambda x=x, y=y: logme(x, y), 1),
            )
            for _ in range(arguments.repeats)
        ]
        row["logme"]["ratio"] = round(float(np.median([a / b for a, b in interleaved])), 2)
        if n > d:
            printed = io.StringIO()
            began = time.perf_counter()
            with contextlib.redirect_stdout(printed):
                moved_score = mover["PED_Score"](x.copy(), y, general_X=x, nsigma=0.6, type="LOGME")
            their_s = time.perf_counter() - began
            began = time.perf_counter()
            moved = PED().fit(x, y)
            after = logme(statistics=moved.result_.statistics, mode="official").score
            found = re.search(r"exit step:(\d+)", printed.getvalue())
            row["ped"] = {
                "theirs": moved_score,
                "official": after,
                "their_steps": int(found.group(1)) if found else None,
                "steps": moved.steps_,
                "ratio": round(their_s / (time.perf_counter() - began), 2),
            }
        began = time.perf_counter()
        class_statistics(x, y)
        row["statistics_s"] = round(time.perf_counter() - began, 4)
        rows.append(row)
        print(json.dumps(row), flush=True)
    arguments.output.write_text(
        json.dumps({"context": context(torch.device("cpu")), "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
