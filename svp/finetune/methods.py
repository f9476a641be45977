"""The method that each name stands for, in its first state."""

import torch

from svp.finetune.config import FinetuneConfig
from svp.finetune.mixmatch import MixMatch
from svp.pseudolabels.fixmatch import FixMatch
from svp.pseudolabels.flexmatch import FlexMatch
from svp.pseudolabels.freematch import FreeMatch
from svp.pseudolabels.pseudolabel import PseudoLabel
from svp.pseudolabels.rule import Rule
from svp.pseudolabels.softmatch import SoftMatch
from svp.pseudolabels.uda import UDA


def build_method(
    config: FinetuneConfig,
    *,
    num_unlabelled: int,
    num_classes: int,
    device: torch.device | str = "cpu",
) -> Rule | MixMatch | None:
    """Return the method that `config.method` names; None for supervised training."""
    if config.method == "flexmatch":
        return FlexMatch(
            num_unlabelled,
            num_classes,
            cutoff=config.cutoff,
            warmup=config.threshold_warmup,
            floor=config.threshold_floor,
            device=device,
        )
    if config.method == "fixmatch":
        return FixMatch(config.cutoff)
    if config.method == "pseudolabel":
        return PseudoLabel(config.cutoff, config.ramp_share)
    if config.method == "uda":
        return UDA(
            num_classes,
            cutoff=config.cutoff,
            temperature=config.temperature,
            annealing=config.signal_annealing,
        )
    if config.method == "freematch":
        return FreeMatch(
            num_classes, decay=config.statistics_ema, fairness=config.fairness, device=device
        )
    if config.method == "softmatch":
        return SoftMatch(
            num_classes,
            decay=config.statistics_ema,
            sigmas=config.weight_sigmas,
            align=config.align,
            align_labels=config.align_labels,
            device=device,
        )
    if config.method == "mixmatch":
        return MixMatch(config.temperature, config.ramp_share)
    return None
