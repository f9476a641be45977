"""Numbers as people read them. A minus sign is U+2212, so that columns of digits line up."""

import math
from typing import Final

MINUS: Final = "\u2212"


def number(value: float, digits: int = 0) -> str:
    """Return `value` with thousands separated and `digits` decimals."""
    text = f"{abs(value):,.{digits}f}"
    is_zero = not text.strip("0.,")
    return f"{MINUS}{text}" if value < 0 and not is_zero else text


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction in percent, or a dash for None."""
    return "–" if fraction is None else f"{number(100.0 * fraction, digits)}%"


def significant(value: float | None) -> str:
    """Return `value` with three significant digits, or a dash for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: f"{MINUS}∞"}.get(value, "–")
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return number(value, digits)


def duration(seconds: float | None) -> str:
    """Return wall time in the two largest units that matter, or a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{number(hours)} h {minutes:02d} min"


def money(amount: float) -> str:
    """Return an amount with cents, or with what is left of a cent."""
    return "< 0.01" if 0 < amount < 0.005 else number(amount, 2)


def plural(count: int, one: str, many: str = "") -> str:
    """Return `count` with the noun that fits it."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"
