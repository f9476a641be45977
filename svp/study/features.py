"""A study's embeddings as tensors, split into what may be labelled and what only evaluates.

Shapes: M = items with an embedding on one side, d = features.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from svp.study.study import Study

if TYPE_CHECKING:
    import torch

    from feature_store.pool import Pool
    from feature_store.store import FeatureStore

#: Splits that are never labelled, by the names sources use.
EVALUATION_SPLITS: Final[Mapping[str, str]] = {
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

Int64Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Items with an embedding.

    Attributes:
        ids: Their ids, ascending.
        uris: What the source reads them by.
        labels: The source's own labels.
        x_Md: Embeddings as stored, on the CPU.
        dropped: Items of this side that could not be embedded.
    """

    ids: tuple[str, ...]
    uris: tuple[str, ...]
    labels: tuple[str | None, ...]
    x_Md: "torch.Tensor"
    dropped: int

    def keys(self) -> npt.NDArray[np.uint64]:
        """Return one number per item that depends on its id alone."""
        from svp.strategies.keys import keys_of

        return keys_of(self.ids)


def split_rows(pool: "Pool") -> dict[str, Int64Array]:
    """Return the rows of a pool per side: `train` (also items without split), `val`, `test`."""
    splits = pool.splits or (None,) * len(pool)
    sides: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for row, split in enumerate(splits):
        sides[EVALUATION_SPLITS.get(split or "", "train")].append(row)
    return {side: np.asarray(rows, dtype=np.int64) for side, rows in sides.items()}


def read_features(
    study: Study,
    store: "FeatureStore",
    pool: "Pool",
    encoder_id: str,
    rows: Sequence[int] | Int64Array,
) -> Features:
    """Read the embeddings of some rows of the study's pool.

    Raises:
        InputError: Some of them were never embedded; the message names the command that does it.
    """
    import torch

    from feature_store.errors import MissingRowsError
    from svp.embed import load_features
    from svp.errors import InputError

    part = pool.subset(np.asarray(rows, dtype=np.int64))
    try:
        kept_M, x_Md = load_features(store, part, encoder_id)
    except MissingRowsError as error:
        raise InputError(
            f"Every item must be embedded first. Got {error.missing} of {error.total} without an "
            f"embedding. Run: svp embed {study.path}"
        ) from error
    labels = part.labels or (None,) * len(part)
    return Features(
        ids=tuple(part.ids[row] for row in kept_M),
        uris=tuple(part.uris[row] for row in kept_M),
        labels=tuple(labels[row] for row in kept_M),
        x_Md=torch.from_numpy(np.ascontiguousarray(x_Md)),
        dropped=len(part) - len(kept_M),
    )


def place(x_Md: "torch.Tensor", device: str) -> "torch.Tensor":
    """Return embeddings on `device` if they take less than half of its free memory.

    Strategies read the pool again and again; left on the CPU it travels tile by tile each time,
    which is slower but never fails.
    """
    import torch

    target = torch.device(device)
    if target.type != "cuda":
        return x_Md
    free, _ = torch.cuda.mem_get_info(target)
    return x_Md.to(target) if x_Md.nbytes < free / 2 else x_Md
