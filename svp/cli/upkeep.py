"""The upkeep commands of `svp store`: copy."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from svp.cli.options import JsonOption, ResultFileOption
from svp.cli.output import emit
from svp.cli.store import store_app
from svp.progress import automatic


@contextlib.contextmanager
def _reported(label: str, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """Open a callback for the store's functions: a task begins with its first call."""
    with contextlib.ExitStack() as stack:
        task: Any = None

        def report(amount: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = stack.enter_context(automatic().task(label, total, unit))
            task.advance(amount)

        yield report


@store_app.command("sync", help="The same as `copy`.\n\nExample:\n\n  svp store sync store backup")
@store_app.command("copy")
def copy(
    source: Annotated[str, typer.Argument(help="The store to copy from.")],
    target: Annotated[str, typer.Argument(help="The store to copy to; made if there is none.")],
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", help="Copy this encoder's tables only. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Copy what the other store lacks, checking every byte; run again to continue or update.

    Example:

      svp store copy store backup
    """
    from feature_store import open_store
    from feature_store.transfer import copy_store

    opened = open_store(source)
    with _reported("Copying") as report:
        done = copy_store(
            opened, open_store(target, create=True), encoders=encoder or None, report=report
        )
    emit(
        "svp.store.copy/1",
        {"source": source, "target": target, "copied": done},
        f"Copied {done.segments:,} segments ({done.bytes:,} bytes) of {done.encoders:,} encoders; "
        f"{done.present:,} were there before.",
        as_json=as_json,
        result_file=result_file,
    )
