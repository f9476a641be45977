"""Rows of an Arrow or Parquet file at random, without the file in memory.

An Arrow file is mapped: the system reads the pages that are asked for. Parquet is compressed by
row groups, so the groups read last are kept, up to a limit of bytes.

Shapes: N = rows of the file.
"""

import bisect
import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from svp.data.failure import MAX_BYTES, DecodeError
from svp.data.image_columns import Features, ImageColumns, image_columns
from svp.data.recent import Recent
from svp.data.remote_file import RemoteFile, Walk
from svp.errors import InputError

_KEPT_BYTES: Final = 256 * 2**20
_MOST_GROUP_BYTES: Final = 4 * 2**30
_BATCH_ROWS: Final = 8192
_ARROW_FILE_MARK: Final = b"ARROW1"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What a row says beside its image.

    Attributes:
        path: The image's own path, where it says one.
        label: Class name.
        group: As the table says it.
    """

    path: str | None
    label: str | None
    group: str | None


class TableFile(Protocol):
    """Rows of one file."""

    columns: ImageColumns

    def rows(self) -> Iterator[Row]:
        """Yield every row without its image."""

    def image(self, row: int) -> bytes:
        """Return the encoded image of a row; see `Source.read`."""


class ArrowFile:
    """An Arrow file or stream, mapped into memory.

    Args:
        path: The file.
        features: Of the data set it belongs to.

    Raises:
        InputError: If it is damaged or has no image column.
    """

    def __init__(self, path: Path, features: Features | None = None) -> None:
        import pyarrow

        try:
            with pyarrow.memory_map(str(path)) as mapped:
                mark = mapped.read(len(_ARROW_FILE_MARK))
                mapped.seek(0)
                opened = (
                    pyarrow.ipc.open_file(mapped)
                    if mark == _ARROW_FILE_MARK
                    else pyarrow.ipc.open_stream(mapped)
                )
                table = opened.read_all()
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable_table(path, error) from error
        self.columns = image_columns(table.schema, features, str(path))
        self._table = table

    def rows(self) -> Iterator[Row]:
        """Yield every row without its image."""
        for batch in self._table.to_batches(max_chunksize=_BATCH_ROWS):
            yield from _rows(batch, self.columns)

    def image(self, row: int) -> bytes:
        """Return the encoded image of a row."""
        if not 0 <= row < self._table.num_rows:
            raise _no_row(row)
        return _image_bytes(self._table.column(self.columns.image)[row])


class ParquetFile:
    """A Parquet file, on a disk or in a bucket, of which only the bytes asked for are read.

    Args:
        path: The file.
        features: Of the data set it belongs to.

    Raises:
        InputError: If it is damaged, has no image column, or row groups too large to hold.
    """

    def __init__(self, path: Path | RemoteFile, features: Features | None = None) -> None:
        import pyarrow
        import pyarrow.parquet

        self._file = path
        name = path.path if isinstance(path, RemoteFile) else str(path)
        try:
            with pyarrow.parquet.ParquetFile(self._opened()) as opened:
                schema, self._metadata = opened.schema_arrow, opened.metadata
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable_table(name, error) from error
        self.columns = image_columns(schema, features, name)
        self._starts = [0]
        for group in range(self._metadata.num_row_groups):
            described = self._metadata.row_group(group)
            if described.total_byte_size > _MOST_GROUP_BYTES:
                raise InputError(
                    f"A row group of images must have at most {_MOST_GROUP_BYTES:,} bytes. Got "
                    f"{described.total_byte_size:,} in {name}. Write it with a smaller "
                    "row_group_size."
                )
            self._starts.append(self._starts[-1] + described.num_rows)
        self._groups: Recent[int, Any] = Recent(
            self._read_group, _KEPT_BYTES, lambda column: int(column.nbytes)
        )

    def _opened(self) -> "Path | Walk":
        # Each reader of a remote file has a position of its own.
        return self._file.walk() if isinstance(self._file, RemoteFile) else self._file

    def rows(self) -> Iterator[Row]:
        """Yield every row without its image; the images' bytes are not read."""
        import pyarrow.parquet

        named = [f"{self.columns.image}.path"] if self.columns.has_path else []
        named += [name for name in (self.columns.label, self.columns.group) if name is not None]
        if not named:
            yield from [Row(None, None, None)] * self._starts[-1]
            return
        with pyarrow.parquet.ParquetFile(self._opened(), metadata=self._metadata) as opened:
            for batch in opened.iter_batches(_BATCH_ROWS, columns=named):
                yield from _rows(batch, self.columns)

    def image(self, row: int) -> bytes:
        """Return the encoded image of a row."""
        if not 0 <= row < self._starts[-1]:
            raise _no_row(row)
        group = bisect.bisect_right(self._starts, row) - 1
        return _image_bytes(self._groups.get(group)[row - self._starts[group]])

    def _read_group(self, group: int) -> Any:
        import pyarrow
        import pyarrow.parquet

        name = self.columns.image
        try:
            with pyarrow.parquet.ParquetFile(
                self._opened(), metadata=self._metadata, page_checksum_verification=True
            ) as opened:
                return opened.read_row_group(group, columns=[name]).column(name)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's; Arrow's own, such as a wrong checksum, have no number
            raise DecodeError("corrupt", f"row group {group} cannot be read: {error}") from error


def unreadable_table(path: Path | str, error: BaseException) -> InputError:
    """Return the error of a file that is no table."""
    return InputError(
        f"A table of images must be readable Arrow or Parquet. Got {error} for {path}. "
        "Fetch or save it again."
    )


def _rows(batch: Any, columns: ImageColumns) -> Iterator[Row]:
    count = batch.num_rows
    nothing: list[Any] = [None] * count
    names = batch.schema.names
    paths = nothing
    if columns.has_path and columns.image in names:
        image = batch.column(columns.image)
        # By its own validity and offset; only the names are made into objects, not the bytes.
        paths = image.field(image.type.get_field_index("path")).to_pylist()
    labels = batch.column(columns.label).to_pylist() if columns.label in names else nothing
    groups = batch.column(columns.group).to_pylist() if columns.group in names else nothing
    for path, label, group in zip(paths, labels, groups, strict=True):
        yield Row(path, columns.label_text(label), None if group is None else str(group))


def _image_bytes(cell: Any) -> bytes:
    value = cell
    if not hasattr(cell, "as_buffer"):  # a struct; its path is not followed
        value = cell["bytes"] if cell.is_valid else None
    if value is None or not value.is_valid:
        raise FileNotFoundError(
            errno.ENOENT, "its row holds no bytes, at most a path; save the data set with its bytes"
        )
    data = value.as_buffer()
    if data.size > MAX_BYTES:
        raise DecodeError("too_large", f"{data.size:,} bytes, more than the limit of {MAX_BYTES:,}")
    return bytes(data)


def _no_row(row: int) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"no row {row} in the table")
