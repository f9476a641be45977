"""What things cost, as a study states it: svp knows no price of its own."""

import dataclasses
import datetime
import math

from svp.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PricesSection:
    """Prices of one day, in one currency; 0 = free, or somebody else's bill.

    Attributes:
        as_of: The day on which they were looked up, such as `2026-01-31`.
        currency: Of all of them.
        label: Per image, all of its reviews together.
        machine_hour: Per hour of the machine that svp runs on.
        gb_month: Per gigabyte stored for a month.
        thousand_requests: Per thousand requests to the object store.
    """

    as_of: str
    currency: str = "USD"
    label: float = 0.0
    machine_hour: float = 0.0
    gb_month: float = 0.0
    thousand_requests: float = 0.0

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.as_of)
        except ValueError as error:
            raise InputError(
                f"prices.as_of must be the day they were looked up. Got {self.as_of!r}. "
                "Write it as 2026-01-31."
            ) from error
        for name in ("label", "machine_hour", "gb_month", "thousand_requests"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"prices.{name} must be 0 or more. Got {value}. Correct it.")
