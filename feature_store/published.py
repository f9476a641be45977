"""What is published in a table at one moment: its segments, their digests and what failed.

Shapes: R = rows of all segments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_store import layout
from feature_store.index import DigestIndex
from feature_store.manifest import Failure
from feature_store.reader import SegmentReader
from feature_store.threads import mapped

_NO_DIGESTS: Final = np.zeros((0, layout.DIGEST_BYTES), np.uint8)


@dataclass(frozen=True, eq=False)
class Published:
    """The published segments at one moment, in order of their ranks."""

    readers: tuple[SegmentReader, ...] = ()
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """First row of each segment among those of all."""
    digests: NDArray[np.uint8] = field(default_factory=lambda: _NO_DIGESTS)
    index: DigestIndex = field(default_factory=lambda: DigestIndex(_NO_DIGESTS))
    failures: Mapping[bytes, Failure] = field(default_factory=dict)
    """Of digests without a row."""
    failed: DigestIndex = field(default_factory=lambda: DigestIndex(_NO_DIGESTS))
    """The same digests."""

    def renewed(self, readers: tuple[SegmentReader, ...], parallel: int) -> "Published":
        """Return the same for the segments of now; only digests of new ones are read.

        Args:
            readers: In order of their ranks.
            parallel: How many segments to read at a time.
        """
        # What is known already stays one array: a table of 1e8 rows holds 3.2 GB of digests.
        parts = dict(zip(self.readers, np.split(self.digests, self.offsets[1:]), strict=False))
        fresh = [reader for reader in readers if reader not in parts]
        parts |= dict(zip(fresh, mapped(SegmentReader.digests, fresh, parallel), strict=True))
        digests = [parts[reader] for reader in readers]
        # Not copied where it is one: the digests of a million rows are 32 MB.
        joined = digests[0] if len(digests) == 1 else np.concatenate([_NO_DIGESTS, *digests])
        # The rows of a plan are distinct, those of several segments need not be.
        index = DigestIndex(joined, distinct=len(digests) == 1)
        failures = count_failures(readers)
        failed = np.frombuffer(b"".join(failures), np.uint8).reshape(-1, layout.DIGEST_BYTES)
        failed = failed[index.find(failed) < 0]
        return Published(
            readers=readers,
            offsets=row_offsets(readers),
            digests=joined,
            index=index,
            failures={digest.tobytes(): failures[digest.tobytes()][0] for digest in failed},
            failed=DigestIndex(failed),
        )


def row_offsets(readers: tuple[SegmentReader, ...]) -> NDArray[np.int64]:
    """Return the first row of each segment among those of all."""
    rows = [reader.manifest.rows for reader in readers]
    return np.cumsum([0, *rows])[:-1].astype(np.int64)


def count_failures(readers: tuple[SegmentReader, ...]) -> dict[bytes, tuple[Failure, int]]:
    """Return the newest reason and the number of failures of each digest that ever failed."""
    failures: dict[bytes, tuple[Failure, int]] = {}
    counted: set[tuple[bytes, int]] = set()
    # The attempt orders them in time, so the last reason stays.
    for reader in sorted(readers, key=lambda reader: reader.manifest.attempt):
        for entry in reader.manifest.failures:
            digest, attempt = bytes.fromhex(entry.digest), reader.manifest.attempt
            count = failures[digest][1] if digest in failures else 0
            # A merged segment repeats the failures of its sources; they happened once.
            failures[digest] = (entry.failure, count + ((digest, attempt) not in counted))
            counted.add((digest, attempt))
    return failures
