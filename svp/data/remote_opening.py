"""From a URL to a source: manifests, archives, shards, tables and prefixes in a bucket."""

import glob
import io
import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from urllib.parse import quote

from svp.data.bucket import Buckets, RemoteObject, is_url, split_url
from svp.data.failure import DecodeError
from svp.data.item_name import is_hidden, is_image
from svp.data.manifest_table import MANIFEST_SUFFIXES, is_parquet, read_manifest
from svp.data.pattern import MOST_FILES, expanded
from svp.data.remote import BucketFolderSource, RemoteManifestSource
from svp.data.remote_file import RemoteFile
from svp.data.scanner import SILENT, SingleSource
from svp.data.table_source import DATASETS_FILES, holds_images, parquet_files
from svp.data.tar_archive import TarSource
from svp.data.webdataset import SHARD_SUFFIXES, WebDatasetSource, is_webdataset
from svp.data.zip_archive import ZipSource
from svp.errors import InputError

_MOST_MANIFEST_BYTES: Final = 4 * 2**30
_TAR: Final = ".tar"
_COPY: Final = {"s3": "aws s3 cp {} .", "gs": "gcloud storage cp {} .", "az": "azcopy copy {} ."}
_SYNC: Final = {
    "s3": "aws s3 sync {} FOLDER",
    "gs": "mkdir -p FOLDER && gcloud storage rsync -r {} FOLDER",
    "az": "mkdir -p FOLDER && azcopy sync {} FOLDER",
}
_FILES: Final = (*SHARD_SUFFIXES, ".zip", ".parquet")


def open_url(url: str, root: str | Path | None) -> SingleSource:
    """Open what a URL names.

    Args:
        url: A manifest, an archive, WebDataset shards or Parquet files with images, as one object,
            a prefix or a pattern; or a prefix of images.
        root: What the paths of a manifest are relative to.

    Raises:
        InputError: If something is missing, or can only be read from a disk.
        TemporaryError: If the service does not answer.
    """
    split_url(url)  # refuses what is no URL of a bucket
    buckets = Buckets()
    if next(expanded(url)).lower().endswith(_FILES):
        found = buckets.describe([url], SILENT).get(url)
        if found is not None:
            source = _open_file(found, buckets)
            if source is not None:
                return source
        elif _is_pattern(url):
            return _open_many(_matching(url, buckets), _pattern_root(url), url, buckets)
        elif not is_parquet(url):
            raise InputError(f"A source must exist. Got no object {url}. Check the URL.")
    if url.lower().endswith(MANIFEST_SUFFIXES):
        return _open_manifest(url, root, buckets)
    return _open_prefix(url.rstrip("/"), buckets)


def root_url(root: str | Path | None, place: str) -> str | None:
    """Return the root of a manifest of objects, which must be a URL."""
    if root is not None and not is_url(str(root)):
        raise InputError(
            f"The root of a manifest of objects must be a URL. Got {root} for {place}. "
            "Write s3://bucket/prefix."
        )
    return None if root is None else str(root)


def _open_manifest(url: str, root: str | Path | None, buckets: Buckets) -> SingleSource:
    try:
        data = buckets.read(url, _MOST_MANIFEST_BYTES)
    except (OSError, DecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"A manifest must be readable. Got {reason} for {url}. Check the URL."
        ) from error
    columns = read_manifest(io.BytesIO(data), url)
    return RemoteManifestSource(url, columns, root_url(root, url))


def _open_file(found: RemoteObject, buckets: Buckets) -> SingleSource | None:
    """Open an archive, shard or table of images; None of a manifest."""
    file = RemoteFile(found, buckets)
    if is_parquet(found.url):
        held = holds_images(file)
        return parquet_files([file], found.url.rpartition("/")[0], found.url) if held else None
    if found.url.lower().endswith(".zip"):
        return ZipSource(file)
    _refuse_compressed([found])
    if is_webdataset(file):
        return WebDatasetSource([file], found.url.rpartition("/")[0], found.url)
    return TarSource(file)


