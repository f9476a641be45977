"""Optimisers of pretraining: LARS, SGD, AdamW, and the learning rate's course.

Source of LARS: You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks",
equation 6 and algorithm 1.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from svp.pretrain.config import PretrainConfig


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step per tensor is proportional to the tensor's norm.

    For weights w with gradient g and decay b: v <- m v + lr * eta |w| / |g + b w| * (g + b w),
    w <- w - v. Groups with `adapt` False take the same step without the norms.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "eta": eta,
                "adapt": True,
            },
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # takes no closure
        """Update every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad.add(weight, alpha=group["weight_decay"])
                if group["adapt"]:
                    norm, norm_update = weight.norm(), update.norm()
                    # A tensor or gradient of zeros has no scale to keep: plain step.
                    trust = torch.where(
                        (norm > 0) & (norm_update > 0), group["eta"] * norm / norm_update, 1.0
                    )
                    update *= trust
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                velocity = state["momentum"].mul_(group["momentum"]).add_(update)
                weight.sub_(velocity, alpha=group["lr"])


def is_excluded(name: str, parameter: torch.Tensor, rule: str) -> bool:
    """Say whether a parameter neither decays nor is scaled, by PretrainConfig.excluded."""
    if rule == "eman":
        return any(part in name for part in ("bn", "downsample.1", "bias"))
    return parameter.ndim < 2


def build_optimiser(network: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """Return the configured optimiser over the parameters that take gradients."""
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    excluded = [p for n, p in trained if is_excluded(n, p, config.excluded)]
    scaled = [p for n, p in trained if not is_excluded(n, p, config.excluded)]
    groups: list[dict[str, Any]] = [
        {"params": scaled, "weight_decay": config.weight_decay},
        {"params": excluded, "weight_decay": 0.0},
    ]
    if config.optimiser == "lars":
        groups[1]["adapt"] = False
        return LARS(groups, lr=config.lr, momentum=config.optimiser_momentum, eta=config.lars_eta)
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.optimiser_momentum,
            nesterov=config.optimiser_momentum > 0,
        )
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate(step: int, steps_per_epoch: int, config: PretrainConfig) -> float:
    """Return the rate of `step`, counted from 0: linear warm-up, then half a cosine to 0."""
    total = steps_per_epoch * config.epochs
    warmup = round(steps_per_epoch * config.warmup_epochs)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.cosine_per == "epoch":
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step // steps_per_epoch) / config.epochs))
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
