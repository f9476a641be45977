"""From what the user writes to a source."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from svp.data.bucket import Buckets, is_url
from svp.data.failure import DecodeError
from svp.data.folder import FolderSource, walk_images
from svp.data.item_name import ARCHIVE_SUFFIXES, is_hidden, is_image
from svp.data.joined import JoinedSource
from svp.data.manifest import ManifestSource
from svp.data.manifest_table import MANIFEST_SUFFIXES, is_parquet, read_manifest
from svp.data.pattern import is_pattern, matching_files, pattern_root
from svp.data.remote import BucketFolderSource, RemoteManifestSource
from svp.data.scanner import SingleSource
from svp.data.source import Source
from svp.data.table_source import is_saved_dataset, parquet_files, saved_dataset
from svp.data.tar_archive import TarSource
from svp.data.webdataset import SHARD_SUFFIXES, WebDatasetSource, is_webdataset
from svp.data.zip_archive import ZipSource
from svp.errors import InputError

_MOST_MANIFEST_BYTES: Final = 4 * 2**30


def open_source(
    specs: str | Path | Sequence[str | Path], *, root: str | Path | None = None
) -> Source:
    """Open the images that `specs` name.

    Args:
        specs: An image folder; a .csv or .parquet manifest; a .zip, .tar, .tar.gz or .tgz archive;
            WebDataset shards or Parquet files with images, as one file, a folder or a pattern; a
            folder that `datasets` saved; a manifest or prefix in a bucket. Or a sequence of these,
            whose ids must be disjoint.
        root: What the paths of manifests are relative to; default each manifest's folder.

    Raises:
        InputError: If something is missing, holds no image, or is none of the above.
    """
    listed = [specs] if isinstance(specs, str | Path) else list(specs)
    if not listed:
        raise InputError("A source must be given. Got none. Name a folder, manifest or archive.")
    sources = [_open_one(spec, root) for spec in listed]
    manifests = (ManifestSource, RemoteManifestSource)
    if root is not None and not any(isinstance(source, manifests) for source in sources):
        raise InputError(
            f"A root must belong to a manifest. Got {root} and no manifest. Leave the root out."
        )
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def source_exists(spec: str) -> bool:
    """Return whether something is there under this name; URLs are not asked."""
    if is_url(spec) or Path(spec).expanduser().exists():
        return True
    if not is_pattern(spec):
        return False
    matching_files(spec)  # says better what is missing
    return True


def _open_one(spec: str | Path, root: str | Path | None) -> SingleSource:
    if is_url(str(spec)):
        return _open_url(str(spec), root)
    if is_pattern(spec):
        return _open_many(matching_files(spec), pattern_root(spec), str(Path(spec).expanduser()))
    path = Path(spec).expanduser()
    name = path.name.lower()
    if path.is_dir():
        return _open_folder(path)
    if name.endswith(MANIFEST_SUFFIXES):
        return _open_table(path, root)
    if name.endswith(".zip"):
        return ZipSource(path)
    if name.endswith(SHARD_SUFFIXES):
        if path.is_file() and is_webdataset(path):
            return WebDatasetSource([path], path.parent, str(path.resolve()))
        return TarSource(path)
    if not path.exists():
        raise InputError(f"A source must exist. Got {path}. Check the path, or mount the disk.")
    suffixes = ", ".join((*MANIFEST_SUFFIXES, *ARCHIVE_SUFFIXES))
    raise InputError(
        f"A source must be a folder or end in {suffixes}. Got {path}. "
        + ("Give the folder that holds it." if is_image(name) else "Convert it to one of these.")
    )


def _open_url(url: str, root: str | Path | None) -> SingleSource:
    if not url.lower().endswith(MANIFEST_SUFFIXES):
        if url.lower().endswith(ARCHIVE_SUFFIXES):
            raise InputError(
                "An archive must be a local file, because it is read at any place of it. "
                f"Got {url}. Copy it here, or mount the bucket."
            )
        return BucketFolderSource(url)
    try:
        data = Buckets().read(url, _MOST_MANIFEST_BYTES)
    except (OSError, DecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"A manifest must be readable. Got {reason} for {url}. Check the URL."
        ) from error
    columns = read_manifest(io.BytesIO(data), url)
    return RemoteManifestSource(url, columns, _root_url(root, url))


def _root_url(root: str | Path | None, place: str) -> str | None:
    if root is not None and not is_url(str(root)):
        raise InputError(
            f"The root of a manifest of objects must be a URL. Got {root} for {place}. "
            "Write s3://bucket/prefix."
        )
    return None if root is None else str(root)


def _open_folder(path: Path) -> SingleSource:
    if is_saved_dataset(path):
        return saved_dataset(path)
    # The first image ends the search; only a folder without one is walked twice.
    if next(walk_images(path.resolve(), []), None) is None:
        for suffixes in (SHARD_SUFFIXES, (".parquet",)):
            files = sorted(_below(path, suffixes))
            if files:
                return _open_many(files, path, str(path.resolve()))
    return FolderSource(path)


def _below(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for found in path.rglob("*"):
        inner = found.relative_to(path).as_posix()
        if inner.lower().endswith(suffixes) and not is_hidden(inner) and found.is_file():
            yield found


def _open_many(files: Sequence[Path], root: Path, uri: str) -> SingleSource:
    if all(path.name.lower().endswith(SHARD_SUFFIXES) for path in files):
        return WebDatasetSource(files, root, uri)
    if all(is_parquet(path.name) for path in files):
        return parquet_files(files, root, uri)
    other = next(path for path in files if not path.name.lower().endswith(SHARD_SUFFIXES))
    raise InputError(
        "A pattern must match WebDataset shards (.tar) only, or Parquet files only. "
        f"Got {other} with {uri}. Narrow it, or give a folder."
    )


def _open_table(path: Path, root: str | Path | None) -> SingleSource:
    if not path.is_file():
        raise InputError(f"A manifest must exist. Got {path}. Check the path.")
    if is_parquet(path.name) and _holds_images(path):
        return parquet_files([path], path.parent, str(path.resolve()))
    with path.open("rb") as data:
        columns = read_manifest(data, str(path))
    if (root is not None and is_url(str(root))) or any(map(is_url, columns["path"])):
        return RemoteManifestSource(str(path.resolve()), columns, _root_url(root, str(path)))
    return ManifestSource(path, columns, None if root is None else Path(root).expanduser())


def _holds_images(path: Path) -> bool:
    """Return whether a Parquet file is a table of images rather than a manifest."""
    import pyarrow
    import pyarrow.parquet

    from svp.data.image_columns import has_images

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError):
        return False  # reading it will say what is wrong
    return not {"id", "path"} <= set(schema.names) and has_images(schema)
