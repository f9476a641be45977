"""The rule that each method's name stands for."""

import torch

from svp.finetune.config import FinetuneConfig
from svp.finetune.fixmatch import FixMatch
from svp.finetune.flexmatch import FlexMatch, FlexMatchState
from svp.finetune.freematch import FreeMatch
from svp.finetune.mixmatch import MixMatch
from svp.finetune.pseudolabel import PseudoLabel
from svp.finetune.rule import Rule
from svp.finetune.softmatch import SoftMatch
from svp.finetune.uda import UDA


def build_rule(
    config: FinetuneConfig,
    *,
    num_unlabelled: int,
    num_classes: int,
    device: torch.device | str = "cpu",
) -> Rule | None:
    """Return the rule of `config.method` in its first state; None for supervised training."""
    if config.method == "flexmatch":
        state = FlexMatchState(
            num_unlabelled,
            num_classes,
            cutoff=config.cutoff,
            warmup=config.threshold_warmup,
            floor=config.threshold_floor,
            device=device,
        )
        return FlexMatch(state)
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
