"""Strategies of other packages, found by their entry points.

A package offers one with, in its `pyproject.toml`,

    [project.entry-points."svp.strategies"]
    farthest = "my_package.farthest:Farthest"

Nothing is imported until the strategy is asked for by that name, or all are described.
"""

import dataclasses
import importlib.metadata
from typing import Any, Final

from svp.errors import InputError

GROUP: Final = "svp.strategies"
_ATTRIBUTES: Final = (
    "name",
    "family",
    "summary",
    "needs",
    "stochastic",
    "uses_oracle",
    "exactness",
    "source",
    "scaling",
    "instead",
    "cost",
    "select",
)


def plugin_names() -> tuple[str, ...]:
    """Return the names of installed plug-ins, sorted; imports none of them."""
    return tuple(sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)}))


def load_plugin(name: str) -> type[Any]:
    """Return the class of a plug-in, checked for everything a strategy declares.

    Raises:
        InputError: If it cannot be imported or is no strategy; the message names the package.
    """
    points = sorted(
        importlib.metadata.entry_points(group=GROUP, name=name), key=lambda point: point.value
    )
    owner = points[0].dist.name if points[0].dist is not None else "an installed package"
    if len(points) > 1:
        values = ", ".join(point.value for point in points)
        raise InputError(
            f"One package only must offer the strategy {name}. Got {values}. Uninstall one."
        )
    try:
        cls = points[0].load()
    # Whatever a foreign module raises when it is imported is an answer about that package.
    except Exception as error:
        raise InputError(
            f"The strategy {name} of {owner} must be importable. Got {type(error).__name__}: "
            f"{error}. Update or uninstall that package."
        ) from error
    missing = [one for one in _ATTRIBUTES if not hasattr(cls, one)]
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls) or missing:
        what = f"without {', '.join(missing)}" if missing else "another object"
        raise InputError(
            f"The strategy {name} of {owner} must be a frozen dataclass with all that svp's own "
            f"declare. Got {what}. Update or uninstall that package."
        )
    if cls.name != name:  # type: ignore[attr-defined]
        raise InputError(
            f"The strategy {name} of {owner} must have the name of its entry point. "
            f"Got {cls.name!r}. Update or uninstall that package."  # type: ignore[attr-defined]
        )
    return cls
