"""What a report shows of images: the last selections, and the largest groups of copies."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from feature_store.errors import FeatureStoreError
from svp.errors import InputError
from svp.progress import Progress
from svp.report.content import Gallery, GalleryItem
from svp.report.evidence import Copies, CopyGroup, CopyItem
from svp.report.page import MAX_ITEMS
from svp.report.quantity import number
from svp.report.thumbnail import Thumbnail, make_thumbnail
from svp.study.record import RoundResult
from svp.study.study import Study

if TYPE_CHECKING:
    from svp.data import Source
    from svp.study.duplicates import DuplicateGroup

#: Rounds before the last one that a report shows, and items of each.
EARLIER_ROUNDS: Final = 3
EARLIER_ITEMS: Final = 16
#: Groups of copies, and items of each.
COPY_GROUPS: Final = 6
COPY_ITEMS: Final = 8
# Comparing everything with everything: so many take seconds on one core.
LARGEST_SEARCH: Final = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class Pictures:
    """Thumbnails of a study's images; none where the images live on another machine."""

    source: "Source | None"

    @classmethod
    def of(cls, study: Study) -> "Pictures":
        """Open the study's source if it is there."""
        try:
            return cls(study.source())
        except InputError:
            # Everything else can still be shown.
            return cls(None)

    def thumbnail(self, uri: str) -> Thumbnail | None:
        """Return a small picture; None where the image cannot be read."""
        if self.source is None:
            return None
        from svp.data import DecodeError, decode_image

        try:
            return make_thumbnail(decode_image(self.source.read(uri)))
        except (OSError, DecodeError, InputError):
            return None


def read_gallery(
    one: RoundResult,
    labels: Mapping[str, str],
    pictures: Pictures,
    progress: Progress,
    *,
    limit: int = MAX_ITEMS,
) -> Gallery:
    """Return the first `limit` items of a round's selection, with thumbnails."""
    shown = one.picks[:limit]
    items = []
    with progress.task("thumbnails", len(shown), "images") as task:
        for pick in shown:
            items.append(
                GalleryItem(
                    id=pick.id,
                    rank=pick.rank,
                    utility=pick.utility,
                    reason=pick.reason,
                    predicted=pick.predicted or "",
                    confidence=pick.confidence,
                    label=labels.get(pick.id, ""),
                    thumbnail=pictures.thumbnail(pick.uri),
                )
            )
            task.advance(1)
    return Gallery(
        round=one.number,
        strategy=one.receipt["strategy"]["name"],
        items=tuple(items),
        total=len(one.picks),
    )


def read_earlier(
    done: Sequence[RoundResult],
    labels: Mapping[str, str],
    pictures: Pictures,
    progress: Progress,
) -> tuple[Gallery, ...]:
    """Return the beginnings of the selections before the last one, newest first."""
    before = done[-1 - EARLIER_ROUNDS : -1]
    return tuple(
        read_gallery(one, labels, pictures, progress, limit=EARLIER_ITEMS)
        for one in reversed(before)
    )


def read_copies(
    study: Study, size: int | None, pictures: Pictures, progress: Progress, *, quick: bool
) -> tuple[Copies | None, str]:
    """Look for copies in the pool.

    Args:
        study: The study.
        size: Items of its pool; None before it was embedded.
        pictures: Of its images.
        progress: Where to report.
        quick: Do not look.

    Returns:
        What was found, or None and why nobody looked.
    """
    from svp.study.duplicates import find_duplicates

    command = f"svp pool duplicates {study.path}"
    if size is None or study.embedded() is None:
        return None, f"Images are compared once they are embedded: svp embed {study.path}"
    if quick:
        return None, f"Left out to be quick. To look: {command}"
    if size > LARGEST_SEARCH:
        return None, (
            f"Left out: {number(size)} items are more than the {number(LARGEST_SEARCH)} that a "
            f"report compares. To look: {command}"
        )
    try:
        found = find_duplicates(study, progress=progress)
        pool = study.scan().pool
    except (InputError, FeatureStoreError) as error:
        return None, f"Could not look: {' '.join(str(error).split())}"
    uri_of = dict(zip(pool.ids, pool.uris, strict=True))
    return (
        Copies(
            threshold=found.threshold,
            items=found.items,
            exact=found.exact,
            near=found.near,
            waste=found.waste,
            labels_differ=found.labels_differ,
            sides_differ=found.sides_differ,
            total=len(found.groups),
            groups=tuple(_group(one, uri_of, pictures) for one in found.groups[:COPY_GROUPS]),
        ),
        "",
    )


def _group(group: "DuplicateGroup", uri_of: Mapping[str, str], pictures: Pictures) -> CopyGroup:
    def picture(name: str) -> Thumbnail | None:
        return pictures.thumbnail(uri_of[name]) if name in uri_of else None

    kept = CopyItem(
        id=group.representative,
        kind="kept",
        label=group.label or "",
        side=group.side,
        thumbnail=picture(group.representative),
    )
    others = tuple(
        CopyItem(
            id=copy.id,
            kind=copy.kind,
            cosine=copy.cosine,
            label=copy.label or "",
            side=copy.side,
            thumbnail=picture(copy.id),
        )
        for copy in group.copies[: COPY_ITEMS - 1]
    )
    return CopyGroup(
        items=(kept, *others),
        size=1 + len(group.copies),
        labels_differ=group.labels_differ,
        sides_differ=group.sides_differ,
    )
