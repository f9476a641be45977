"""What walks through the shards of a bucket found, kept until a shard changes.

One file a shard: 8 bytes of format mark, the SHA-256 of what follows, and JSON, compressed. A file
that does not check out is ignored: the cache can cost time, never truth. What an image is stays
decided by its bytes, which are compared with the pool's digest whenever it is read.
"""

import contextlib
import hashlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import Final

import platformdirs

from feature_store import atomic
from svp.data.failure import MAX_BYTES, ScanFailure
from svp.data.listing import Entry, Listing
from svp.data.remote_file import RemoteFile

_MARK: Final = b"svpshd01"
_DIGEST_BYTES: Final = 32
# Services tell times in seconds: an object that is younger may be replaced without a trace.
_SETTLED_NS: Final = 60 * 10**9


class ShardListings:
    """Listings by shard, in a directory.

    Args:
        path: The directory; made when the first listing is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls) -> "ShardListings":
        """Return the user's cache, under SVP_CACHE_DIR or the system's cache directory."""
        folder = os.environ.get("SVP_CACHE_DIR") or platformdirs.user_cache_dir("svp")
        return cls(Path(folder).expanduser() / "shards")

    def find(self, name: str, shard: RemoteFile) -> Listing | None:
        """Return what `put` kept of the shard as it is now, or None."""
        try:
            data = self._file(name, shard).read_bytes()
            head = len(_MARK) + _DIGEST_BYTES
            body = data[head:]
            if data[:head] != _MARK + hashlib.sha256(body).digest():
                return None
            held = json.loads(zlib.decompress(body))
        except (OSError, ValueError, zlib.error):
            return None
        return Listing(
            [
                Entry(item_id, uri, bytes.fromhex(key), shard.changed_ns, *said)
                for item_id, uri, key, *said in held["entries"]
            ],
            [ScanFailure(*failure) for failure in held["failures"]],
        )

    def put(self, name: str, shard: RemoteFile, listing: Listing) -> None:
        """Keep the listing of a shard that is not about to change; nothing if that fails."""
        if time.time_ns() - shard.changed_ns < _SETTLED_NS:
            return
        held = {
            "entries": [
                [one.id, one.uri, one.key.hex(), one.label, one.split, one.group]
                for one in listing.entries
            ],
            "failures": [[one.id, one.reason, one.kind] for one in listing.failures],
        }
        body = zlib.compress(json.dumps(held).encode(), 1)
        with contextlib.suppress(OSError):
            file = self._file(name, shard)
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(file, _MARK + hashlib.sha256(body).digest() + body)

    def _file(self, name: str, shard: RemoteFile) -> Path:
        # The name is part of the ids, and the limit decides what is left out.
        told = "\0".join(map(str, (shard.path, *shard.stamp, name, MAX_BYTES)))
        digest = hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()
        return self.path / digest[:2] / f"{digest[2:34]}.listing"
