"""Buckets of S3, Google Cloud Storage and Azure, through obstore.

A published object never changes and a name is given once, so a bucket needs only what all three
services have: create unless it exists (`If-None-Match: *`), ranges, listing one level.
"""

import datetime
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from feature_store.errors import FeatureStoreError, StorageUnavailableError, StoreInputError
from feature_store.storage import OBJECT_SCHEMES, Entry, Found

# obstore asks again after 5xx, 429 and lost connections, waiting 0.1 s, 0.2 s, ... 15 s, jittered.
RETRIES: Final = 10
PATIENCE_S: Final = 180.0  # below the life of signed requests; a rerun continues anyway
_PARALLEL: Final = 8  # chunks of 16 MiB in flight: 128 MiB of memory
_CONFLICTS: Final = 6  # tries of one creation that meets others of the same object
_PROBE_KEY: Final = ".probe"
_PROBE_RETRIES: Final = 3  # obstore takes "not implemented" for a passing failure, too

_STATUS = re.compile(r"status code: (\d{3})")
_SERVICE_CODE = re.compile(r"<Code>([^<]{1,64})</Code>")
_UNREACHABLE = re.compile(r"HTTP error|error sending request|body error|timed out", re.IGNORECASE)
_METADATA_SERVICE = re.compile(r"169\.254\.\d+\.\d+|metadata\.google\.internal")
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_ENDPOINTS: Final = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}

Result = TypeVar("Result")


