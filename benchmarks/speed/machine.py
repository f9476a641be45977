"""What this machine can do, and how long something takes on it."""

import contextlib
import ctypes
import dataclasses
import gc
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from svp import provenance

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """How long something took.

    Attributes:
        wall: Seconds.
        cpu: Seconds of processor time, of ended child processes too. Where others use the same
            cores it says more than the wall time.
    """

    wall: float
    cpu: float


def clock(work: Callable[[], _Result]) -> tuple[_Result, Taken]:
    """Run `work`; return its result and the time it took."""
    wall, cpu = time.perf_counter(), _cpu_s()
    result = work()
    return result, Taken(time.perf_counter() - wall, _cpu_s() - cpu)


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


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


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second of a large copy, read and written bytes counted."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 2.0 * 4.0 * len(source) / median_s(lambda: target.copy_(source), device, 5)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Run `work` once; return the most memory it held beyond what was held before.

    On a GPU that is the allocator's count. On a CPU it is the kernel's high-water mark of resident
    memory, set back just before, after free memory was returned to the kernel; where the kernel
    cannot set it back, the growth of the process's all-time mark, which is too low if more was
    held before.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    work()
    return _resident("VmHWM") - before


def stop_after(
    limit_s: float, most_bytes: int, report: Callable[[str], None]
) -> Callable[[], None]:
    """Watch this process; return what ends the watch.

    Args:
        limit_s: Seconds from now after which the process ends.
        most_bytes: Resident memory at which it ends.
        report: Called with `seconds` or `bytes` just before.
    """
    over = threading.Event()
    deadline = time.monotonic() + limit_s

    def watch() -> None:
        while not over.wait(0.05):
            late = time.monotonic() > deadline
            if late or _resident("VmRSS") > most_bytes:
                report("seconds" if late else "bytes")
                sys.stdout.flush()
                # Nothing below Python can be interrupted otherwise.
                os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    return over.set


def _resident(mark: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(mark):
            return int(line.split()[1]) * 1024
    return 0


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
