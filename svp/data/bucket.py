"""Objects in buckets, read as images are: by URL, limited in size, failing one by one.

Credentials, endpoint and retries are those of stores in a bucket (`feature_store`).
"""

import collections
import dataclasses
import errno
import threading
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

from feature_store.errors import FeatureStoreError, StorageUnavailableError
from feature_store.object_storage import ObjectStorage
from feature_store.storage import OBJECT_SCHEMES
from feature_store.threads import mapped
from svp.data.failure import MAX_BYTES, DecodeError
from svp.data.item_name import unsafe_reason
from svp.errors import InputError, TemporaryError
from svp.progress import Progress

PARALLEL: Final = 32  # requests at once: images are small, and the way to a bucket is long
_FEW: Final = 64  # objects that are asked for one by one rather than listed
_ASK_BATCH: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteObject:
    """What a service says of an object without sending it.

    Attributes:
        url: Its whole name.
        size: Bytes.
        changed_ns: When it was written last, in nanoseconds since the epoch.
    """

    url: str
    size: int
    changed_ns: int


class _Bucket(ObjectStorage):
    """A whole bucket, which can be asked for one object's size and time."""

    def describe(self, key: str) -> tuple[int, float]:
        """Return bytes and time of writing in seconds; FileNotFoundError if there is none."""
        meta = self._ask(lambda: self._api.head(self._store, key))
        return int(meta["size"]), float(meta["last_modified"].timestamp())


def is_url(text: str) -> bool:
    """Return whether `text` names something by scheme, rightly or not."""
    return "://" in text


def split_url(url: str) -> tuple[str, str]:
    """Return the bucket of a URL as "s3://bucket", and the key in it.

    Raises:
        InputError: If it is no URL of a bucket, or its key has "..".
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    reason = None if not key else unsafe_reason(key)
    if scheme not in OBJECT_SCHEMES or not bucket or reason is not None:
        raise InputError(
            "An object must be named s3://bucket/key, gs://bucket/key or az://container/key. "
            f"Got {url!r}{': ' + reason if reason else ''}. Correct it."
        )
    return f"{scheme}://{bucket}", key


class Buckets:
    """Reads objects of any bucket; connects when the first is asked for. Can be pickled."""

    def __init__(self) -> None:
        self._opened: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Buckets"], tuple[()]]:
        return type(self), ()

    def read(self, url: str, limit: int = MAX_BYTES) -> bytes:
        """Return an object.

        Raises:
            OSError: If there is none (ENOENT), reading is refused (EACCES) or the service does
                not answer (EIO).
            DecodeError: If it is larger than `limit`.
        """
        # One byte more than allowed: an object of any size costs no more than that.
        data = self.read_range(url, 0, limit + 1)
        if len(data) > limit:
            raise DecodeError("too_large", f"more than the limit of {limit:,} bytes")
        return data

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """Return a part of an object, shorter only at its end; OSError as in `read`."""
        bucket, key = split_url(url)
        try:
            return bytes(self._bucket(bucket).get_range(key, start, length))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", url) from error
        except StorageUnavailableError as error:
            raise OSError(errno.EIO, str(error), url) from error
        except FeatureStoreError as error:
            raise PermissionError(errno.EACCES, str(error), url) from error

    def below(self, prefix: str) -> Iterator[RemoteObject]:
        """Yield the objects below "s3://bucket/prefix", at any depth.

        Raises:
            InputError, TemporaryError: If the bucket cannot be listed.
        """
        bucket, key = split_url(prefix)
        try:
            for found in self._bucket(bucket).walk(key.rstrip("/")):
                yield RemoteObject(f"{bucket}/{found.key}", found.size, _ns(found.modified_s))
        except (FeatureStoreError, FileNotFoundError) as error:
            _refuse(prefix, error)

    def describe(self, urls: Sequence[str], progress: Progress) -> dict[str, RemoteObject]:
        """Return size and time of those objects that exist.

        A listing tells a thousand at once, so the folder that holds all of them is listed while
        that pays, and the rest is asked for one by one, many at a time.

        Raises:
            InputError, TemporaryError: If a service refuses or does not answer.
        """
        wanted: dict[str, set[str]] = collections.defaultdict(set)
        for url in urls:
            wanted[split_url(url)[0]].add(url)
        found: dict[str, RemoteObject] = {}
        with progress.task("listing", len(set(urls)), unit="objects") as task:
            for bucket, names in sorted(wanted.items()):
                listed, complete = self._listed(bucket, names)
                found |= listed
                task.advance(len(listed))
                if complete:
                    continue
                left = sorted(names - listed.keys())
                for start in range(0, len(left), _ASK_BATCH):
                    part = left[start : start + _ASK_BATCH]
                    answers = mapped(self._ask_one, part, PARALLEL)
                    found |= {one.url: one for one in answers if one is not None}
                    task.advance(len(part))
        return found

    def _listed(self, bucket: str, names: set[str]) -> tuple[dict[str, RemoteObject], bool]:
        """Return those of `names` that a bounded listing shows, and whether it showed all."""
        if len(names) <= _FEW:
            return {}, False
        first, last = min(names), max(names)
        same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
        folder = first[:same].rpartition("/")[0]
        found: dict[str, RemoteObject] = {}
        try:
            for seen, one in enumerate(self.below(max(folder, bucket, key=len))):
                if one.url in names:
                    found[one.url] = one
                if len(found) == len(names):
                    return found, True
                if seen > 4 * len(names) + 1000:
                    return found, False
        except InputError:
            return {}, False  # reading may be allowed where listing is not
        return found, True

    def _ask_one(self, url: str) -> RemoteObject | None:
        bucket, key = split_url(url)
        try:
            size, modified_s = self._bucket(bucket).describe(key)
        except FileNotFoundError:
            return None
        except FeatureStoreError as error:
            _refuse(url, error)
        return RemoteObject(url, size, _ns(modified_s))

    def _bucket(self, name: str) -> _Bucket:
        with self._lock:
            opened = self._opened.get(name)
            if opened is None:
                try:
                    opened = self._opened[name] = _Bucket(name)
                except StorageUnavailableError:
                    raise
                except FeatureStoreError as error:
                    raise InputError(str(error)) from error
            return opened


def _ns(seconds: float) -> int:
    # Whole milliseconds: a float of seconds holds no nanoseconds.
    return round(seconds * 1000) * 1_000_000


def _refuse(url: str, error: Exception) -> NoReturn:
    if isinstance(error, StorageUnavailableError):
        raise TemporaryError(str(error)) from error
    if isinstance(error, FileNotFoundError):
        raise InputError(
            f"The bucket of a source must exist. Got none for {url}. Correct its name or endpoint."
        ) from error
    raise InputError(str(error)) from error


def inside(url: str, root: str) -> bool:
    """Return whether `url` lies below `root`, which may end in a slash or not."""
    return url.startswith(root.rstrip("/") + "/")
