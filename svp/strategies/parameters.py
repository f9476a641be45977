"""Parameters of strategies: checks with messages that name the right spelling."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from svp.errors import InputError


def near(word: str, known: Iterable[str]) -> str:
    """Return a next step that names the known words closest to `word`."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Choose from {', '.join(names)}." if names else "Remove it."


def check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value outside `choices`."""
    if value not in choices:
        raise InputError(
            f"{what} must be one of {', '.join(choices)}. Got {value!r}. "
            f"{near(str(value), choices)}"
        )


def check_range(what: str, value: int, low: int, high: int | None = None) -> None:
    """Refuse an integer outside [low, high]."""
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise InputError(f"{what} must be {limit}. Got {value}. Change it to a value in range.")


def check_number(
    what: str, value: float, low: float, high: float = math.inf, *, below: bool = False
) -> None:
    """Refuse a number outside [low, high], or outside [low, high) if it must stay `below`."""
    if not low <= value <= high or (below and value == high) or math.isinf(value):
        limit = (
            f"at least {low}" if high == math.inf else f"in [{low}, {high}{')' if below else ']'}"
        )
        raise InputError(f"{what} must be {limit}. Got {value}. Change it to a value in range.")


def check_params(owner: str, cls: type, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return `params` for the dataclass `cls` after refusing unknown names and wrong types.

    Args:
        owner: What users call `cls`; begins every message.
        cls: A dataclass whose fields are bool, int, float, str or a Literal of strings.
        params: Values by field name, as read from TOML.

    Raises:
        InputError: Naming the parameter and the nearest valid ones.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    checked: dict[str, Any] = {}
    for name, value in params.items():
        if name not in known:
            raise InputError(
                f"{owner}.{name} must be a parameter of {owner}. Got an unknown name. "
                f"{near(name, known) if known else f'{owner} has no parameters; remove it.'}"
            )
        checked[name] = _typed(f"{owner}.{name}", value, hints[name])
    return checked


def _typed(what: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        check_choice(what, value, typing.get_args(hint))
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        return None if value is None else _typed(what, value, members[0])
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise InputError(
            f"{what} must be of type {hint.__name__}. Got {value!r}. Write it as {hint.__name__}."
        )
    return value