class ObjectStorage:
    """A prefix of a bucket. Credentials and endpoint come from the environment.

    Safe to use from several threads.

    Args:
        url: "s3://bucket/prefix", "gs://bucket/prefix" or "az://container/prefix".

    Raises:
        StoreInputError: If the URL or the configuration is wrong, or obstore is not installed.
    """

    parallel = _PARALLEL
    waits = True

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        bucket, _, prefix = rest.rstrip("/").partition("/")
        plain = re.fullmatch(r"[\w.-]+", bucket) and not re.search(r"[?#%\\\s]|^/|//|\.\.", prefix)
        if scheme not in OBJECT_SCHEMES or not plain:
            raise StoreInputError(
                "A store in a bucket must be named as s3://bucket/prefix, gs://bucket/prefix or "
                f"az://container/prefix. Got {url!r}. Correct the URL."
            )
        self.url = f"{scheme}://{bucket}/{prefix}".rstrip("/")
        self._scheme, self._bucket, self._prefix = scheme, bucket, prefix
        self._api = _import_obstore()
        self._store = self._connect(RETRIES)
        self._found_bucket = False
        self._probed = False
        self._probe_lock = threading.Lock()

    def get(self, key: str) -> bytes:
        """Return a whole object."""
        return self._ask(lambda: bytes(self._api.get(self._store, key).bytes()))

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        """Return a part of an object without a copy."""
        if length == 0:
            return memoryview(b"")

        def fetch() -> memoryview:
            return memoryview(self._api.get_range(self._store, key, start=start, length=length))

        return self._ask(fetch, beyond=memoryview(b""))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return parts of an object; near ones are fetched with one request."""
        starts, lengths = [start for start, _ in ranges], [length for _, length in ranges]

        def fetch() -> list[memoryview]:
            parts = self._api.get_ranges(self._store, key, starts=starts, lengths=lengths)
            return [memoryview(part) for part in parts]

        return self._ask(fetch, beyond=[memoryview(b"")] * len(ranges))

    def create(self, key: str, *parts: bytes | memoryview) -> bool:
        """Create an object unless it exists; the first call probes the service.

        An answer that gets lost makes obstore ask again and find its own object. That is reported
        as False, which is right for callers: they look at what is stored.
        """
        if not self._probed:
            with self._probe_lock:
                if not self._probed:
                    self._probe()
                    self._probed = True
        data = b"".join(parts)
        deadline = time.monotonic() + PATIENCE_S
        for attempt in range(_CONFLICTS):
            try:
                if self._put(self._store, key, data):
                    return True
                # S3 answers 409 while another creation or deletion of the name is under way.
                if self.size(key) is not None:
                    return False
            except StorageUnavailableError as error:
                # obstore does not repeat a write whose answer got lost: it cannot know that ours
                # may be repeated.
                lost = _status(error.__cause__) is None and attempt < _CONFLICTS - 1
                if not lost or time.monotonic() > deadline:
                    raise
            time.sleep(0.1 * 2**attempt)
        raise StorageUnavailableError(
            f"Creating {key} in {self.url} must end. Got {_CONFLICTS} conflicts with objects that "
            "were gone afterwards. Run the same command again when nobody deletes there."
        )

    def size(self, key: str) -> int | None:
        """Return the bytes of an object; a bucket that is not there is an error."""
        try:
            return int(self._ask(lambda: self._api.head(self._store, key))["size"])
        except FileNotFoundError:
            if not self._found_bucket:
                # The service says 404 in both cases; only a listing tells them apart.
                self.list("")
            return None

    def list(self, prefix: str) -> list[Entry]:
        """Return the names directly under a prefix, hidden ones left out."""
        try:
            found = self._ask(
                lambda: self._api.list_with_delimiter(self._store, prefix or None), listing=True
            )
        except FileNotFoundError as error:
            raise self._no_bucket() from error
        self._found_bucket = True
        entries = [
            *(Entry(_name(path), None) for path in found["common_prefixes"]),
            *(Entry(_name(meta["path"]), int(meta["size"])) for meta in found["objects"]),
        ]
        return sorted(
            (entry for entry in entries if not entry.name.startswith(".")),
            key=lambda entry: entry.name,
        )

    def delete(self, key: str) -> None:
        """Delete an object."""
        try:
            self._ask(lambda: self._api.delete(self._store, key))
        except FileNotFoundError:
            return

    def tidy(self, prefix: str) -> None:
        """Do nothing: an upload that was cut off leaves no object."""

    def walk(self, prefix: str) -> Iterator[Found]:
        """Yield the objects below a prefix; there are no unfinished ones."""
        pages = iter(self._api.list(self._store, prefix or None))
        # A page is a request, and only asking for it tells what is wrong.
        while page := self._ask(lambda: next(pages, None), listing=True):
            for meta in page:
                written = meta["last_modified"].timestamp()
                yield Found(str(meta["path"]), int(meta["size"]), written, unfinished=False)

    def local_path(self, key: str) -> Path | None:
        """Return None: there are no files."""
        return None

    def _connect(self, retries: int) -> Any:
        from obstore.store import AzureStore, GCSStore, S3Store

        endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS[self._scheme])), "")
        seconds = datetime.timedelta
        options: dict[str, Any] = {
            "client_options": {
                # A chunk of 16 MiB has to fit in.
                "timeout": seconds(seconds=120),
                "connect_timeout": seconds(seconds=10),
            },
            "retry_config": {
                "max_retries": retries,
                "retry_timeout": seconds(seconds=PATIENCE_S),
                "backoff": {
                    "init_backoff": seconds(milliseconds=100),
                    "max_backoff": seconds(seconds=15),
                    "base": 2,
                },
            },
        }
        if endpoint.startswith("http://"):
            options["client_options"]["allow_http"] = True
        prefix = self._prefix or None

        def connect() -> Any:
            if self._scheme == "s3":
                # What the environment says about conditions could switch them off.
                config = {"conditional_put": "etag"}
                return S3Store(self._bucket, prefix=prefix, config=config, **options)  # type: ignore[arg-type]
            if self._scheme == "gs":
                return GCSStore(self._bucket, prefix=prefix, **options)
            return AzureStore(self._bucket, prefix=prefix, **options)

        from obstore.exceptions import BaseError

        try:
            return connect()
        except BaseError as error:
            raise StoreInputError(
                f"Credentials for {self.url} must be complete. Got: {_first_line(error)}. "
                f"Set them in the environment ({_CREDENTIALS[self._scheme]})."
            ) from error

    def _put(self, store: Any, key: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        def put() -> bool:
            try:
                self._api.put(store, key, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

        try:
            return self._ask(put)
        except FileNotFoundError as error:
            raise self._no_bucket() from error

    def _probe(self) -> None:
        """Check that the service refuses to create an object twice.

        Some S3-compatible services ignore the condition or do not know it; two writers could
        replace each other's published chunks there. The object stays, so that later writers need
        one request to learn it.
        """
        store = self._connect(_PROBE_RETRIES)
        try:
            refused = not (
                self._put(store, _PROBE_KEY, b"1\n") and self._put(store, _PROBE_KEY, b"2\n")
            )
        except FeatureStoreError as error:
            if _status(error.__cause__) != 501:
                raise
            raise self._unconditional("says that it does not know conditional writes") from error
        if not refused:
            self.delete(_PROBE_KEY)
            raise self._unconditional("created an object twice")

    def _unconditional(self, got: str) -> StoreInputError:
        return StoreInputError(
            "The service of a store must create an object only if it does not exist "
            f"(PUT with If-None-Match: *). Got {self.url}, whose service {got}. "
            "Use another service or a newer version of it, or a local store."
        )

    def _no_bucket(self) -> StoreInputError:
        what = "container" if self._scheme == "az" else "bucket"
        return StoreInputError(
            f"The {what} of a store must exist. Got none called {self._bucket!r} for {self.url}. "
            "Create it, or correct the name or the endpoint."
        )

    def _ask(
        self,
        request: Callable[[], Result],
        *,
        beyond: Result | None = None,
        listing: bool = False,
    ) -> Result:
        """Do a request and say what went wrong in our words.

        Args:
            request: What to do.
            beyond: What to return for a range behind the end of an object.
            listing: Whether "not found" is about the bucket; obstore has no own error for that.
        """
        from obstore.exceptions import (
            BaseError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        try:
            return request()
        except FileNotFoundError as error:
            raise FileNotFoundError(_first_line(error)) from error
        except BaseError as error:
            status, text = _status(error), _first_line(error)
            if status == 416 and beyond is not None:
                return beyond
            if status == 404 and listing:
                raise FileNotFoundError(text) from error
            denied = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
            if denied or _METADATA_SERVICE.search(text):
                raise StoreInputError(
                    f"Credentials must allow reading, writing and listing {self.url}. Got: {text}. "
                    f"Set them in the environment ({_CREDENTIALS[self._scheme]})."
                ) from error
            lost = status is None and _UNREACHABLE.search(text) and "builder error" not in text
            if status in _BUSY or lost:
                raise StorageUnavailableError(
                    f"{self.url} must answer. Got, after asking again: {text}. "
                    "Run the same command again later; it continues where it stopped."
                ) from error
            raise FeatureStoreError(
                f"{self.url} must accept the request. Got: {text}. "
                f"Check region, endpoint and credentials ({_CREDENTIALS[self._scheme]})."
            ) from error


_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_BASE_URL",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_ENDPOINT",
}


def _import_obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise StoreInputError(
            "obstore must be installed for s3://, gs:// and az:// stores. Got no such package. "
            "Install the extra: pip install 'svp[objectstore]'."
        ) from error
    return obstore


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _first_line(error: BaseException) -> str:
    """Return obstore's message without its dump of the error, of the service's XML the code."""
    text = str(error).strip()
    code = _SERVICE_CODE.search(text)
    line = text.split("\n")[0].split(": <")[0].strip().rstrip(":.")
    return f"{line} ({code[1]})" if code else line


def _status(error: BaseException | None) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None
