"""Learning-rate schedules, as factors on the base rate, evaluated per step.

Sources: cos(7 pi/16 s/S) is FixMatch's (Sohn et al. 2020, section 2.3); restarts are Loshchilov
and Hutter 2017, "SGDR", with the period doubling.
"""

import math

from svp.finetune.config import FinetuneConfig


def rate_factor(step: int, total: int, config: FinetuneConfig) -> float:
    """Return the factor on every base learning rate at `step` of `total` steps, in [0, 1]."""
    done = step / total
    if config.schedule == "cosine":
        return math.cos(7 * math.pi / 16 * done)
    if config.schedule == "step":
        return float(0.1 ** sum(done >= milestone for milestone in config.milestones))
    if config.schedule == "restarts":
        period, start = config.restart_steps, 0
        while step >= start + period:
            start, period = start + period, 2 * period
        return 0.5 * (1 + math.cos(math.pi * (step - start) / period))
    if config.schedule == "warmup-cosine":
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        rest = max(total - config.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / rest))
    return 1.0
