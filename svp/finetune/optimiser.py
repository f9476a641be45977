"""The optimiser of a fine-tune: head and backbone at their own rates, per-block decay, no-decay.

Source of the per-block factor: Clark et al. 2020, "ELECTRA", and Bao et al. 2022, "BEiT".
"""

from collections.abc import Mapping

import torch
from torch import nn

from svp.errors import InputError
from svp.finetune.config import FinetuneConfig
from svp.finetune.model import Classifier


def build_optimiser(classifier: Classifier, config: FinetuneConfig) -> torch.optim.Optimizer:
    """Return the optimiser; each group keeps its unscheduled rate under `base_lr`."""
    depths = _depths(classifier.backbone) if config.layer_decay < 1 else {}
    deepest = max(depths.values(), default=0)
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        if name.startswith("head."):
            rate = config.head_lr
        else:
            depth = depths.get(name.removeprefix("backbone."), deepest)
            rate = config.backbone_lr * config.layer_decay ** (deepest - depth)
        # Biases and normalisation scales are the parameters of one dimension.
        decays = config.decay_norms or parameter.ndim > 1
        key = (rate, config.weight_decay if decays else 0.0)
        members.setdefault(key, []).append(parameter)
    groups = [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in members.items()
    ]
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(
        groups, momentum=config.momentum, nesterov=config.momentum > 0, fused=True
    )


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` times its base rate."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group["base_lr"]


def _depths(backbone: nn.Module) -> Mapping[str, int]:
    """Return the depth of each parameter: 0 before the blocks, i + 1 in block i, then one more."""
    lists = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    }
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in lists.items()}
    total = sum(p.numel() for p in backbone.parameters())
    blocks = max(sizes, key=lambda name: sizes[name], default=None)
    if blocks is None or sizes[blocks] < total / 2:
        raise InputError(
            "layer_decay must be 1 for a backbone without one main list of blocks. "
            "Got a backbone that has none. Set layer_decay = 1."
        )
    depths: dict[str, int] = {}
    passed = False
    for name, _ in backbone.named_parameters():
        prefix = f"{blocks}." if blocks else ""
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.partition(".")[0] in lists[blocks]._modules:
            passed = True
            position = list(lists[blocks]._modules).index(rest.partition(".")[0])
            depths[name] = position + 1
        else:
            depths[name] = len(lists[blocks]) + 1 if passed else 0
    return depths
