"""Several sources read as one."""

from collections.abc import Sequence

from svp.data.digest_cache import DigestCache
from svp.data.scanner import SILENT, SingleSource, scan_sources
from svp.data.source import Scan
from svp.errors import InputError
from svp.progress import Progress


class JoinedSource:
    """Sources whose ids are disjoint; a URI is the source's number, a colon and its own URI.

    Args:
        sources: At least two.
    """

    def __init__(self, sources: Sequence[SingleSource]) -> None:
        self._sources = tuple(sources)

    @property
    def uri(self) -> str:
        """The places of all sources."""
        return " + ".join(source.uri for source in self._sources)

    def scan(self, *, cache: DigestCache | None = None, progress: Progress = SILENT) -> Scan:
        """List and digest the items of every source; see `Source.scan`.

        Raises:
            InputError: Also if two sources hold the same id.
        """
        numbered = [(f"{number}:", source) for number, source in enumerate(self._sources)]
        return scan_sources(numbered, cache, progress)

    def read(self, uri: str) -> bytes:
        """Return the bytes of one item; see `Source.read`."""
        number, colon, rest = uri.partition(":")
        if not colon or not number.isdecimal() or int(number) >= len(self._sources):
            raise InputError(
                f"An item of joined sources must be named NUMBER:URI with a number below "
                f"{len(self._sources)}. Got {uri!r}. Scan the same sources again."
            )
        return self._sources[int(number)].read(rest)
