"""What the rest of svp knows of where images come from: list them once, read one by one."""

import dataclasses
from typing import Protocol

from feature_store.pool import Pool
from svp.data.digest_cache import DigestCache
from svp.data.failure import ScanFailure
from svp.progress import Progress


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a scan of a source found.

    Attributes:
        pool: The readable items, ordered by id.
        failures: The others, ordered by id.
        reread: How many items had their bytes read, because the digest cache did not know them.
    """

    pool: Pool
    failures: tuple[ScanFailure, ...]
    reread: int


class Source(Protocol):
    """Where images come from. Implementations are thread-safe and can be pickled."""

    @property
    def uri(self) -> str:
        """Where it is, for people and records."""

    def scan(self, *, cache: DigestCache | None = None, progress: Progress = ...) -> Scan:
        """List the items and digest their encoded bytes.

        Args:
            cache: Remembers digests of unchanged files; None reads every byte.
            progress: Where to report.

        Raises:
            InputError: If the source as a whole is unusable; single items become failures.
        """

    def read(self, uri: str) -> bytes:
        """Return the encoded bytes of one item.

        Args:
            uri: One of `Pool.uris`.

        Raises:
            OSError: If it is gone or cannot be read now.
            DecodeError: If its archive member is damaged.
            InputError: If `uri` leaves the source.
        """
