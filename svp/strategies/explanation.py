"""What the docstring of a strategy says, taken apart: the text, and each parameter's meaning."""

import dataclasses
import inspect
import re
from typing import Any

_SECTION = "Attributes:\n"
_ENTRY = re.compile(r"^    (\w+): ", flags=re.MULTILINE)


def explain(cls: type[Any]) -> tuple[str, dict[str, str]]:
    """Return the docstring before `Attributes:`, and the meaning of every parameter by name.

    A parameter that the docstring leaves out has an empty meaning.
    """
    text = inspect.cleandoc(cls.__doc__ or "")
    before, _, section = text.partition(_SECTION)
    parts = _ENTRY.split(section)
    found = dict(zip(parts[1::2], (" ".join(one.split()) for one in parts[2::2]), strict=True))
    return before.strip(), {
        field.name: found.get(field.name, "") for field in dataclasses.fields(cls)
    }