def _open_prefix(url: str, buckets: Buckets) -> SingleSource:
    """Open a prefix as a local folder is: by its images, else its shards, else its tables."""
    shards: list[RemoteObject] = []
    tables: list[RemoteObject] = []
    for one in buckets.below(url):
        name = one.url[len(url) + 1 :]
        if is_hidden(name):
            continue
        if is_image(name):
            return BucketFolderSource(url)
        if name in DATASETS_FILES:
            raise InputError(
                "A saved data set must be on a disk, because its files are mapped into memory. "
                f"Got {url}. Copy it: {_command(_SYNC, url)}; or save it as Parquet."
            )
        if name.lower().endswith(SHARD_SUFFIXES):
            shards.append(one)
        elif is_parquet(name):
            tables.append(one)
    if not shards and not tables:
        return BucketFolderSource(url)  # says what is missing when it is scanned
    return _open_many(shards or tables, url, url, buckets)


def _open_many(
    found: Sequence[RemoteObject], root: str, uri: str, buckets: Buckets
) -> SingleSource:
    files = [RemoteFile(one, buckets) for one in sorted(found, key=lambda one: one.url)]
    if all(one.url.lower().endswith(SHARD_SUFFIXES) for one in found):
        _refuse_compressed(found)
        return WebDatasetSource(files, root, uri)
    if all(is_parquet(one.url) for one in found):
        return parquet_files(files, root, uri)
    other = next(one.url for one in found if not one.url.lower().endswith(SHARD_SUFFIXES))
    raise InputError(
        "A pattern must match WebDataset shards (.tar) only, or Parquet files only. "
        f"Got {other} with {uri}. Narrow it, or give a prefix."
    )


def _command(commands: Mapping[str, str], url: str) -> str:
    """Return the command of the service's own tool that copies what a URL names to a disk."""
    scheme, _, rest = url.partition("://")
    if scheme == "az":
        # Its tool knows no URL of ours, only an account's address.
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "ACCOUNT")
        url = f"https://{account}.blob.core.windows.net/{quote(rest)}"
    return commands[scheme].format(shlex.quote(url))


def _refuse_compressed(found: Sequence[RemoteObject]) -> None:
    packed = next((one.url for one in found if not one.url.lower().endswith(_TAR)), None)
    if packed is not None:
        raise InputError(
            "A tar in a bucket must not be compressed, because gzip can only be read from its "
            f"beginning. Got {packed}. Store it as .tar, or copy it here: "
            f"{_command(_COPY, packed)}"
        )


def _is_pattern(url: str) -> bool:
    return glob.has_magic(url) or next(expanded(url)) != url


def _pattern_root(url: str) -> str:
    """Return the URL before the first part of `url` that is a pattern."""
    parts = url.split("/")
    plain = itertools.takewhile(lambda part: not _is_pattern(part), parts[:-1])
    return "/".join(plain)


def _matching(url: str, buckets: Buckets) -> list[RemoteObject]:
    """Return the objects that a pattern names; those of braces must all be there."""
    names = list(itertools.islice(expanded(url), MOST_FILES + 1))
    if len(names) > MOST_FILES:
        raise InputError(
            f"A pattern must name at most {MOST_FILES:,} files. Got more with {url}. Narrow it."
        )
    plain = [name for name in names if not glob.has_magic(name)]
    found = buckets.describe(plain, SILENT)
    missing = next((name for name in plain if name not in found), None)
    if missing is not None:
        raise InputError(
            f"Every file that a pattern names must exist. Got {url} and no {missing}. "
            "Correct the range, or upload the file."
        )
    for name in names:
        if glob.has_magic(name):
            found |= {one.url: one for one in _globbed(name, buckets)}
    if not found:
        raise InputError(f"A pattern must match files. Got none for {url}. Check the URL.")
    return list(found.values())


def _globbed(pattern: str, buckets: Buckets) -> Iterator[RemoteObject]:
    root = _pattern_root(pattern)
    wanted = pattern[len(root) + 1 :].split("/")
    for one in buckets.below(root):
        name = one.url[len(root) + 1 :]
        if not is_hidden(name) and _matches(name.split("/"), wanted):
            yield one


def _matches(parts: list[str], wanted: list[str]) -> bool:
    if not wanted or not parts:
        return not parts and all(one == "**" for one in wanted)
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or _matches(parts[1:], wanted)
    return fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])
