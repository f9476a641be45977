"""Why one item has no bytes or no pixels; never a reason to stop a run."""

import dataclasses
import errno
from typing import Final, Literal

FailureKind = Literal["missing", "transient", "corrupt", "too_large", "refused"]

# Encoded bytes of one item. Far above any photograph; below what would exhaust a worker.
MAX_BYTES: Final = 256 * 2**20

_GONE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
)


class DecodeError(Exception):
    """The bytes of one item are not an image svp reads.

    Attributes:
        kind: `corrupt` or `too_large`; both are lasting, so a retry needs another file.
        reason: One line for people.
    """

    def __init__(self, kind: Literal["corrupt", "too_large"], reason: str) -> None:
        super().__init__(kind, reason)
        self.kind: Literal["corrupt", "too_large"] = kind
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@dataclasses.dataclass(frozen=True, slots=True)
class ScanFailure:
    """One item that a scan left out of the pool.

    Attributes:
        id: The id it would have had; a folder that cannot be listed ends in "/".
        reason: One line for people.
        kind: `missing` (no such file), `transient` (a retry may work), `corrupt` (its archive
            member is damaged), `too_large`, or `refused` (an unsafe or unusable entry).
    """

    id: str
    reason: str
    kind: FailureKind


def failure_of(error: OSError | DecodeError) -> tuple[FailureKind, str]:
    """Return kind and reason of what `Source.read` or `decode_image` raised for one item."""
    if isinstance(error, DecodeError):
        return error.kind, error.reason
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return ("missing" if error.errno in _GONE else "transient"), reason
