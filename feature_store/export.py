"""A table, or a pool's part of it, as one plain Zarr array, Parquet file or npy file.

Rows are read, checked and written a few megabytes at a time; the result gets its name in one step
when it is complete, so whoever finds it finds all of it.

Shapes: N = exported rows, B = rows at once, d = dim.
"""

import contextlib
import csv
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import crc32c
import numpy as np
from numpy.typing import NDArray

from feature_store import atomic, layout
from feature_store.errors import MissingRowsError
from feature_store.index import DigestIndex
from feature_store.layout import CHECKSUM_BYTES
from feature_store.pool import Pool
from feature_store.storage import LocalStorage
from feature_store.table import Table

Form = Literal["zarr", "parquet", "npy"]
FORMS: Final = ("zarr", "parquet", "npy")
IDS_NAME: Final = "ids.csv"
ZARR_NAME: Final = "embeddings.zarr"
NPY_NAME: Final = "embeddings.npy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: A folder with the embeddings and ids.csv, or a Parquet file.
        form: zarr, parquet or npy.
        rows: Number of embeddings.
        failed: Items of the pool that were left out because they have none.
        dim: Width of the embeddings.
        dtype: float16 or float32.
    """

    path: Path
    form: Form
    rows: int
    failed: int
    dim: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Embeddings in their order, read a batch at a time."""

    table: Table
    ids: Sequence[str] | None
    digests: NDArray[np.uint8]
    dim: int
    dtype: np.dtype[Any]
    report: Callable[[int, int], object] | None

    @property
    def batch(self) -> int:
        return layout.full_chunk_rows(self.dim * self.dtype.itemsize)

    def batches(self) -> Iterator[tuple[list[str], list[str], NDArray[Any]]]:
        """Yield ids, hexadecimal digests and embeddings (B, d)."""
        for start in range(0, len(self.digests), self.batch):
            part = self.digests[start : start + self.batch]
            x_Bd = self.table.read(part, dtype=self.dtype)
            names = [row.tobytes().hex() for row in part]
            ids = names if self.ids is None else list(self.ids[start : start + self.batch])
            yield ids, names, x_Bd
            if self.report is not None:
                self.report(len(part), len(self.digests))


def export_table(
    table: Table,
    out: str | Path,
    *,
    form: Form,
    pool: Pool | None = None,
    dtype: str | None = None,
    report: Callable[[int, int], object] | None = None,
) -> Exported:
    """Write embeddings for other programs.

    Args:
        table: The table.
        out: A name that does not exist yet: a folder with embeddings.zarr or embeddings.npy and
            ids.csv (columns id, digest; one line per row), or a Parquet file with the columns id,
            digest and embedding.
        form: zarr, parquet or npy.
        pool: Whose items, in which order. Default: all of the table in stored order, named by
            their digests.
        dtype: float16 or float32. Default: as stored.
        report: Told about the rows just written and those of the whole.

    Raises:
        FileExistsError: If `out` exists.
        MissingRowsError: If there is nothing to export, or items of the pool have neither an
            embedding nor a recorded failure.
        CorruptChunkError: If stored bytes are damaged; then nothing is left under `out`.
    """
    out = Path(out).absolute()
    if out.exists():
        raise FileExistsError(f"{out} must not exist. Got something there. Choose another name.")
    chosen = _chosen(table, pool)
    digests = table.digests() if pool is None else pool.digests[chosen]
    stored, dim = table.dtype, table.dim
    if stored is None or dim is None or len(digests) == 0:
        raise MissingRowsError(
            f"The table of encoder {table.encoder_id}, view {table.view} must hold embeddings "
            "to export. Got none. Run `svp embed` first.",
            missing=0 if pool is None else len(pool),
            total=0 if pool is None else len(pool),
        )
    table.resolve(digests)
    rows = _Rows(
        table=table,
        ids=None if pool is None else [pool.ids[i] for i in chosen.tolist()],
        digests=digests,
        dim=dim,
        dtype=stored if dtype is None else np.dtype(dtype),
        report=report,
    )
    with _named_when_complete(out) as temporary:
        {"zarr": _write_zarr, "parquet": _write_parquet, "npy": _write_npy}[form](temporary, rows)
    return Exported(
        path=out,
        form=form,
        rows=len(digests),
        failed=0 if pool is None else len(pool) - len(digests),
        dim=dim,
        dtype=rows.dtype.name,
    )


