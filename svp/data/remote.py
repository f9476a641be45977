"""Images in buckets: named by a manifest, or all below a prefix."""

import errno
from collections.abc import Sequence

from svp.data.bucket import PARALLEL, Buckets, RemoteObject, inside, is_url, split_url
from svp.data.failure import ScanFailure
from svp.data.item_name import IMAGE_SUFFIXES, is_hidden, is_image, shown, unsafe_reason
from svp.data.listing import Entry, Listing, entry_key, too_large, with_folder_labels
from svp.data.manifest_table import Columns, with_manifest_labels
from svp.data.scanner import SingleSource
from svp.errors import InputError
from svp.progress import Progress


class RemoteManifestSource(SingleSource):
    """The images in buckets that a manifest names.

    Args:
        place: Where the manifest is: a path, or a URL.
        columns: What it says, by `read_manifest`.
        root: URL that its relative paths are below, and outside which nothing is read. Without
            one, a manifest in a bucket may name objects of that bucket, relative to itself, and a
            local one objects of any bucket that the credentials allow.

    Raises:
        InputError: If it names something that is not an object inside `root`.
    """

    read_threads = PARALLEL

    def __init__(self, place: str, columns: Columns, root: str | None = None) -> None:
        self._place, self._columns, self._root = place, columns, root
        self._base = root or (place.rpartition("/")[0] if is_url(place) else None)
        self._bound = root or (split_url(place)[0] if is_url(place) else None)
        self._urls = [self._located(path) for path in columns["path"]]
        self._known = set(self._urls)
        self._buckets = Buckets()

    @property
    def uri(self) -> str:
        """Where the manifest is."""
        return self._place

    def list_items(self, progress: Progress) -> Listing:
        """List the rows whose objects exist, in the order of the manifest."""
        found = self._buckets.describe(self._urls, progress)
        pairs = list(zip(self._columns["id"], self._urls, strict=True))
        listing = _listing([(item_id, found.get(url), url) for item_id, url in pairs])
        return Listing(with_manifest_labels(listing.entries, self._columns), listing.failures)

    def read(self, uri: str) -> bytes:
        """Return the bytes of the object at the URL `uri`, which the manifest names."""
        if uri not in self._known:
            raise FileNotFoundError(errno.ENOENT, f"no such row of {self._place}", uri)
        return self._buckets.read(uri)

    def _located(self, path: str) -> str:
        url = path
        if not is_url(path):
            reason = unsafe_reason(path)
            if self._base is None or reason is not None:
                raise InputError(
                    "The paths of a manifest must all be URLs or all be files. Got "
                    f"{path!r}{': ' + reason if reason else ''} in {self._place}. "
                    "Correct it, or give their common URL as the root."
                )
            url = f"{self._base}/{path}"
        _, key = split_url(url)
        if not key or (self._bound is not None and not inside(url, self._bound)):
            raise InputError(
                f"The paths of a manifest must lie inside {self._bound}. Got {path!r} in "
                f"{self._place}. Give the URL that holds all images as the root."
            )
        return url


class BucketFolderSource(SingleSource):
    """The images below a prefix of a bucket, at any depth; its class folders are the labels.

    Args:
        url: "s3://bucket/prefix", "gs://bucket/prefix" or "az://container/prefix".

    Raises:
        InputError: If it is no such URL.
    """

    read_threads = PARALLEL

    def __init__(self, url: str) -> None:
        split_url(url)
        self._url = url.rstrip("/")
        self._buckets = Buckets()

    @property
    def uri(self) -> str:
        """The URL."""
        return self._url

    def list_items(self, progress: Progress) -> Listing:
        """List the images, a thousand a request."""
        items: list[tuple[str, RemoteObject | None, str]] = []
        with progress.task("listing", None, unit="objects") as task:
            for one in self._buckets.below(self._url):
                name = one.url[len(self._url) + 1 :]
                if is_image(name) and not is_hidden(name):
                    items.append((name, one, name))
                task.advance()
        if not items:
            raise InputError(
                f"A prefix must hold images ({' '.join(IMAGE_SUFFIXES)}). Got none below "
                f"{self._url}. Correct the prefix, or check that it may be listed."
            )
        listing = _listing(items)
        return Listing(with_folder_labels(listing.entries), listing.failures)

    def read(self, uri: str) -> bytes:
        """Return the bytes of the object `uri` below the prefix."""
        reason = unsafe_reason(uri)
        if reason is not None:
            raise InputError(
                f"An item of {self._url} must lie below it. Got {uri!r}: {reason}. "
                "Scan the source again."
            )
        return self._buckets.read(f"{self._url}/{uri}")


def _listing(items: Sequence[tuple[str, RemoteObject | None, str]]) -> Listing:
    """Return entries and failures of (id, object or None, uri)."""
    entries: list[Entry] = []
    failures: list[ScanFailure] = []
    for item_id, one, uri in items:
        unsafe = unsafe_reason(item_id) if uri == item_id else None
        large = None if one is None else too_large(one.size)
        if one is None:
            failures.append(ScanFailure(item_id, "no such object", "missing"))
        elif unsafe is not None:
            failures.append(ScanFailure(shown(item_id), unsafe, "refused"))
        elif large is not None:
            failures.append(ScanFailure(item_id, large, "too_large"))
        else:
            key = entry_key(one.url, one.size, one.changed_ns)
            entries.append(Entry(item_id, uri, key, one.changed_ns))
    return Listing(entries, failures)
