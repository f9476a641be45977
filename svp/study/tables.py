"""TOML tables to frozen dataclasses: unknown keys and wrong types are refused by dotted path.

The dataclass is the schema: its type hints say what a key may hold, its defaults what may be left
out, its `__post_init__` which ranges are allowed. A field whose metadata has `rest=True` collects
the keys that no other field names; the stage that owns them checks them later.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from svp.errors import InputError

T = TypeVar("T")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def near_names(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names what the user may have meant, or everything there is."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known: {', '.join(choices)}." if choices else "Nothing is known here."


def convert_table(cls: type[Any], table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values of `table` as the fields of the dataclass `cls` want them.

    Raises:
        InputError: A key is unknown or of the wrong type; the message names its path.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    rest = next((name for name, field in fields.items() if field.metadata.get("rest")), None)
    named = {name for name in fields if name != rest}
    values: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{path}.{key}" if path else key
        if key in named:
            values[key] = _convert(hints[key], value, where)
        elif rest is not None:
            others[key] = value
        else:
            raise InputError(f"{where} is not a setting of svp. {near_names(key, named)}")
    return values if rest is None else {**values, rest: others}


def from_table(cls: type[T], table: Mapping[str, Any], path: str = "") -> T:
    """Build the dataclass `cls` from a table.

    Args:
        cls: A dataclass; nested dataclasses become nested tables.
        table: Keys and values as TOML or JSON gives them.
        path: Dotted path of the table, for messages.

    Raises:
        InputError: A key is unknown, missing, of the wrong type or out of range; the message
            names its path.
    """
    values = convert_table(cls, table, path)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if field.init and not optional and field.name not in values:
            where = f"{path}.{field.name}" if path else field.name
            raise InputError(f"{where} must be given. Got nothing. Add it.")
    try:
        return cls(**values)
    except InputError as error:
        # Owners check ranges without knowing which table they were read from.
        if not path or str(error).startswith(path):
            raise
        raise InputError(f"{path}: {error}") from error


def to_table(config: Any) -> dict[str, Any]:
    """Return the table that `from_table` reads back to an equal dataclass; None is left out."""
    table: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if not field.init:
            continue
        value = getattr(config, field.name)
        if value is None:
            continue
        if field.metadata.get("rest"):
            table.update({key: _plain(entry) for key, entry in value.items()})
        else:
            table[field.name] = _plain(value)
    return table


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _refuse(expected: str, value: Any, path: str) -> InputError:
    return InputError(f"{path} must be {expected}. Got {value!r}. Correct it.")


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Return `value` as `hint` asks; types are never coerced, except whole numbers to floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is Literal:
        # Compared with its type: 1, 1.0 and true are equal to Python.
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
        raise _refuse(f"one of {', '.join(map(str, arguments))}", value, path)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _refuse("a table", value, path)
        return from_table(typing.cast("type[Any]", hint), value, path)
    if origin in (tuple, list):
        return _convert_sequence(arguments, value, path)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _refuse("a table", value, path)
        return {k: _convert(arguments[1], v, f"{path}.{k}") for k, v in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    failures: list[InputError] = []
    for choice in arguments:
        if choice is type(None):
            continue
        try:
            return _convert(choice, value, path)
        except InputError as error:
            failures.append(error)
    raise failures[0]


def _convert_sequence(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _refuse("a list", value, path)
    if len(arguments) == 1 or arguments[1:] == (Ellipsis,):
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if len(value) != len(arguments):
        raise _refuse(f"a list of {len(arguments)}", value, path)
    return tuple(
        _convert(hint, v, f"{path}[{i}]")
        for i, (hint, v) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in _WORDS:
        # A bool is an int to Python, never to a person who wrote `true` for a count.
        if type(value) is not hint:
            raise _refuse(_WORDS[hint], value, path)
        return value
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _refuse(f"a {getattr(hint, '__name__', hint)}", value, path)
