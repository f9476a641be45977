"""Where a worker computes."""


def worker_device(name: str) -> str:
    """Return the device that `name` means on this machine; `auto` prefers a GPU."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def use_threads(count: int) -> None:
    """Let torch compute with `count` threads in this process.

    Kernels share their work by it, and sums that are shared otherwise are rounded otherwise.
    """
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
