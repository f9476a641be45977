"""Options that mean the same in every command."""

import contextlib
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from svp.errors import InputError

StudyArgument = Annotated[Path, typer.Argument(help="The study's folder, as `svp init` wrote it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def _writable(path: Path | None) -> Path | None:
    # Found out at the start: the result of hours must not meet a path that cannot hold it.
    if path is not None:
        folder = next(above for above in path.absolute().parents if above.exists())
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise InputError(
                f"--result-file must be a file that can be written. Got {path}. Correct the path."
            )
    return path


ResultFileOption = Annotated[
    Path | None,
    typer.Option(
        "--result-file", callback=_writable, help="Write the JSON result to this file too."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="cpu, cuda, cuda:1, … or auto.", envvar="SVP_DEVICE"),
]


DaskOption = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS",
        help="Work on a Dask cluster: local, local:N, tcp://HOST:PORT or a scheduler file.",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=0, help="Images per forward pass; 0 = automatic."),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=0, help="Decoding threads; 0 = one per core.")
]


@contextlib.contextmanager
def dask_workers(dask: str | None, device: str) -> Iterator[dict[str, Any]]:
    """Return the options that name those who embed for this process; none without `--dask`."""
    if dask is None:
        yield {}
        return
    from svp.cluster import connect

    with connect(dask) as executor:
        yield {"executor": executor, "worker_device": device}


_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
          "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # fmt: skip


def _size(text: str | None) -> str | None:
    # Found out at the start, like every option; what is read is used by `parse_memory`.
    parse_memory(text)
    return text


MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        envvar="SVP_MEMORY",
        callback=_size,
        help="Most that embeddings and strategy may hold together, such as 4GiB.",
    ),
]


def parse_memory(text: str | None) -> int | None:
    """Return the bytes that a size such as `4GiB`, `500 MB` or `2.5GiB` names; None: no cap."""
    if text is None or not text.strip():
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise InputError(
            f"--memory must be a number of bytes with a unit. Got {text!r}. Write 4GiB or 500MB."
        )
    return int(float(match[1]) * unit)


def resolve_device(name: str) -> str:
    """Return the device to use for `name`; `auto` prefers a GPU."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()  # builds differ in what they raise, so it is tried
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device must be a device that torch sees here. Got {name!r}. Use --device cpu."
        ) from error
    return name


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value for a key of study.toml, such as proxy.kind=mlp. May be repeated.",
    ),
]


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """Return `--set` options as values by dotted key; values are TOML, bare words are text."""
    parsed: dict[str, Any] = {}
    for setting in settings or []:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip():
            raise InputError(f"--set must be KEY=VALUE. Got {setting!r}. Write proxy.kind=mlp.")
        try:
            parsed[key.strip()] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            parsed[key.strip()] = value
    return parsed