def _chosen(table: Table, pool: Pool | None) -> NDArray[np.int64]:
    """Return the rows of the pool that did not fail."""
    if pool is None:
        return np.zeros(0, np.int64)
    failures = np.frombuffer(b"".join(table.failures()), np.uint8)
    index = DigestIndex(failures.reshape(-1, layout.DIGEST_BYTES))
    return np.flatnonzero(index.find(pool.digests) < 0)


def _write_zarr(folder: Path, rows: _Rows) -> None:
    folder.mkdir()
    storage = LocalStorage(folder)
    count, dtype = len(rows.digests), rows.dtype.newbyteorder("<")
    metadata = layout.embeddings_metadata(
        count, rows.dim, chunk_rows=rows.batch, dtype=rows.dtype.name
    )
    storage.create(f"{ZARR_NAME}/zarr.json", metadata)

    def write(index: int, x_Bd: NDArray[Any]) -> None:
        padded = np.full((rows.batch, rows.dim), np.nan, dtype)
        padded[: len(x_Bd)] = x_Bd
        payload = padded.view(np.uint8).reshape(-1).data
        checksum = crc32c.crc32c(payload).to_bytes(CHECKSUM_BYTES, "little")
        storage.create(f"{ZARR_NAME}/{layout.chunk_key(index)}", payload, checksum)

    _write_ids(folder, rows, write)


def _write_npy(folder: Path, rows: _Rows) -> None:
    folder.mkdir()
    dtype = rows.dtype.newbyteorder("<")
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(rows.digests), rows.dim),
    }
    with (folder / NPY_NAME).open("xb") as file:
        np.lib.format.write_array_header_1_0(file, header)

        def write(index: int, x_Bd: NDArray[Any]) -> None:
            del index
            file.write(np.ascontiguousarray(x_Bd, dtype).view(np.uint8).reshape(-1).data)

        _write_ids(folder, rows, write)
        _sync(file)


def _write_ids(folder: Path, rows: _Rows, write: Callable[[int, NDArray[Any]], None]) -> None:
    """Pass each batch to `write` and its ids to ids.csv."""
    with (folder / IDS_NAME).open("x", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["id", "digest"])
        for index, (ids, names, x_Bd) in enumerate(rows.batches()):
            write(index, x_Bd)
            lines.writerows(zip(ids, names, strict=True))
        _sync(file)
    atomic.sync_directory(folder)


def _write_parquet(path: Path, rows: _Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.list_(pa.from_numpy_dtype(rows.dtype), rows.dim)
    schema = pa.schema([("id", pa.string()), ("digest", pa.string()), ("embedding", vectors)])
    with (
        path.open("xb") as file,
        # Neither codec nor dictionary: embeddings shrink by a few per cent at several times the
        # time, see layout.
        pq.ParquetWriter(
            file, schema, compression="none", use_dictionary=False, write_page_checksum=True
        ) as writer,
    ):
        for ids, names, x_Bd in rows.batches():
            flat = pa.array(x_Bd.reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, rows.dim)
            writer.write_table(pa.table([pa.array(ids), pa.array(names), column], schema=schema))
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _named_when_complete(out: Path) -> Iterator[Path]:
    """Yield a name beside `out` for a file or folder that becomes `out` if all goes well."""
    atomic.make_directory(out.parent)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}{atomic.TEMPORARY_SUFFIX}"
    try:
        yield temporary
        if temporary.is_dir():
            temporary.rename(out)  # fails if somebody made it meanwhile and put something there
        else:
            os.link(temporary, out)
        atomic.sync_directory(out.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
