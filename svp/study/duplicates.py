"""Copies in a study's pool: equal bytes, and images that the encoder hardly tells apart.

Shapes: N = items of the pool, U = distinct images, M = those with an embedding, d = features.
"""

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.study.features import split_rows
from svp.study.labels import read_labels
from svp.study.study import Study

if TYPE_CHECKING:
    import torch

    from feature_store.pool import Pool
    from feature_store.store import FeatureStore

Int64Array = npt.NDArray[np.int64]
DEFAULT_THRESHOLD: Final = 0.98


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One item of a group.

    Attributes:
        id: The item.
        kind: `exact` if its bytes are those of the representative, else `near`.
        cosine: Of its embedding and the representative's; None where either has none. It may be
            below the threshold: groups are chained.
        label: What people, or else the source, say of it.
        side: `train`, `val` or `test`.
    """

    id: str
    kind: Literal["exact", "near"]
    cosine: float | None
    label: str | None
    side: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateGroup:
    """Items that are copies of each other.

    Attributes:
        representative: The one to keep: with a label of people if any has one, then with the
            smallest id; items that may be labelled go before those that only evaluate.
        copies: The others, by id.
        label: The representative's label.
        side: The representative's side.
        waste: Budget units that labelling every item of the group would spend on copies.
        labels_differ: Whether two of its items have different labels.
        sides_differ: Whether it has items on more than one side, so that evaluation would be on
            images trained on.
    """

    representative: str
    copies: tuple[Copy, ...]
    label: str | None
    side: str
    waste: int
    labels_differ: bool
    sides_differ: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """What a search found.

    Attributes:
        threshold: Least cosine of a near pair.
        items: Items of the pool.
        compared: Distinct images with an embedding, which were compared.
        exact: Items whose bytes an earlier item of the pool has, too.
        near: Further items that only embeddings show as copies.
        waste: Budget units that labelling everything would spend on copies.
        labels_differ: Groups with different labels.
        sides_differ: Groups on more than one side.
        groups: Largest first, then by representative.
    """

    threshold: float
    items: int
    compared: int
    exact: int
    near: int
    waste: int
    labels_differ: int
    sides_differ: int
    groups: tuple[DuplicateGroup, ...]


def find_duplicates(
    study: Study,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Duplicates:
    """Group the copies of a study's pool; items without an embedding are compared by bytes only.

    Raises:
        InputError: The study was never embedded, or the threshold is out of range.
    """
    from svp.strategies.duplicates import check_threshold, cosines

    check_threshold(threshold)
    progress = progress if progress is not None else Silent()
    store, encoder_id = study.open_store(), study.encoder_id()
    pool = study.scan(progress=progress).pool
    if not len(pool):
        raise InputError(f"A pool must have items. Got none for {study.path}. Check the source.")
    image_N, place_N, x_Md = _images(study, store, pool, encoder_id)
    group_N = _groups(image_N, place_N, x_Md, threshold, device, progress)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(group_N.tolist()):
        members[group].append(row)
    builder = _Builder(pool, read_labels(study), image_N)
    rows = [builder.ordered(group) for group in members.values() if len(group) > 1]
    pairs = [(group[0], row) for group in rows for row in group[1:]]
    known = [(a, b) for a, b in pairs if place_N[a] >= 0 and place_N[b] >= 0]
    ends = np.asarray(known, dtype=np.int64).reshape(-1, 2)
    values = cosines(x_Md, place_N[ends[:, 0]], place_N[ends[:, 1]]).tolist()
    cosine_of = dict(zip(known, values, strict=True))
    groups = sorted(
        (builder.group(group, cosine_of) for group in rows),
        key=lambda group: (-len(group.copies), group.representative),
    )
    exact = len(pool) - (int(image_N.max()) + 1)
    return Duplicates(
        threshold=threshold,
        items=len(pool),
        compared=len(x_Md),
        exact=exact,
        near=sum(len(group.copies) for group in groups) - exact,
        waste=sum(group.waste for group in groups),
        labels_differ=sum(group.labels_differ for group in groups),
        sides_differ=sum(group.sides_differ for group in groups),
        groups=tuple(groups),
    )


def _images(
    study: Study, store: "FeatureStore", pool: "Pool", encoder_id: str
) -> tuple[Int64Array, Int64Array, "torch.Tensor"]:
    """Read the embeddings of distinct images.

    Returns:
        Number of every item's image, (N,); its row among the embeddings or -1, (N,); the
        embeddings, (M, d).
    """
    import torch

    from feature_store.errors import MissingRowsError
    from svp.embed import load_features

    digests_N = np.ascontiguousarray(pool.digests).view("V32").reshape(-1)
    _, first_U, image_N = np.unique(digests_N, return_index=True, return_inverse=True)
    # Each distinct image once: equal bytes need no comparing.
    rows_U = np.sort(first_U).astype(np.int64)
    try:
        kept_M, x_Md = load_features(store, pool.subset(rows_U), encoder_id)
    except MissingRowsError as error:
        raise InputError(
            f"Every item must be embedded first. Got {error.missing} of {error.total} without an "
            f"embedding. Run: svp embed {study.path}"
        ) from error
    place_of_image = np.full(len(rows_U), -1, dtype=np.int64)
    place_of_image[image_N[rows_U[kept_M]]] = np.arange(len(kept_M))
    image_N = image_N.reshape(-1).astype(np.int64)
    return image_N, place_of_image[image_N], torch.from_numpy(np.ascontiguousarray(x_Md))


def _groups(
    image_N: Int64Array,
    place_N: Int64Array,
    x_Md: "torch.Tensor",
    threshold: float,
    device: str,
    progress: Progress,
) -> Int64Array:
    """Return a number per item, (N,), equal for copies."""
    import torch

    from svp.strategies.base import Budget
    from svp.strategies.duplicates import near_duplicate_groups

    budget = Budget(device=torch.device(device))
    near_M = near_duplicate_groups(x_Md, threshold, budget, progress=progress)
    # Images without an embedding are groups of their own, behind all others.
    alone_N = len(near_M) + image_N
    if not len(near_M):
        return alone_N
    return np.where(place_N >= 0, near_M[place_N], alone_N)


def duplicates_csv(found: Duplicates) -> bytes:
    """Return a table of all groups, one item a line, the representative first."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["group", "id", "representative", "kind", "cosine", "label", "side"])
    for number, group in enumerate(found.groups):
        first = group.representative
        table.writerow([number, first, first, "representative", "", group.label or "", group.side])
        for copy in group.copies:
            cosine = "" if copy.cosine is None else f"{copy.cosine:.6f}"
            table.writerow([number, copy.id, first, copy.kind, cosine, copy.label or "", copy.side])
    return text.getvalue().encode()


