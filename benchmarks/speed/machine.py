"""What this machine can do, and how long something takes on it."""

import gc
import statistics
import time
from collections.abc import Callable

import torch

from svp import provenance


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Return the wall time of each repeat, after one that is not counted."""
    times = []
    for repeat in range(repeats + 1):
        gc.collect()
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        if repeat:
            times.append(time.perf_counter() - start)
    return times


def median_s(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median wall time; see `seconds`."""
    return statistics.median(seconds(work, device, repeats))


def product_rate(rows: int, inner: int, columns: int, device: torch.device) -> float:
    """Return the float32 operations per second of a (rows, inner) x (inner, columns) product."""
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    calls = max(1, round(2e9 / (2.0 * rows * inner * columns)))

    def work() -> None:
        for _ in range(calls):
            a @ b

    return calls * 2.0 * rows * inner * columns / median_s(work, device, 5)


def clumps(
    rows: int, dim: int, classes: int, device: torch.device, separation: float = 0.13
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return overlapping Gaussian clumps and their classes, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, dim, generator=generator) * separation
    y = torch.randint(0, classes, (rows,), generator=generator)
    x = centres[y] + torch.randn(rows, dim, generator=generator)
    return x.to(device), y.to(device)


def context(device: torch.device) -> dict[str, object]:
    """Return versions, hardware, threads and time, for the record."""
    return {
        "at": provenance.now(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }
