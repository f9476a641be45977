"""WebDataset: tar shards whose members belong together by the name before their first dot.

A sample `000017` of `train-000003.tar` has an image `000017.jpg`, and may have a label
`000017.cls` (a number or text) and fields in `000017.json`. Its id is `train-000003/000017`: keys
are unique within a shard by definition, across shards only by habit, and more shards never change
an id.

Shards in a bucket are indexed by one walk through them, labels included, until they change. The uri
of an item there says where it lies in its shard, so whoever gets it needs no index to read it.

Format: the WebDataset project's documentation; nothing is unpacked, and no package is needed.
"""

import collections
import errno
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final, cast

from feature_store.threads import mapped
from svp.data.bucket import PARALLEL
from svp.data.failure import DecodeError, ScanFailure
from svp.data.gzip_file import GzipFile
from svp.data.item_name import (
    IMAGE_SUFFIXES,
    canonical_split,
    examples,
    is_hidden,
    is_image,
    plain,
    shown,
    unsafe_reason,
)
from svp.data.listing import Entry, Listing, entry_key, too_large
from svp.data.random_file import RandomFile
from svp.data.recent import Recent
from svp.data.remote_file import RemoteFile
from svp.data.scanner import SingleSource
from svp.data.shard_listing import ShardListings
from svp.data.tar_archive import refusal
from svp.data.tar_index import index_tar, tar_bytes
from svp.errors import InputError
from svp.progress import Progress

SHARD_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
_NAME: Final = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_SPLIT: Final = re.compile(r"(train|val|valid|validation|test)(?:[-_.].*)?", re.IGNORECASE)
_JSON_LABELS: Final = ("label", "cls", "class")  # the first that a sample has
_MOST_TEXT: Final = 2**20  # bytes of a .cls or .json
_OPEN_SHARDS: Final = 16
_PEEKED: Final = 64  # members that tell a WebDataset from any other archive
_WALKS: Final = 8  # shards of a bucket indexed at a time
_TEXTS: Final = ("cls", "json")
_PLACE: Final = re.compile(r"(\d{1,19})\+(\d{1,19})/")

Place = tuple[int, int]  # offset and size in the shard's bytes
Shard = Path | RemoteFile
Bytes = RandomFile | RemoteFile | GzipFile


class WebDatasetSource(SingleSource):
    """The samples of one or many shards.

    Args:
        shards: Their paths, or objects in a bucket; not both.
        root: Folder or URL that shards are named relative to.
        uri: What the user wrote, for people and records.

    Raises:
        InputError: If a shard is missing or damaged, names a member twice, or none holds an image.
    """

    def __init__(self, shards: Sequence[Shard], root: Path | str, uri: str) -> None:
        self._arguments = (tuple(shards), root, uri)
        self._shards = _named_shards(shards, root)
        self._images: dict[str, dict[str, Place]] = {name: {} for name in self._shards}
        if any(isinstance(shard, RemoteFile) for shard in shards):
            self.read_threads = PARALLEL
        self._open = Recent(self._open_shard, _OPEN_SHARDS)
        self._found: list[Entry] | None = None
        self._failures: list[ScanFailure] = []
        self._kept = ShardListings.default()

    def __reduce__(
        self,
    ) -> tuple[type["WebDatasetSource"], tuple[tuple[Shard, ...], Path | str, str]]:
        return type(self), self._arguments

    @property
    def uri(self) -> str:
        """What names the shards."""
        return self._arguments[2]

    def list_items(self, progress: Progress) -> Listing:
        """Index every shard, and list its samples in the order of their images."""
        if self._found is None:
            self._found = self._index(progress)
        return Listing(list(self._found), list(self._failures))

    def read(self, uri: str) -> bytes:
        """Return the bytes of the image `SHARD/MEMBER`, in a bucket `SHARD/PLACE/MEMBER`."""
        shard = next((name for name in _shards_of(uri) if name in self._shards), None)
        if shard is None:
            raise FileNotFoundError(errno.ENOENT, f"no such shard of {self.uri}", uri)
        held = self._shards[shard]
        if isinstance(held, RemoteFile):
            found = _PLACE.match(uri, len(shard) + 1)
            if found is None or too_large(int(found[2])) is not None:
                raise FileNotFoundError(errno.ENOENT, f"no such place in {shard}", uri)
            return _read(held, (int(found[1]), int(found[2])))
        if not self._images[shard]:
            # In a process that got the source but did not list it.
            self._samples(shard, RandomFile(held), [])
        place = self._images[shard].get(uri[len(shard) + 1 :])
        if place is None:
            raise FileNotFoundError(errno.ENOENT, f"no such member of {shard}", uri)
        return _read(self._open.get(shard), place)

    def _open_shard(self, shard: str) -> Bytes:
        held = self._shards[shard]
        return held if isinstance(held, RemoteFile) else tar_bytes(RandomFile(held))

    def _index(self, progress: Progress) -> list[Entry]:
        entries: list[Entry] = []
        keys: collections.Counter[str] = collections.Counter()
        names = list(self._shards)
        # Walking a bucket mostly waits.
        together = 1 if self.read_threads is None else _WALKS
        with progress.task("indexing", len(names), unit="shards") as task:
            for start in range(0, len(names), together):
                part = names[start : start + together]
                for shard, found in zip(part, mapped(self._listed, part, together), strict=True):
                    keys.update(entry.id[len(shard) + 1 :] for entry in found.entries)
                    entries += found.entries
                    self._failures += found.failures
                    task.advance()
        if not entries and not self._failures:
            raise InputError(
                f"Shards must hold images ({' '.join(IMAGE_SUFFIXES)}). Got none in {self.uri}. "
                "Give other shards."
            )
        repeated = [key for key, count in keys.items() if count > 1]
        if repeated:
            progress.say(
                f"{len(repeated):,} keys occur in more than one shard, such as "
                f"{examples(repeated)}; they are different items, named SHARD/KEY."
            )
        return entries

    def _listed(self, shard: str) -> Listing:
        held = self._shards[shard]
        if isinstance(held, Path):
            return self._walked(shard, RandomFile(held))
        kept = self._kept.find(shard, held)
        if kept is None:
            kept = self._walked(shard, held)
            self._kept.put(shard, held, kept)
        return kept

    def _walked(self, shard: str, file: RandomFile | RemoteFile) -> Listing:
        named = next(filter(None, map(_SPLIT.fullmatch, shard.split("/"))), None)
        entries: list[Entry] = []
        failures: list[ScanFailure] = []
        texts: dict[Place, bytes] = {}
        samples = self._samples(shard, file, failures, texts)
        data = self._open.get(shard)
        for key, fields in samples.items():
            item_id = f"{shard}/{key}"
            image, reason = _image_field(fields)
            if image is None:
                if reason is not None:
                    failures.append(ScanFailure(item_id, reason, "refused"))
                continue
            offset, size = fields[image]
            large = too_large(size)
            if large is not None:
                failures.append(ScanFailure(item_id, large, "too_large"))
                continue
            try:
                said = _said(fields, data, texts)
            except ValueError as error:
                failures.append(ScanFailure(item_id, str(error), "refused"))
                continue
            member = f"{key}.{image}"
            place = f"{offset}+{size}/" if isinstance(file, RemoteFile) else ""
            uri = f"{shard}/{place}{member}"
            entries.append(
                Entry(
                    item_id,
                    uri,
                    entry_key(uri, *file.stamp, offset, size),
                    file.changed_ns,
                    said.get("label"),
                    _split(said.get("split") or (named and named[1])),
                    said.get("group"),
                )
            )
        return Listing(entries, failures)

    def _samples(
        self,
        shard: str,
        file: RandomFile | RemoteFile,
        failures: list[ScanFailure],
        texts: dict[Place, bytes] | None = None,
    ) -> dict[str, dict[str, Place]]:
        """Index one shard: its samples' fields by key, in the order of the archive.

        Args:
            shard: Its name.
            file: The shard.
            failures: Takes images that cannot be used.
            texts: Takes the bytes of labels, where a walk passes them.
        """
        samples: dict[str, dict[str, Place]] = {}
        images: dict[str, Place] = {}

        def add(info: tarfile.TarInfo, walked: IO[bytes] | None) -> None:
            name = plain(info.name)
            match = _NAME.fullmatch(name)
            unsafe = unsafe_reason(info.name)
            if info.isdir() or match is None or (unsafe is None and is_hidden(name)):
                return
            reason = unsafe or refusal(info)
            if reason is not None:
                if is_image(name):
                    failed = f"{shard}/{shown(name)}"
                    failures.append(ScanFailure(failed, reason, "refused"))
                return
            key, field = match[1], match[2].lower()
            fields = samples.setdefault(key, {})
            if field in fields:
                raise InputError(
                    f"A shard must hold each key once. Got {key}.{field} twice in "
                    f"{file.path}. Pack it again."
                )
            fields[field] = place = (info.offset_data, info.size)
            wanted = field in _TEXTS and info.size <= _MOST_TEXT
            if walked is not None and texts is not None and wanted:
                walked.seek(info.offset_data)
                texts[place] = walked.read(info.size)
            if is_image(name):
                images[f"{key}.{field}"] = fields[field]

        index_tar(file, add)
        if isinstance(file, RandomFile):
            self._images[shard] = images
        return samples