class _Builder:
    def __init__(self, pool: "Pool", labels: Mapping[str, str], image_N: Int64Array) -> None:
        self._pool, self._labels, self._image_N = pool, labels, image_N
        self._side = {
            int(row): side for side, rows in split_rows(pool).items() for row in rows.tolist()
        }

    def ordered(self, rows: Sequence[int]) -> list[int]:
        """Return a group's rows, the representative first."""
        first = min(
            rows,
            key=lambda row: (
                self._side[row] != "train",
                self._pool.ids[row] not in self._labels,
                self._pool.ids[row],
            ),
        )
        return [first, *(row for row in rows if row != first)]

    def group(
        self, rows: Sequence[int], cosine_of: Mapping[tuple[int, int], float]
    ) -> DuplicateGroup:
        first, *others = rows
        labels = {label for row in rows if (label := self._label(row)) is not None}
        sides = [self._side[row] for row in rows]
        return DuplicateGroup(
            representative=self._pool.ids[first],
            copies=tuple(
                Copy(
                    id=self._pool.ids[row],
                    kind="exact" if self._image_N[row] == self._image_N[first] else "near",
                    cosine=cosine_of.get((first, row)),
                    label=self._label(row),
                    side=self._side[row],
                )
                for row in others
            ),
            label=self._label(first),
            side=self._side[first],
            waste=max(0, sides.count("train") - 1),
            labels_differ=len(labels) > 1,
            sides_differ=len(set(sides)) > 1,
        )

    def _label(self, row: int) -> str | None:
        own = self._labels.get(self._pool.ids[row])
        if own is not None or self._pool.labels is None:
            return own
        return self._pool.labels[row]


def write_duplicates(found: Duplicates, path: Path) -> None:
    """Write `duplicates_csv` to a file, as a whole or not at all."""
    from feature_store.atomic import write_bytes

    write_bytes(path, duplicates_csv(found))
