"""SGD, Adam and AdamW on a few tensors, without waiting for the device.

The update rules are PyTorch's own; written out because importing torch.optim takes longer than a
whole round on a CPU.

Sources: Nesterov momentum as in Sutskever et al. 2013; Kingma and Ba 2015, "Adam"; Loshchilov and
Hutter 2019, "Decoupled weight decay regularization".
"""

from collections.abc import Sequence
from typing import Final

import torch

from svp.proxies.network import NetworkConfig

_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPS: Final = 1e-8


class Optimiser:
    """Moves parameters in place."""

    def __init__(self, parameters: Sequence[torch.Tensor], config: NetworkConfig) -> None:
        self._parameters = parameters
        self._config = config
        self._first = [torch.zeros_like(parameter) for parameter in parameters]
        self._second = [torch.zeros_like(parameter) for parameter in parameters]
        self._step = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor], lr: float) -> None:
        """Take one step of rate `lr`."""
        config = self._config
        self._step += 1
        corrected1 = 1.0 - _BETA1**self._step
        corrected2 = 1.0 - _BETA2**self._step
        for parameter, gradient, first, second in zip(
            self._parameters, gradients, self._first, self._second, strict=True
        ):
            if config.optimiser == "adamw":
                parameter.mul_(1.0 - lr * config.weight_decay)
            elif config.weight_decay:
                gradient = gradient.add(parameter, alpha=config.weight_decay)
            if config.optimiser == "sgd":
                first.mul_(config.momentum).add_(gradient)
                parameter.add_(gradient.add(first, alpha=config.momentum), alpha=-lr)
                continue
            first.lerp_(gradient, 1.0 - _BETA1)
            second.mul_(_BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
            scale = second.sqrt().mul_(corrected2**-0.5).add_(_EPS)
            parameter.addcdiv_(first, scale, value=-lr / corrected1)
