"""Averaged weights for evaluation: an exponential moving average over parameters and buffers.

Batch-norm statistics are averaged too (Cai et al. 2021, "EMAN"), so the averaged network is
evaluated with statistics that belong to its weights. Integer buffers are copied.
"""

import torch
from torch import nn


class WeightAverage:
    """The moving average of every float tensor of a module."""

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool) -> None:
        """Start at the current weights of `module`.

        Args:
            module: Not kept; its tensors are copied.
            decay: In [0, 1).
            warmup: Use min(decay, (1 + s)/(10 + s)) at step s.
        """
        self._decay, self._warmup = decay, warmup
        self.state = {name: value.detach().clone() for name, value in _tensors(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights of `module` after `step` (from 0) was taken."""
        decay = min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay
        averaged: list[torch.Tensor] = []
        current: list[torch.Tensor] = []
        for name, value in _tensors(module).items():
            if value.is_floating_point():
                averaged.append(self.state[name])
                current.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint's `state`."""
        for name, value in state.items():
            self.state[name].copy_(value)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())
