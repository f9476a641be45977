"""Learning rates of gradient-trained proxies, one number per step.

Sources: Loshchilov and Hutter 2017, "SGDR" (`cosine`, `restarts`); Sohn et al. 2020, "FixMatch"
(`seven_sixteenths`).
"""

import math

from svp.proxies.network import NetworkConfig


def learning_rates(config: NetworkConfig, steps_per_epoch: int) -> list[float]:
    """Return the rate of each step of a whole training.

    Args:
        config: Peak, schedule and warm-up.
        steps_per_epoch: Steps of one epoch.
    """
    steps = config.epochs * steps_per_epoch
    rates = [config.lr * _factor(config, step, steps, steps_per_epoch) for step in range(steps)]
    if config.schedule == "restarts":
        return rates
    warm = config.warmup_steps
    return [
        config.lr * (step + 1) / warm if step < warm else rate for step, rate in enumerate(rates)
    ]


def _factor(config: NetworkConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    if config.schedule == "cosine":
        rest = max(1, steps - config.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * max(0, step - config.warmup_steps) / rest))
    if config.schedule == "seven_sixteenths":
        return math.cos(7.0 * math.pi / 16.0 * step / steps)
    if config.schedule == "restarts":
        start, length = 0, config.period
        while step - start >= length:
            start, length = start + length, 2 * length
        return 0.5 * (1.0 + math.cos(math.pi * (step - start) / length))
    if config.schedule == "steps":
        # A decimal power, so that a tenth is 0.1 and not 0.1 times rounding of earlier ones.
        return float(10.0 ** -(step // steps_per_epoch // config.period))
    return 1.0
