"""Where a worker computes, and with how many threads."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def worker_device(name: str) -> str:
    """Return the device that `name` means on this machine; `auto` prefers a GPU."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def enough_threads(count: int, sample: "Callable[[], torch.Tensor]") -> int:
    """Return with how many threads this process may compute what `count` threads compute.

    Several workers of one machine that each take the threads of all of it wait for each other, at a
    tenth of the speed. So a worker keeps its own number where that gives the same bits.

    Args:
        count: Threads of the client.
        sample: Computes something like the work to come, float32, the same at every call.
    """
    import torch

    own = torch.get_num_threads()
    if own == count:
        return count
    use_threads(count)
    wanted = sample()
    use_threads(own)
    bits = [result.contiguous().view(torch.int32) for result in (wanted, sample())]
    return own if torch.equal(*bits) else count


def use_threads(count: int) -> None:
    """Let torch compute with `count` threads in this process.

    Kernels share their work by it, and sums that are shared otherwise are rounded otherwise.
    """
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
