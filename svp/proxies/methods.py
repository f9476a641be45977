"""The semi-supervised rule that each trainer's name stands for, with its published values."""

from typing import Final

import torch

from svp.proxies.network import NetworkConfig
from svp.pseudolabels.fixmatch import FixMatch
from svp.pseudolabels.flexmatch import FlexMatch
from svp.pseudolabels.freematch import FreeMatch
from svp.pseudolabels.pseudolabel import PseudoLabel
from svp.pseudolabels.rule import Rule
from svp.pseudolabels.softmatch import SoftMatch
from svp.pseudolabels.uda import UDA

_DECAY: Final = 0.999
_TEMPERATURE: Final = 0.4
_FAIRNESS: Final = 0.001
_RAMP: Final = 0.4


def build_rule(
    config: NetworkConfig, *, members: int, rows: int, classes: int, device: torch.device
) -> Rule | None:
    """Return the rule of `config` for members side by side; None for supervised training.

    Args:
        config: `trainer` names it; `cutoff` replaces its own.
        members: Networks that train at once.
        rows: Unlabelled rows.
        classes: C.
        device: Where its state lives.
    """
    if config.trainer == "flexmatch":
        return FlexMatch(
            rows, classes, cutoff=config.cutoff or 0.95, networks=members, device=device
        )
    if config.trainer == "fixmatch":
        return FixMatch(config.cutoff or 0.95)
    if config.trainer == "pseudolabel":
        return PseudoLabel(config.cutoff or 0.95, _RAMP)
    if config.trainer == "uda":
        return UDA(classes, cutoff=config.cutoff or 0.8, temperature=_TEMPERATURE)
    if config.trainer == "freematch":
        return FreeMatch(classes, decay=_DECAY, fairness=_FAIRNESS, networks=members, device=device)
    if config.trainer == "softmatch":
        return SoftMatch(classes, decay=_DECAY, networks=members, device=device)
    return None
