"""Which item a labelling tool means, when it kept a file name instead of the id."""

import functools
from collections.abc import Callable, Iterable, Mapping

from svp.errors import InputError


def _bare(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.rpartition('.')[0] or last}"


class Names:
    """Finds items by id, by digest, or by the end of a path; never by a guess.

    Args:
        ids: Ids of the study's items.
        digests: Returns the SHA-256 of items by id; asked only where ids and names are missing.
    """

    def __init__(
        self, ids: Iterable[str], digests: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        self._ids = frozenset(ids)
        self._digests = digests

    @functools.cached_property
    def _by_last(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for identifier in sorted(self._ids):
            found.setdefault(_bare(identifier).rpartition("/")[2], []).append(identifier)
        return found

    @functools.cached_property
    def _by_digest(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for identifier, digest in sorted((self._digests() if self._digests else {}).items()):
            found.setdefault(digest, []).append(identifier)
        return found

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._ids

    def of_digest(self, digest: str) -> str | None:
        """Return the item with these bytes, None if there is none or if there are copies."""
        if not digest:
            return None
        found = self._by_digest.get(digest, [])
        return found[0] if len(found) == 1 else None

    def of_path(self, path: str) -> str:
        """Return the item that a path means, or the path itself if it means none.

        The id itself comes first; then the longest id that the path ends in; then the one id that
        ends in the path. Extensions are ignored where the path has none.

        Raises:
            InputError: Several items fit equally well.
        """
        if path in self._ids:
            return path
        name = path.replace("\\", "/").removeprefix("./")
        last = name.rpartition("/")[2]
        near = {*self._by_last.get(_bare(last), ()), *self._by_last.get(last, ())}
        inside = sorted(
            (i for i in near if any(f"/{name}".endswith(f"/{form}") for form in {i, _bare(i)})),
            key=len,
        )
        if inside:
            fits = [i for i in inside if len(_bare(i)) == len(_bare(inside[-1]))]
        else:
            fits = sorted(
                i for i in near if any(form.endswith(f"/{name}") for form in (i, _bare(i)))
            )
        if len(fits) > 1:
            raise InputError(
                f"A file name must mean one item. Got {path!r}, which may be {fits[0]} or "
                f"{fits[1]}. Keep the ids that svp wrote; nothing was imported."
            )
        return fits[0] if fits else path
