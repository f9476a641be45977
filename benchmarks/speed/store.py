"""The feature store against `np.load`, `torch.load`, `np.load(mmap)[rows]` and `np.save`.

    python -m benchmarks.speed.store                   1,000,000 x 512 fp16: 1 GB, about 3 minutes
    python -m benchmarks.speed.store --rows 100000

Ratios are medians of the baseline over medians of the store, interleaved in one process; above 1
the store is faster. Files are in the page cache. On virtual machines that return free pages to
their host, fresh memory costs more than reading, so glibc is told to keep its heap; the option
--default-malloc leaves it alone.

Rows to gather are drawn anew in each round, so that no case finds them in the processor's cache.
The baseline maps one file and copies rows. The store copies rows once, too, with two threads. What
it does besides: it finds 10,000 digests among all ("digests to rows alone", about a fifth of a
gather from an open table), and, where chunk files are opened, makes a map per file, about 12
microseconds each. "array in RAM" shows what is left to gain: where the kernel maps the page cache
in large pieces, the baseline is nearly as fast, and no reader can be three times faster than it.
A table that is opened for one gather reads and checks the digests of all rows (32 bytes each) and
looks at each while it is in cache, without keeping it; for the second question they are kept, and
for the fourth they are entered into a hash table.

What a write does besides copying: it looks for values that are not finite and takes the CRC-32C
(about a third of the work of the chunks), and plans the segment: whether any of a million digests
repeats, and SHA-256 of all of them. Sealing reads each chunk back for its CRC-32C. BLAKE3 of all
bytes, under 5 GB/s a core, is taken while a durable write waits for the disk; otherwise, as most
of the work of sealing, from what is read back. A durable write forces every chunk to disk before it
appears, so it asks the disk 60 times where `np.save` and one fsync ask it once.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from feature_store import FeatureStore, LocalStorage, Table, open_store
from feature_store.index import DigestIndex
from feature_store.reader import THREADS, SegmentReader

_KEPT_HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_ARENA_MAX": "1",
}
_GATHERED = 10_000
_GROUPS = ("reads", "gathers", "resolutions", "writes")


@dataclass(frozen=True)
class Case:
    """Something that is timed; without a baseline it is one."""

    name: str
    run: Callable[[], object]
    baseline: str | None = None
    target: float | None = None
    """Of the ratio to the baseline."""
    most_s: float | None = None
    """Of the median, in seconds."""
    prepare: Callable[[], object] | None = None


def measure(cases: list[Case], rounds: int) -> dict[str, list[float]]:
    """Return seconds per case; the first round only warms up."""
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            if case.prepare is not None:
                case.prepare()
            gc.collect()
            start = time.perf_counter()
            result = case.run()
            elapsed = time.perf_counter() - start
            del result
            if number:
                seconds[case.name].append(elapsed)
    return seconds


def fill(table: Table, digests: np.ndarray, x_Nd: np.ndarray, *, seal: bool = True) -> None:
    """Write all rows with two threads, as an embedding job with an unlimited encoder would."""
    plans = table.plan(digests, dim=x_Nd.shape[1], dtype=x_Nd.dtype)
    with ThreadPoolExecutor(THREADS) as threads:
        for plan in plans:
            writer = table.writer(plan)
            first = plan.positions[0]
            jobs = [
                threads.submit(writer.write, chunk, x_Nd[first + chunk.start : first + chunk.stop])
                for chunk in writer.pending()
            ]
            for job in jobs:
                job.result()
            if seal:
                writer.seal()


class Bench:
    """One matrix, stored every way that is compared."""

    def __init__(self, root: Path, rows: int, dim: int) -> None:
        rng = np.random.default_rng(0)
        block = rng.standard_normal((min(rows, 16_384), dim), np.float32).astype(np.float16)
        self.root = root
        self.x_Nd = np.resize(block, (rows, dim))
        self.digests = rng.integers(0, 256, (rows, 32), np.uint8)
        self.rng = rng
        self.npy = root / "x.npy"
        np.save(self.npy, self.x_Nd)
        store = open_store(root / "store", create=True)
        self.table = store.table(store.put_encoder({"benchmark": "store"}))
        fill(self.table, self.digests, self.x_Nd)

    def fresh(self) -> Table:
        """Return the table as a new process would open it."""
        return open_store(self.root / "store").table(self.table.encoder_id)

    def reads(self) -> list[Case]:
        """Return full reads."""
        cases = [
            Case("np.load", lambda: np.load(self.npy)),
            Case(
                "read, verified",
                lambda: self.table.read(self.digests),
                baseline="np.load",
                target=0.85,
            ),
            Case(
                "read, unverified",
                lambda: self.table.read(self.digests, verify=False),
                baseline="np.load",
                target=1.0,
            ),
            Case(
                "open and read, verified",
                lambda: self.fresh().read(self.digests),
                baseline="np.load",
            ),
        ]
        if importlib.util.find_spec("torch") is not None:
            import torch

            saved = self.root / "x.pt"
            torch.save(torch.from_numpy(self.x_Nd), saved)
            cases.insert(
                1,
                Case(
                    "torch.load", lambda: torch.load(saved, weights_only=True), baseline="np.load"
                ),
            )
        return cases

    def draw(self) -> None:
        """Choose other rows to gather: asking for the same ones again would find them in cache."""
        self.rows = self.rng.permutation(len(self.x_Nd))[:_GATHERED]
        self.asked = self.digests[self.rows]

    def gathers(self) -> list[Case]:
        """Return reads of scattered rows, other ones in each round, the same for all cases."""
        self.draw()
        expected = self.x_Nd[self.rows]
        assert np.array_equal(self.table.read(self.asked), expected)
        self.table.read(self.digests[np.argsort(self.digests[:, 0])])  # every chunk is checked once
        kept_open = np.load(self.npy, mmap_mode="r")
        storage = LocalStorage(self.root / "store")
        prefix = f"encoders/{self.table.encoder_id}/eval/segments"
        manifests = self.table.segments()
        index = DigestIndex(
            np.concatenate(
                [SegmentReader(storage, prefix, manifest).digests() for manifest in manifests]
            )
        )
        offsets = np.cumsum([0, *(manifest.rows for manifest in manifests)])

        def opened_per_call() -> np.ndarray:
            out = np.empty_like(expected)
            runs = index.runs(self.asked)
            assert runs is not None
            pieces, segment = runs.cut(offsets[:-1])
            for number, manifest in enumerate(manifests):
                part = pieces[segment == number]
                part.row[:] -= offsets[number]
                SegmentReader(storage, prefix, manifest).read(part, out, verify=False)
            return out

        assert np.array_equal(opened_per_call(), expected)
        baseline = "np.load(mmap)[rows]"
        return [
            Case(
                baseline,
                lambda: np.load(self.npy, mmap_mode="r")[self.rows],
                prepare=self.draw,
            ),
            Case("memmap kept open [rows]", lambda: kept_open[self.rows], baseline=baseline),
            # No reader can be faster on one core: nothing is opened, mapped or looked up.
            Case("array in RAM [rows]", lambda: self.x_Nd[self.rows], baseline=baseline),
            Case("digests to rows alone", lambda: index.find(self.asked), baseline=baseline),
            Case(
                "gather, table open, chunks checked before",
                lambda: self.table.read(self.asked),
                baseline=baseline,
                target=3.0,
            ),
            Case(
                "gather, chunk files opened, unverified",
                opened_per_call,
                baseline=baseline,
                target=1.5,
            ),
            Case(
                "gather, table opened, unverified",
                lambda: self.fresh().read(self.asked, verify=False),
                baseline=baseline,
            ),
            Case(
                "gather, table opened, every touched chunk checked",
                lambda: self.fresh().read(self.asked),
                baseline=baseline,
            ),
        ]

    def resolutions(self) -> list[Case]:
        """Return the ways from all digests to rows; what a study does before it reads."""
        shuffled = self.digests[self.rng.permutation(len(self.digests))]
        self.table.missing(self.digests)
        return [
            Case(f"resolve {len(self.digests):,} in stored order", self._resolve(self.digests)),
            Case(f"resolve {len(self.digests):,} in random order", self._resolve(shuffled)),
            Case(
                f"open the table and resolve {len(self.digests):,} in random order",
                lambda: self.fresh().resolve(shuffled),
                most_s=2.0,
            ),
            Case(
                f"missing of {len(self.digests):,}, none is",
                lambda: self.fresh().missing(self.digests),
                most_s=2.0,
            ),
        ]

    def _resolve(self, digests: np.ndarray) -> Callable[[], object]:
        return lambda: self.table.resolve(digests)

    def writes(self) -> list[Case]:
        """Return writes of the whole matrix."""
        target = self.root / "written"

        def clear() -> None:
            for path in sorted(target.rglob("*"), reverse=True) if target.is_dir() else ():
                path.rmdir() if path.is_dir() else path.unlink()
            target.mkdir(exist_ok=True)
            # Otherwise one case waits for what the one before it left to the disk.
            os.sync()

        def save(*, durable: bool) -> None:
            with (target / "x.npy").open("wb") as file:
                np.save(file, self.x_Nd)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())

        def store(*, durable: bool, seal: bool) -> None:
            open_store(target / "store", create=True)
            opened = FeatureStore(LocalStorage(target / "store", durable=durable))
            table = opened.table(opened.put_encoder({"benchmark": "store"}))
            fill(table, self.digests, self.x_Nd, seal=seal)

        return [
            Case("np.save", lambda: save(durable=False), prepare=clear),
            Case("np.save + fsync", lambda: save(durable=True), prepare=clear),
            Case(
                "write chunks, atomic",
                lambda: store(durable=False, seal=False),
                baseline="np.save",
                target=0.5,
                prepare=clear,
            ),
            Case(
                "write and seal, atomic",
                lambda: store(durable=False, seal=True),
                baseline="np.save",
                prepare=clear,
            ),
            Case(
                "write and seal, durable",
                lambda: store(durable=True, seal=True),
                baseline="np.save + fsync",
                target=0.6,
                prepare=clear,
            ),
        ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("numpy", "torch", "zarr", "crc32c", "blake3", "pyarrow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def summarise(cases: list[Case], seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return one record per case, with its ratio where it has a baseline."""
    records = []
    for case in cases:
        median = statistics.median(seconds[case.name])
        record: dict[str, Any] = {
            "name": case.name,
            "median_s": round(median, 5),
            "min_s": round(min(seconds[case.name]), 5),
        }
        if case.baseline is not None:
            record["baseline"] = case.baseline
            record["ratio"] = round(statistics.median(seconds[case.baseline]) / median, 3)
            record["target"] = case.target
        if case.most_s is not None:
            record["most_s"] = case.most_s
        records.append(record)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary one")
    parser.add_argument("--default-malloc", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    if not arguments.default_malloc and os.environ.get("MALLOC_MMAP_MAX_") is None:
        # The settings are read when a process starts.
        command = [sys.executable, "-m", "benchmarks.speed.store", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | _KEPT_HEAP)
    results: dict[str, Any] = {
        "schema": "svp.benchmark.store/1",
        "rows": arguments.rows,
        "dim": arguments.dim,
        "dtype": "float16",
        "rounds": arguments.rounds,
        "kept_heap": not arguments.default_malloc,
        "hardware": {"processor": _processor(), "cpus": os.cpu_count()},
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": _packages(),
    }
    with tempfile.TemporaryDirectory(dir=arguments.directory) as root:
        bench = Bench(Path(root), arguments.rows, arguments.dim)
        for group in _GROUPS:
            cases = getattr(bench, group)()
            results[group] = summarise(cases, measure(cases, arguments.rounds))
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print(
        f"{arguments.rows:,} x {arguments.dim} fp16, {results['hardware']}, {results['versions']}"
    )
    print(f"load when started: {results['load']}")
    for group in _GROUPS:
        print(f"\n{group:52}  median      min   ratio  target")
        for record in results[group]:
            line = f"{record['name']:52} {record['median_s']:7.3f}s {record['min_s']:7.3f}s"
            if "ratio" in record:
                target = record["target"]
                line += f" {record['ratio']:7.2f}" + (f" {target:7.2f}" if target else "")
            elif "most_s" in record:
                line += f"   at most {record['most_s']:.1f} s"
            print(line)


if __name__ == "__main__":
    main()
