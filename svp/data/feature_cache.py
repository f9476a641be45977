"""Features that LabelBench cached: `{dataset}_{model}_{seed}_features_{train|val|test}.pt`.

Layout after its feature_extractor.py (Zhang et al., 2023): `torch.save` of one float64 numpy array
with pickle protocol 4, a row per item in the order of the dataset. torch's own safe loader knows
only protocol 2, so the few instructions that describe an array are read here, and nothing is ever
called: a file with anything else is refused.
"""

import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from svp.errors import InputError

SUFFIXES: Final = (".pt", ".pth")

_REBUILD: Final = {
    f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")
}  # numpy 1 and 2
_KINDS: Final = ("f2", "f4", "f8")


class _NoArrayError(Exception):
    """The pickle is not of one array."""


def is_feature_cache(path: str | Path) -> bool:
    """Return whether a file's name says that torch saved it."""
    return Path(path).suffix in SUFFIXES


def read_feature_cache(path: str | Path) -> NDArray[Any]:
    """Return the (N, d) array of a file that torch saved: a numpy array or a tensor.

    A tensor stays mapped in memory; a numpy array is part of the pickle and is read whole.

    Raises:
        InputError: If the file cannot be read or holds anything else, such as a pair of views.
    """
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(
                next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            ) as file,
        ):
            x_Nd = _array(pickletools.genops(file))
    except _NoArrayError:
        x_Nd = _tensor(path)
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile) as error:
        raise _refused(path, str(error) or "no pickle") from error
    if x_Nd.ndim != 2 or x_Nd.dtype.kind != "f":
        raise _refused(path, f"{x_Nd.shape} {x_Nd.dtype}")
    return x_Nd


def _tensor(path: str | Path) -> NDArray[Any]:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # torch raises RuntimeError, UnpicklingError, EOFError, ... by what is wrong with the file.
    except Exception as error:
        raise _refused(path, "something else") from error
    if not isinstance(found, torch.Tensor):
        raise _refused(path, type(found).__name__)
    return found.detach().float().numpy() if found.dtype == torch.bfloat16 else found.numpy()


def _refused(path: str | Path, got: str) -> InputError:
    return InputError(
        f"Cached features must be one (N, d) array of floating point that torch saved. Got {got} "
        f"in {path}. Save one view alone, as torch.save(x, path) or as .npy with np.save."
    )


def _array(operations: Any) -> NDArray[Any]:
    """Read the instructions of a pickle that describe one numpy array.

    Calls are written down as ("call", name, arguments, state) and compared with what numpy writes.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def mark() -> tuple[Any, ...]:
        start = marks.pop()
        items = tuple(stack[start:])
        del stack[start:]
        return items

    def pop(count: int) -> tuple[Any, ...]:
        if len(stack) < count:
            raise _NoArrayError
        items = tuple(stack[-count:])
        del stack[-count:]
        return items

    def build() -> None:
        call, state = pop(2)
        if not (isinstance(call, tuple) and call[:1] == ("call",)):
            raise _NoArrayError
        stack.append((*call[:3], state))

    done: dict[str, Callable[[Any], object]] = {
        "PROTO": lambda _: None,
        "FRAME": lambda _: None,
        "MARK": lambda _: marks.append(len(stack)),
        "TUPLE": lambda _: stack.append(mark()),
        "EMPTY_TUPLE": lambda _: stack.append(()),
        **{f"TUPLE{n}": lambda _, n=n: stack.append(pop(n)) for n in (1, 2, 3)},  # type: ignore[misc]
        "NONE": lambda _: stack.append(None),
        "NEWTRUE": lambda _: stack.append(True),
        "NEWFALSE": lambda _: stack.append(False),
        "GLOBAL": lambda name: stack.append(("name", name)),
        "STACK_GLOBAL": lambda _: stack.append(("name", " ".join(map(str, pop(2))))),
        "REDUCE": lambda _: stack.append(("call", *pop(2), None)),
        "BUILD": lambda _: build(),
        "MEMOIZE": lambda _: memo.update({len(memo): stack[-1]}),
        **{name: lambda at: memo.update({at: stack[-1]}) for name in ("BINPUT", "LONG_BINPUT")},
        **{name: lambda at: stack.append(memo[at]) for name in ("BINGET", "LONG_BINGET")},
    }
    plain = {
        *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
    for operation, argument, _ in operations:
        if operation.name == "STOP":
            break
        if operation.name in plain:
            stack.append(argument)
        elif operation.name in done:
            try:
                done[operation.name](argument)
            except (IndexError, KeyError) as error:
                raise _NoArrayError from error
        else:
            raise _NoArrayError
    return _rebuilt(stack)


def _rebuilt(stack: list[Any]) -> NDArray[Any]:
    match stack:
        case [("call", ("name", rebuild), _, (_, tuple() as shape, dtype, bool() as fortran, raw))]:
            if rebuild not in _REBUILD:
                raise _NoArrayError
        case _:
            raise _NoArrayError
    match dtype:
        case ("call", ("name", "numpy dtype"), (str() as kind, *_), (_, str() as order, *_)):
            if kind not in _KINDS or order not in "<>=":
                raise _NoArrayError
        case _:
            raise _NoArrayError
    match raw:
        case ("call", ("name", "_codecs encode"), (str() as text, "latin1"), None):
            raw = text.encode("latin1")  # how protocol 2 writes bytes
    if not isinstance(raw, bytes):
        raise _NoArrayError
    flat = np.frombuffer(raw, np.dtype(f"{order}{kind}"))
    return flat.reshape(shape, order="F" if fortran else "C")
