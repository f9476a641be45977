"""The upkeep commands of `svp store`: copy, gc, export, compact, import."""

import contextlib
import enum
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from svp.cli.options import JsonOption, ResultFileOption
from svp.cli.output import emit, table
from svp.cli.store import store_app
from svp.errors import InputError
from svp.progress import automatic

__all__ = ["store_app"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


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


@store_app.command("gc")
def gc(
    store: Annotated[str, typer.Argument(help="The store.")],
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete it; without this it is only listed.")
    ] = False,
    older_than: Annotated[
        str,
        typer.Option(
            help="Least age, such as 90m, 24h or 7d: longer than any job pauses or reads."
        ),
    ] = "24h",
    keep_study: Annotated[
        list[Path] | None,
        typer.Option(help="Touch no segment of the encoders this study used. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """List (or delete) what is left over: unfinished and superseded segments, temporary files.

    What can be read stays: a published segment goes only when others hold all its rows.

    Example:

      svp store gc store --older-than 48h --delete
    """
    from feature_store import open_store
    from feature_store.garbage import delete_garbage, find_garbage
    from svp.study.references import used_encoders

    age_s = _seconds(older_than)
    kept = {encoder for study in keep_study or () for encoder in used_encoders(study)}
    opened = open_store(store)
    found = find_garbage(opened, older_than_s=age_s, keep=kept)
    if delete:
        found = delete_garbage(opened, found, older_than_s=age_s)
    size = sum(item.bytes for item in found)
    rows = [[item.kind, item.name, f"{item.bytes:,}", f"{item.age_s / 3600:.1f}"] for item in found]
    lines = [table(["kind", "what", "bytes", "hours"], rows)] if found else []
    if delete:
        lines.append(f"Deleted {len(found):,} things, {size:,} bytes.")
    else:
        hint = " Add --delete to delete them." if found else ""
        lines.append(f"{len(found):,} things, {size:,} bytes, may be deleted.{hint}")
    emit(
        "svp.store.gc/1",
        {"deleted": delete, "bytes": size, "garbage": found, "kept_encoders": sorted(kept)},
        "\n".join(lines),
        as_json=as_json,
        result_file=result_file,
    )


def _seconds(age: str) -> float:
    match = _AGE.fullmatch(age.strip())
    if match is None:
        raise InputError(f"--older-than must be a number and s, m, h or d. Got {age!r}. Write 24h.")
    return float(match[1]) * _SECONDS[match[2]]


class ExportForm(enum.StrEnum):
    """What `svp store export` writes."""

    zarr = "zarr"
    parquet = "parquet"
    npy = "npy"


class Precision(enum.StrEnum):
    """Numbers that `svp store export` and `import` write."""

    float16 = "float16"
    float32 = "float32"


@store_app.command("export")
def export(
    store: Annotated[str, typer.Argument(help="The store.")],
    encoder: Annotated[str, typer.Argument(help="Encoder id, as `svp store ls` lists it.")],
    out: Annotated[Path, typer.Argument(help="A new folder, or a new file for Parquet.")],
    form: Annotated[ExportForm, typer.Option("--format", help="What to write.")],
    pool: Annotated[
        str | None, typer.Option(help="Only this pool's items, in its order and by its ids.")
    ] = None,
    view: Annotated[str, typer.Option(help="View of the table.")] = "eval",
    dtype: Annotated[Precision | None, typer.Option(help="Default: as stored.")] = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Write embeddings for other programs: one Zarr array, one Parquet file, or npy and ids.csv.

    Example:

      svp store export store 0123456789abcdef vectors.parquet --format parquet
    """
    from feature_store import open_store
    from feature_store.export import export_table

    if out.exists():
        raise InputError(f"OUT must not exist. Got {out}. Choose another name or remove it.")
    opened = open_store(store)
    with _reported("Exporting", "rows") as report:
        done = export_table(
            opened.table(encoder, view),
            out,
            form=form.value,
            pool=None if pool is None else opened.pool(pool),
            dtype=None if dtype is None else dtype.value,
            report=report,
        )
    left_out = f"; {done.failed:,} failed items have none" if done.failed else ""
    emit(
        "svp.store.export/1",
        {"exported": done},
        f"Wrote {done.rows:,} embeddings of width {done.dim} to {done.path}{left_out}.",
        as_json=as_json,
        result_file=result_file,
    )


@store_app.command("compact")
def compact(
    store: Annotated[str, typer.Argument(help="The store.")],
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", help="Only this encoder's tables. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Merge small segments into large ones, bit for bit; `svp store gc` removes the old ones.

    Example:

      svp store compact store
    """
    from feature_store import open_store
    from feature_store.compaction import compact_table

    opened = open_store(store)
    for encoder_id in encoder or ():
        opened.encoder(encoder_id)  # a name that nobody embedded under is a mistake
    done: list[dict[str, Any]] = []
    for encoder_id in encoder or opened.encoders():
        for view in opened.views(encoder_id):
            held = opened.table(encoder_id, view)
            with _reported(f"Merging {encoder_id} {view}") as report:
                merged = compact_table(opened.storage, held, report=report)
            done.append({"encoder": encoder_id, "view": view, "compacted": merged})
    sources = sum(len(one["compacted"].sources) for one in done)
    segments = sum(len(one["compacted"].merged) for one in done)
    hint = " `svp store gc` lists the old ones after a day." if sources else ""
    emit(
        "svp.store.compact/1",
        {"tables": done},
        f"Merged {sources:,} segments into {segments:,}.{hint}",
        as_json=as_json,
        result_file=result_file,
    )


@store_app.command("import")
def import_(
    store: Annotated[str, typer.Argument(help="The store; made if there is none.")],
    vectors: Annotated[
        list[Path],
        typer.Option(
            help="A .npy file, or a .pt file of LabelBench's cache; one row per item. May be "
            "repeated with --ids."
        ),
    ],
    ids: Annotated[
        list[Path],
        typer.Option(
            help="A CSV file, one line per row: column digest, path or id. One for each --vectors."
        ),
    ],
    encoder_json: Annotated[
        Path, typer.Option(help="A JSON object: what you know of the vectors' origin.")
    ],
    source: Annotated[
        str | None, typer.Option(help="Folder, manifest or archive of the items named in --ids.")
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option(help="What to store. Default: as the files, if they fit.")
    ] = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Take in vectors you have already, as a table that says they were imported.

    Example:

      svp store import store --vectors x.npy --ids ids.csv --encoder-json x.json --source photos
    """
    from feature_store import open_store
    from feature_store.vectors import VectorFile, import_files, open_vectors
    from svp.data import DigestCache
    from svp.data.feature_cache import is_feature_cache, read_feature_cache
    from svp.data.item_digests import read_item_digests

    description = _described(encoder_json)
    if len(vectors) != len(ids):
        raise InputError(
            f"--vectors and --ids must be given equally often. Got {len(vectors)} and {len(ids)}. "
            "Name one list of items for each file."
        )
    files, pools = [], []
    for path, listing in zip(vectors, ids, strict=True):
        if not path.is_file():
            raise InputError(f"--vectors must be a file. Got {path}. Check the path.")
        digests, pool = read_item_digests(
            listing, source=source, cache=DigestCache.default(), progress=automatic()
        )
        x_Nd = read_feature_cache(path) if is_feature_cache(path) else open_vectors(path)
        files.append(VectorFile(path=path, x_Nd=x_Nd, digests=digests))
        pools += [] if pool is None else [pool]
    opened = open_store(store, create=True)
    with _reported("Importing", "rows") as report:
        done = import_files(
            opened,
            files,
            description,
            dtype=None if dtype is None else dtype.value,
            report=report,
        )
    stored = [opened.put_pool(pool) for pool in pools]
    emit(
        "svp.store.import/1",
        {"imported": done, "pool": stored[0] if stored else None, "pools": stored},
        f"Imported {done.written:,} of {done.rows:,} vectors of width {done.dim} as encoder "
        f"{done.encoder_id}.",
        as_json=as_json,
        result_file=result_file,
    )


def _described(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--encoder-json must be a JSON file. Got {path}: {error}. Check the path."
        ) from error
    if not isinstance(description, dict):
        raise InputError(
            f"--encoder-json must hold an object. Got {type(description).__name__} in {path}. "
            'Write {"model": "...", "by": "..."}.'
        )
    return description
