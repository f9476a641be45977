"""From what the user writes to a source."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from svp.data.bucket import is_url
from svp.data.folder import FolderSource, walk_images
from svp.data.item_name import ARCHIVE_SUFFIXES, is_hidden, is_image
from svp.data.joined import JoinedSource
from svp.data.manifest import ManifestSource
from svp.data.manifest_table import MANIFEST_SUFFIXES, is_parquet, read_manifest
from svp.data.pattern import is_pattern, matching_files, pattern_root
from svp.data.remote import RemoteManifestSource
from svp.data.remote_opening import open_url, root_url
from svp.data.scanner import SingleSource
from svp.data.source import Source
from svp.data.table_source import (
    holds_images,
    is_saved_dataset,
    parquet_files,
    saved_dataset,
)
from svp.data.tar_archive import TarSource
from svp.data.webdataset import SHARD_SUFFIXES, WebDatasetSource, is_webdataset
from svp.data.zip_archive import ZipSource
from svp.errors import InputError


def open_source(
    specs: str | Path | Sequence[str | Path], *, root: str | Path | None = None
) -> Source:
    """Open the images that `specs` name.

    Args:
        specs: An image folder; a .csv or .parquet manifest; a .zip, .tar, .tar.gz or .tgz archive;
            WebDataset shards or Parquet files with images, as one file, a folder or a pattern; a
            folder that `datasets` saved; any of these but the last in a bucket. Or a sequence of
            these, whose ids must be disjoint.
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
        return open_url(str(spec), root)
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
    if is_parquet(path.name) and holds_images(path):
        return parquet_files([path], path.parent, str(path.resolve()))
    with path.open("rb") as data:
        columns = read_manifest(data, str(path))
    if (root is not None and is_url(str(root))) or any(map(is_url, columns["path"])):
        return RemoteManifestSource(str(path.resolve()), columns, root_url(root, str(path)))
    return ManifestSource(path, columns, None if root is None else Path(root).expanduser())
