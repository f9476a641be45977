"""Random numbers for augmentations, from an explicit generator.

Numbers are drawn where the generator lives and then moved. A CPU generator therefore gives the
same views on every device, and masks drawn with it never make an accelerator wait.
"""

from collections.abc import Sequence

import torch


def uniform(
    shape: Sequence[int],
    low: float,
    high: float,
    *,
    generator: torch.Generator,
    device: torch.device,
) -> torch.Tensor:
    """Return float32 numbers in [low, high) of `shape` on `device`."""
    drawn = torch.rand(*shape, generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(device, non_blocking=True)


def integers(
    shape: Sequence[int], high: int, *, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Return int64 numbers in [0, high) of `shape` on `device`."""
    drawn = torch.randint(high, tuple(shape), generator=generator, device=generator.device)
    return drawn.to(device, non_blocking=True)


def chosen(n: int, p: float, *, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Return a (n,) bool mask on `device`, each entry True with probability `p`."""
    return uniform((n,), 0.0, 1.0, generator=generator, device=device) < p


def chosen_rows(
    n: int, p: float, *, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Return on `device` the ascending rows of [0, n) kept with probability `p` each."""
    mask = torch.rand(n, generator=generator, device=generator.device) < p
    return mask.nonzero().squeeze(1).to(device, non_blocking=True)
