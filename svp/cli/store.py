"""`svp store`: what is in a feature store, and whether it is intact."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from svp.cli.options import JsonOption, ResultFileOption
from svp.cli.output import emit, table

StoreArgument = Annotated[str, typer.Argument(help="The store's folder or URL.")]

store_app = typer.Typer(
    help="Keep embeddings: list, verify, copy, export, tidy.\n\nExample:\n\n  svp store ls store",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@store_app.command("ls")
def ls(
    store: StoreArgument, as_json: JsonOption = False, result_file: ResultFileOption = None
) -> None:
    """List the tables: encoder, view, rows, dimension.

    Example:

      svp store ls store
    """
    from feature_store import open_store

    opened = open_store(store)
    tables = []
    for encoder_id in opened.encoders():
        identity = opened.encoder(encoder_id)
        for view in opened.views(encoder_id):
            held = opened.table(encoder_id, view)
            tables.append(
                {
                    "encoder": encoder_id,
                    "architecture": _short(identity.get("architecture")),
                    "view": view,
                    "rows": held.rows,
                    "dim": held.dim,
                    "dtype": str(held.dtype),
                    "segments": len(held.segments()),
                    "failed": len(held.failures()),
                }
            )
    rows = [[str(value) for value in one.values()] for one in tables]
    header = ["encoder", "architecture", "view", "rows", "dim", "dtype", "segments", "failed"]
    pools = opened.pools()
    emit(
        "svp.store.ls/1",
        {"tables": tables, "pools": pools},
        f"{table(header, rows)}\n{len(pools):,} pools.",
        as_json=as_json,
        result_file=result_file,
    )


def _short(architecture: Any) -> str:
    if not isinstance(architecture, Mapping):
        return str(architecture or "")
    return " ".join(str(architecture[key]) for key in ("family", "model") if key in architecture)


@store_app.command("show")
def show(
    store: StoreArgument,
    encoder: Annotated[str, typer.Argument(help="Encoder id, as `svp store ls` lists it.")],
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Print everything that identifies an encoder, and what failed under it.

    Example:

      svp store show store 0123456789abcdef
    """
    import json

    from feature_store import open_store

    opened = open_store(store)
    record = opened.encoder_record(encoder)
    failures = [
        {"view": view, "digest": digest.hex(), "kind": failure.kind, "reason": failure.reason}
        for view in opened.views(encoder)
        for digest, failure in opened.table(encoder, view).failures().items()
    ]
    result = {**record, "failures": failures}
    emit(
        "svp.store.show/1",
        result,
        json.dumps(result, indent=2, sort_keys=True, default=str),
        as_json=as_json,
        result_file=result_file,
    )


@store_app.command("verify")
def verify(
    store: StoreArgument, as_json: JsonOption = False, result_file: ResultFileOption = None
) -> None:
    """Read every byte and check it; exit 4 and a list when anything is wrong.

    Example:

      svp store verify store
    """
    from feature_store import open_store

    opened = open_store(store)
    problems, checked = [], 0
    for encoder_id in opened.encoders():
        problems += opened.verify_records(encoder_id)
        for view in opened.views(encoder_id):
            held = opened.table(encoder_id, view)
            problems += held.verify()
            checked += len(held.segments()) if not problems else 0
    lines = [f"{one.segment} {one.object}: {one.what}".lstrip() for one in problems]
    emit(
        "svp.store.verify/1",
        {"problems": problems},
        "\n".join(lines) if lines else f"Every byte is as it was written. Segments: {checked:,}.",
        as_json=as_json,
        result_file=result_file,
    )
    if problems:
        raise typer.Exit(4)
