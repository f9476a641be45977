"""From what the user writes to a source."""

from collections.abc import Sequence
from pathlib import Path

from svp.data.folder import FolderSource
from svp.data.item_name import ARCHIVE_SUFFIXES, is_image
from svp.data.joined import JoinedSource
from svp.data.manifest import MANIFEST_SUFFIXES, ManifestSource
from svp.data.scanner import SingleSource
from svp.data.source import Source
from svp.data.tar_archive import TarSource
from svp.data.zip_archive import ZipSource
from svp.errors import InputError


def open_source(
    specs: str | Path | Sequence[str | Path], *, root: str | Path | None = None
) -> Source:
    """Open the images that `specs` name.

    Args:
        specs: A folder, a .csv or .parquet manifest, a .zip, .tar, .tar.gz or .tgz archive, or
            a sequence of these, whose ids must be disjoint.
        root: What the paths of manifests are relative to; default each manifest's folder.

    Raises:
        InputError: If something is missing, holds no image, or is none of the above.
    """
    listed = [specs] if isinstance(specs, str | Path) else list(specs)
    if not listed:
        raise InputError("A source must be given. Got none. Name a folder, manifest or archive.")
    folder = None if root is None else Path(root).expanduser()
    sources = [_open_one(spec, folder) for spec in listed]
    if folder is not None and not any(isinstance(source, ManifestSource) for source in sources):
        raise InputError(
            f"A root must belong to a manifest. Got {root} and no manifest. Leave the root out."
        )
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _open_one(spec: str | Path, root: Path | None) -> SingleSource:
    if "://" in str(spec):
        raise InputError(
            f"A source must be a local path. Got {spec}. Mount the bucket, or copy it here."
        )
    path = Path(spec).expanduser()
    name = path.name.lower()
    if path.is_dir():
        return FolderSource(path)
    if name.endswith(MANIFEST_SUFFIXES):
        return ManifestSource(path, root)
    if name.endswith(".zip"):
        return ZipSource(path)
    if name.endswith(ARCHIVE_SUFFIXES):
        return TarSource(path)
    if not path.exists():
        raise InputError(f"A source must exist. Got {path}. Check the path, or mount the disk.")
    suffixes = ", ".join((*MANIFEST_SUFFIXES, *ARCHIVE_SUFFIXES))
    raise InputError(
        f"A source must be a folder or end in {suffixes}. Got {path}. "
        + ("Give the folder that holds it." if is_image(name) else "Convert it to one of these.")
    )
