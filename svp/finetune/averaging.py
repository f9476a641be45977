"""Averaged weights for evaluation: an exponential moving average over parameters and buffers.

Batch-norm statistics are averaged too (Cai et al. 2021, "EMAN"), so the averaged network is
evaluated with statistics that belong to its weights. Integer buffers are copied.
"""

import copy

import torch
from torch import nn


class WeightAverage:
    """The moving average of a module in training.

    Attributes:
        module: In eval mode, without gradients; holds the averaged tensors.
    """

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool) -> None:
        """Start at the current weights of `module`.

        Args:
            module: Copied now and followed later; its tensors must stay the same objects.
            decay: In [0, 1).
            warmup: Use min(decay, (1 + s)/(10 + s)) at step s.
        """
        self._decay, self._warmup = decay, warmup
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        # Listed once: to walk the modules of a small network takes as long as to average it.
        averaged, current = self.module.state_dict(), module.state_dict()
        moving = [name for name, value in current.items() if value.is_floating_point()]
        self._averaged = [averaged[name] for name in moving]
        self._current = [current[name] for name in moving]
        self._copied = [(averaged[n], current[n]) for n in current.keys() - set(moving)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights that the module has after `step` (from 0) was taken."""
        decay = min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
        for averaged, current in self._copied:
            averaged.copy_(current)
