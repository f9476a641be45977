"""Training on several processes, started by PyTorch's own launcher.

Every process holds the whole state and takes its share of each batch. Gradients are added up once
per step, and logits of weak views are gathered, so that each process makes the same pseudo-labels
and keeps the same state: several processes do what one does on the same batch, up to rounding.

Gradients travel after the backward pass in a few large buffers instead of during it: a step here
has several forward passes and parameters without gradients, and the buffers are summed in one
order everywhere, so that replicas stay equal to the bit.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import distributed, nn

from svp.finetune.launch import launched

_BUCKET_NUMBERS = 32 * 1024 * 1024


class Group:
    """The processes of one training.

    Attributes:
        rank: This process, from 0.
        size: How many there are; 1 without a launcher.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return the part of `count` rows that this process takes; the parts differ by one."""
        return part_of(count, self.rank, self.size)

    def gather(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """Return the `count` rows whose shares the processes hold, in order; no gradient.

        Args:
            x: This process' share.
            count: Rows of all processes together.
        """
        if self.size == 1:
            return x
        sizes = [
            part.stop - part.start
            for part in (part_of(count, r, self.size) for r in range(self.size))
        ]
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes; a gradient flows to this process' `x` alone."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        distributed.all_reduce(total)
        return x + (total - x.detach())

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes."""
        if self.size == 1:
            return
        bucket: list[torch.Tensor] = []
        numbers = 0
        for parameter in parameters:
            if parameter.grad is not None:
                bucket.append(parameter.grad)
                numbers += parameter.grad.numel()
            if numbers >= _BUCKET_NUMBERS:
                _sum_in_place(bucket)
                bucket, numbers = [], 0
        if bucket:
            _sum_in_place(bucket)

    def copy_first(self, module: nn.Module) -> None:
        """Give every process the tensors of the first one."""
        if self.size > 1:
            for value in module.state_dict().values():
                distributed.broadcast(value, 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            distributed.barrier()


def part_of(count: int, rank: int, size: int) -> slice:
    """Return part `rank` of `count` rows in `size` contiguous parts that differ by one at most."""
    return slice(count * rank // size, count * (rank + 1) // size)


def _sum_in_place(gradients: list[torch.Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    place = 0
    for gradient in gradients:
        gradient.copy_(flat[place : place + gradient.numel()].view_as(gradient))
        place += gradient.numel()


@contextlib.contextmanager
def process_group(device: str | torch.device) -> Iterator[Group]:
    """Join the processes that `torchrun` started, or be the only one."""
    device = torch.device(device)
    if distributed.is_initialized():
        yield Group(distributed.get_rank(), distributed.get_world_size())
        return
    if not launched():
        yield Group()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