def is_webdataset(shard: Shard) -> bool:
    """Return whether a tar's first samples have a label or fields beside their image."""
    fields: dict[str, set[str]] = {}
    try:
        with _peeked(shard) as archive:
            for _, info in zip(range(_PEEKED), archive, strict=False):
                match = _NAME.fullmatch(plain(info.name))
                if match is not None and info.isreg():
                    fields.setdefault(match[1], set()).add(match[2].lower())
    except (tarfile.TarError, EOFError, OSError, ValueError):
        return False  # reading it will say what is wrong
    return any(
        held & {"cls", "json"} and any(is_image(f".{field}") for field in held)
        for held in fields.values()
    )


def _peeked(shard: Shard) -> tarfile.TarFile:
    if isinstance(shard, Path):
        return tarfile.open(shard, mode="r|*")
    return tarfile.open(fileobj=cast("IO[bytes]", shard.walk()), mode="r:")


def _name(shard: Shard, root: Path | str) -> str:
    if isinstance(shard, RemoteFile):
        return shard.path.removeprefix(f"{root}/")
    try:
        return shard.resolve().relative_to(Path(root).resolve()).as_posix()
    except ValueError:
        return shard.name


def _named_shards(shards: Sequence[Shard], root: Path | str) -> dict[str, Shard]:
    named: dict[str, Shard] = {}
    for shard in shards:
        name = _name(shard, root)
        suffix = next((s for s in SHARD_SUFFIXES if name.lower().endswith(s)), "")
        name = name[: len(name) - len(suffix)]
        reason = unsafe_reason(name)
        if reason is not None or name in named:
            raise InputError(
                f"Shards must have different plain names. Got {shown(_place(shard))}"
                f"{': ' + reason if reason else ' beside ' + _place(named[name])}. Rename it."
            )
        named[name] = shard.resolve() if isinstance(shard, Path) else shard
    return named


def _place(shard: Shard) -> str:
    return shard.path if isinstance(shard, RemoteFile) else str(shard)


def _shards_of(uri: str) -> list[str]:
    parts = uri.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _image_field(fields: dict[str, Place]) -> tuple[str | None, str | None]:
    """Return which field is the sample's image, or None and why it is unclear."""
    images = [field for field in fields if is_image(f".{field}")]
    # `jpg` is the image; `seg.png` and the like are masks and derived ones beside it.
    whole = [field for field in images if "." not in field] or images
    if len(whole) > 1:
        return None, f"it has several images: {', '.join(sorted(whole))}"
    return (whole[0] if whole else None), None


def _said(fields: dict[str, Place], data: Bytes, texts: dict[Place, bytes]) -> dict[str, str]:
    """Return label, split and group as .cls and .json say them; the former goes first."""
    said: dict[str, str] = {}
    if "json" in fields:
        try:
            held = json.loads(_text(fields["json"], data, texts))
        except ValueError as error:
            raise ValueError(f"its .json cannot be read: {error}") from error
        if isinstance(held, dict):
            label = next((held[name] for name in _JSON_LABELS if name in held), None)
            values = {"label": label, "split": held.get("split"), "group": held.get("group")}
            said |= {name: text for name, value in values.items() if (text := _plain(value))}
    if "cls" in fields:
        try:
            text = _text(fields["cls"], data, texts).strip()
        except ValueError as error:
            raise ValueError(f"its .cls cannot be read: {error}") from error
        if text:
            said["label"] = text
    return said


def _plain(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return str(value)


def _text(place: Place, data: Bytes, texts: dict[Place, bytes]) -> str:
    if place[1] > _MOST_TEXT:
        raise ValueError(f"{place[1]:,} bytes, more than {_MOST_TEXT:,}")
    try:
        return (texts[place] if place in texts else _read(data, place)).decode()
    except (UnicodeDecodeError, DecodeError) as error:
        raise ValueError(str(error)) from error


def _read(data: Bytes, place: Place) -> bytes:
    found = data.read_at(*place)
    if len(found) < place[1]:
        raise DecodeError("corrupt", "the shard ends inside this member")
    return found


def _split(name: str | None) -> str | None:
    return canonical_split(name) if name else None
