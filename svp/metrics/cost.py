"""What a campaign costs: seconds by stage, and money at prices that carry a date.

svp knows no price. Whoever computes money states the prices, when they were looked up and where,
because both labels and hours get cheaper and dearer.
"""

import dataclasses
import datetime
import math
from typing import Literal

from svp.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageSeconds:
    """Wall time of a round or a campaign, by what was done; of GPUs, after synchronising.

    Attributes:
        embed: Running the encoder over the pool.
        proxy: Training the proxies.
        score: Predicting the pool with them.
        select: Choosing from the scores.
        criterion: PED and LogME, which the published accounts leave out.
        refresh: Fine-tuning the encoder and embedding anew.
        final: The last fine-tune, which they leave out as well.
    """

    embed: float = 0.0
    proxy: float = 0.0
    score: float = 0.0
    select: float = 0.0
    criterion: float = 0.0
    refresh: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"Seconds must be 0 or more. Got {field.name} = {value}.")

    @property
    def total(self) -> float:
        """All stages together."""
        return float(sum(getattr(self, field.name) for field in dataclasses.fields(self)))

    def __add__(self, other: "StageSeconds") -> "StageSeconds":
        """Return the sum stage by stage, as of two rounds."""
        return StageSeconds(
            **{
                field.name: getattr(self, field.name) + getattr(other, field.name)
                for field in dataclasses.fields(self)
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What one unit cost on a day.

    Attributes:
        amount: Per unit.
        per: The unit: a label (all of its reviews together) or an hour of one device.
        date: When it was looked up, such as `2024-05-01`.
        currency: Of the amount.
        source: Where.
    """

    amount: float
    per: Literal["label", "hour"]
    date: str
    currency: str = "USD"
    source: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amount) and self.amount >= 0):
            raise InputError(f"A price must be 0 or more. Got {self.amount}. Correct it.")
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError as error:
            raise InputError(
                f"A price must have the date it was looked up. Got {self.date!r}. "
                "Write it as 2024-05-01."
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """Money by what it is spent on, in one currency.

    Attributes:
        labels: For labels.
        compute: For devices.
        total: Both.
        currency: Of all three.
        dates: Of the prices: of labels, of hours.
    """

    labels: float
    compute: float
    total: float
    currency: str
    dates: tuple[str, str]


def bill(
    *, labels: int, label_price: Price, seconds: float, hour_price: Price, devices: int = 1
) -> Bill:
    """Return what `labels` labels and `seconds` on each of `devices` devices cost."""
    if (label_price.per, hour_price.per) != ("label", "hour"):
        raise InputError(
            "Prices must be per label and per hour. Got prices per "
            f"{label_price.per} and per {hour_price.per}. Swap them."
        )
    if label_price.currency != hour_price.currency:
        raise InputError(
            f"Prices must be in one currency. Got {label_price.currency} and "
            f"{hour_price.currency}. Convert one."
        )
    for_labels = labels * label_price.amount
    for_compute = seconds / 3600 * devices * hour_price.amount
    return Bill(
        labels=for_labels,
        compute=for_compute,
        total=for_labels + for_compute,
        currency=label_price.currency,
        dates=(label_price.date, hour_price.date),
    )


def overall_cost(labels: float, label_price: float, training_cost: float) -> float:
    """Return N1 * P_l + C_tr (ASVP, Wen et al., section 6.2).

    Args:
        labels: N1, labels with which the strategy meets random's last accuracy: see
            `labels_to_match`.
        label_price: P_l, money per label.
        training_cost: C_tr, money for computing until then.
    """
    return labels * label_price + training_cost


def standard_seconds(rounds: int, *, train_s: float, forward_s: float) -> float:
    """Return the time of a campaign that trains and runs the whole network every round.

    Source: ASVP (Wen et al., section 6.4), as are the seconds of `proxy_seconds`.
    """
    return rounds * (train_s + forward_s)


def proxy_seconds(
    rounds: int,
    *,
    train_s: float,
    forward_s: float,
    precompute_s: float,
    passes: int = 1,
    full_train_s: float = 0.0,
) -> float:
    """Return the time of a campaign that selects by a proxy on cached features.

    With one pass this is SVPp; each further pass is a refresh of the features (ASVP).

    Args:
        rounds: Selections.
        train_s: Training the proxy, once a round.
        forward_s: Predicting with it, once a round.
        precompute_s: One pass of the encoder over the pool.
        passes: Passes of the encoder, the first one included.
        full_train_s: Training the whole network, before each pass but the first.
    """
    if passes < 1:
        raise InputError(f"passes must count the first one. Got {passes}. Pass 1 or more.")
    return rounds * (train_s + forward_s) + passes * precompute_s + (passes - 1) * full_train_s
