"""Averaged weights for evaluation: an exponential moving average over parameters and buffers.

Batch-norm statistics are averaged too (Cai et al. 2021, "EMAN"), so the averaged network is
evaluated with statistics that belong to its weights. Integer buffers are copied.
"""

import copy

import torch
from torch import nn


class WeightAverage:
    """The moving average of a module.

    Attributes:
        module: In eval mode, without gradients; holds the averaged tensors.
    """

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool) -> None:
        """Start at the current weights of `module`.

        Args:
            module: Copied.
            decay: In [0, 1).
            warmup: Use min(decay, (1 + s)/(10 + s)) at step s.
        """
        self._decay, self._warmup = decay, warmup
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._state = self.module.state_dict()

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights of `module` after `step` (from 0) was taken."""
        decay = min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay
        averaged: list[torch.Tensor] = []
        current: list[torch.Tensor] = []
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                averaged.append(self._state[name])
                current.append(value)
            else:
                self._state[name].copy_(value)
        torch._foreach_lerp_(averaged, current, 1 - decay)
