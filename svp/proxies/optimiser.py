"""SGD, Adam and AdamW on one vector, without waiting for the device.

The update rules are PyTorch's own; written out because importing torch.optim takes longer than a
whole round on a CPU.

Sources: Nesterov momentum as in Sutskever et al. 2013; Kingma and Ba 2015, "Adam"; Loshchilov and
Hutter 2019, "Decoupled weight decay regularization".
"""

from typing import Final

import torch

from svp.proxies.network import NetworkConfig

_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPS: Final = 1e-8


class Optimiser:
    """Moves a vector of parameters in place."""

    def __init__(
        self, parameter_P: torch.Tensor, gradient_P: torch.Tensor, config: NetworkConfig
    ) -> None:
        """Start at rest.

        Args:
            parameter_P: Parameters.
            gradient_P: Where their gradient is found at every step; overwritten there.
            config: Which rule, its decay and its momentum.
        """
        self._parameter_P, self._gradient_P, self._config = parameter_P, gradient_P, config
        self._first_P, self._second_P = (torch.zeros_like(parameter_P) for _ in range(2))
        self._scale_P = torch.empty_like(parameter_P)
        self._step = 0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step of rate `lr`."""
        config, gradient_P, first_P = self._config, self._gradient_P, self._first_P
        self._step += 1
        if config.optimiser == "adamw":
            self._parameter_P.mul_(1.0 - lr * config.weight_decay)
        elif config.weight_decay:
            gradient_P.add_(self._parameter_P, alpha=config.weight_decay)
        if config.optimiser == "sgd":
            first_P.mul_(config.momentum).add_(gradient_P)
            self._parameter_P.add_(gradient_P.add_(first_P, alpha=config.momentum), alpha=-lr)
            return
        first_P.lerp_(gradient_P, 1.0 - _BETA1)
        self._second_P.mul_(_BETA2).addcmul_(gradient_P, gradient_P, value=1.0 - _BETA2)
        corrected1, corrected2 = 1.0 - _BETA1**self._step, 1.0 - _BETA2**self._step
        torch.sqrt(self._second_P, out=self._scale_P).mul_(corrected2**-0.5).add_(_EPS)
        self._parameter_P.addcdiv_(first_P, self._scale_P, value=-lr / corrected1)
