"""A pool larger than memory, scored from the store: rows/s, bytes/s, memory, and 100 million rows.

    python -m benchmarks.speed.beyond_memory FOLDER --rows 200000 [--dask local:2]

Writes a synthetic store of `rows` vectors with svp's own writer (kept in FOLDER, and reused when
it is there), standardises and scores it in parts, and repeats the scoring on the first half, the
first quarter and the first eighth of it. The slope of seconds over rows says what a row costs
once everything has started; the peak of memory has to stay flat while rows grow. Nothing here
holds the pool: vectors are drawn chunk by chunk, and read part by part.

`start_bytes` is what the client held when it had found all rows (digests, index, where they lie),
itself included, before it read a vector.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.machine import context
from feature_store import FeatureStore, open_store
from svp.cluster import Executor, InProcess, connect
from svp.progress import automatic
from svp.proxies import LinearConfig, Proxy, Standardiser, fit_proxy
from svp.strategies.catalog import build_strategy
from svp.strategies.keys import hash_keys
from svp.study import moments, scoring
from svp.study.located import TableAddress, locate

GOAL_ROWS = 100_000_000
CLASSES = 100
SEGMENT_ROWS = 2**18


def digests_of(rows: int) -> np.ndarray:
    """Distinct digests, (rows, 32), without hashing anything."""
    digests = np.empty((rows, 4), "<u8")
    states = np.arange(4 * rows, dtype=np.uint64).reshape(rows, 4)
    digests[:] = hash_keys(states.reshape(-1), 7).reshape(rows, 4)
    return digests.view(np.uint8)


def vectors(start: int, rows: int, dim: int) -> np.ndarray:
    """Rows [start, start + rows) of the synthetic pool, float16; the same wherever they are cut."""
    rng = np.random.default_rng([11, start])
    x = rng.standard_normal((rows, dim), np.float32)
    x[:, :CLASSES] += (
        2.0 * np.eye(CLASSES, dtype=np.float32)[np.arange(start, start + rows) % CLASSES]
    )
    return x.astype(np.float16)


def write_store(folder: Path, rows: int, dim: int) -> tuple[FeatureStore, str]:
    store = open_store(folder / f"store-{rows}x{dim}", create=True)
    encoder_id = store.put_encoder({"synthetic": f"{rows} x {dim}"})
    table = store.table(encoder_id)
    digests = digests_of(rows)
    left = table.missing(digests)
    plans = table.plan(digests[left], dim=dim, dtype=np.float16, segment_rows=SEGMENT_ROWS)
    with automatic().task("writing", len(left), "rows") as task:
        for plan in plans:
            writer = table.writer(plan)
            for chunk in writer.pending():
                first = int(left[plan.positions[chunk.start]])
                writer.write(chunk, vectors(first, len(chunk), dim))
                task.advance(len(chunk))
            writer.seal()
    return store, encoder_id


def a_proxy(dim: int, standardiser: Standardiser) -> Proxy:
    x = torch.from_numpy(vectors(0, 20 * CLASSES, dim)).float()
    y = torch.arange(20 * CLASSES) % CLASSES
    return fit_proxy(x, y, CLASSES, LinearConfig(), standardiser=standardiser, seed=0)


def peak_bytes() -> int:
    """Most memory this process has held; children that ended included, workers that live not."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(kind).ru_maxrss for kind in kinds)


def measure(executor: Executor, folder: Path, rows: int, dim: int, keep: int) -> Iterator[dict]:
    store, encoder_id = write_store(folder, rows, dim)
    table = store.table(encoder_id)
    address = TableAddress(
        store_url=str(Path(store.url).resolve()), encoder_id=encoder_id, view="eval", dim=dim,
        dtype="float16",
    )  # fmt: skip
    began = time.perf_counter()
    located = locate(table, digests_of(rows))
    resolved_s = time.perf_counter() - began
    start_bytes = peak_bytes()
    began = time.perf_counter()
    standardiser = moments.standardise(
        executor, address, located, device="cpu", progress=automatic()
    )
    yield {
        "stage": "standardise",
        "rows": rows,
        "seconds": time.perf_counter() - began,
        "resolve_s": resolved_s,
        "start_bytes": start_bytes,
        "peak_bytes": peak_bytes(),
    }
    proxy = a_proxy(dim, standardiser)
    for part in (rows // 8, rows // 4, rows // 2, rows):
        began = time.perf_counter()
        order = np.argsort(hash_keys(np.arange(part, dtype=np.uint64), 3), kind="stable")
        places = np.empty(part, np.int64)
        places[order] = np.arange(part)
        _, utility = scoring.best_places(
            executor, address, located.take(slice(0, part)), places,
            strategy=build_strategy("margin"), proxy=proxy, keep=keep, seed=3, device="cpu",
            progress=automatic(),
        )  # fmt: skip
        yield {
            "stage": "score",
            "rows": part,
            "seconds": time.perf_counter() - began,
            "peak_bytes": peak_bytes(),
            "best": float(utility[0]),
        }


def summary(results: list[dict], dim: int) -> dict:
    """Slope by least squares over the scored sizes, and what it says of the goal."""
    scored = [result for result in results if result["stage"] == "score"]
    rows = np.asarray([result["rows"] for result in scored], float)
    seconds = np.asarray([result["seconds"] for result in scored])
    slope, start = np.polyfit(rows, seconds, 1)
    once = results[0]["seconds"] / results[0]["rows"]
    return {
        "rows_per_s": 1 / slope,
        "bytes_per_s": 2 * dim / slope,
        "start_s": start,
        "peak_growth_bytes": scored[-1]["peak_bytes"] - scored[0]["peak_bytes"],
        "goal_rows": GOAL_ROWS,
        "goal_hours": GOAL_ROWS * (slope + once) / 3600,
        "goal_pool_bytes": 2.0 * dim * GOAL_ROWS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--keep", type=int, default=1000)
    parser.add_argument("--dask", default=None)
    parser.add_argument("--result-file", type=Path, default=None)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        executor: Executor = InProcess()
        if arguments.dask is not None:
            executor = stack.enter_context(connect(arguments.dask))
        results = []
        sizes = (arguments.rows, arguments.dim, arguments.keep)
        for result in measure(executor, arguments.folder, *sizes):
            results.append(result)
            print(json.dumps(result), file=sys.stderr, flush=True)
    document = {
        "machine": context(torch.device("cpu")),
        "executor": arguments.dask or "in-process",
        "results": results,
        "summary": summary(results, arguments.dim),
    }
    text = json.dumps(document, indent=1)
    if arguments.result_file is not None:
        arguments.result_file.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
