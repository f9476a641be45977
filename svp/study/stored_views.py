"""Stored views of a study's items, for proxies and strategies that read them.

Shapes: M = items with an embedding on one side, L = labelled, U = unlabelled, d = features.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from svp.errors import InputError
from svp.study.study import Study

if TYPE_CHECKING:
    import torch

    from feature_store.pool import Pool
    from feature_store.store import FeatureStore
    from svp.proxies import ProxyConfig, StoredViews
    from svp.strategies.base import Strategy

Int64Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ItemViews:
    """Embeddings of the same items under random views.

    Attributes:
        weak: Each (M, d) as stored, on the CPU.
        strong: Likewise.
    """

    weak: tuple["torch.Tensor", ...]
    strong: tuple["torch.Tensor", ...]

    def shown(self, strategy: "Strategy") -> "tuple[torch.Tensor, ...]":
        """Return what a strategy sees: the weak views, or the strong ones where there are no weak.

        Nothing where the strategy reads no views.
        """
        return (self.weak or self.strong) if "views" in strategy.needs else ()

    def split(self, labelled_L: Int64Array) -> "StoredViews":
        """Return what a proxy trains on: every item that is not labelled is unlabelled."""
        import torch

        from svp.proxies import StoredViews

        count = len((*self.weak, *self.strong)[0])
        unlabelled_U = np.setdiff1d(np.arange(count), labelled_L)
        return StoredViews(
            weak=self.weak,
            strong=self.strong,
            labelled_L=torch.from_numpy(np.asarray(labelled_L, dtype=np.int64)),
            unlabelled_U=torch.from_numpy(unlabelled_U),
        )


def wants_views(config: "ProxyConfig") -> bool:
    """Return whether a proxy trains on stored views."""
    from svp.proxies import NetworkConfig

    return isinstance(config, NetworkConfig) and config.reads_views


def read_views(
    study: Study,
    store: "FeatureStore",
    pool: "Pool",
    encoder_id: str,
    ids: Sequence[str],
    config: "ProxyConfig",
    strategies: "Sequence[Strategy]" = (),
) -> ItemViews | None:
    """Read the views that a proxy or a strategy works on; None if neither wants any.

    Args:
        study: The study, whose `[encoder] views` names them.
        store: Its store.
        pool: Its images.
        encoder_id: Whose embeddings.
        ids: Items that have an embedding.
        config: Settings of the proxy.
        strategies: What may choose.

    Raises:
        InputError: The study does not name the views that are wanted, or items lack one.
    """
    trained_on = wants_views(config)
    if not trained_on and not any("views" in strategy.needs for strategy in strategies):
        return None
    import torch

    from feature_store.errors import MissingRowsError
    from svp.embed import load_features, parse_views

    named = parse_views(study.config.encoder.views)
    kinds = {
        kind: [name for name in named if name.startswith(f"{kind}-")] for kind in ("weak", "strong")
    }
    if not any(kinds.values()):
        raise InputError(
            "encoder.views must name stored views for a strategy that compares them. Got "
            f'{", ".join(named)}. Write views = ["eval", "weak:2"] and run: svp embed {study.path}'
        )
    if trained_on and not all(kinds.values()):
        raise InputError(
            "encoder.views must name weak and strong views for a semi-supervised proxy. Got "
            f'{", ".join(named)}. Write views = ["eval", "weak:2", "strong:2"] and run: '
            f"svp embed {study.path}"
        )
    row_of = {key: row for row, key in enumerate(pool.ids)}
    part = pool.subset(np.asarray([row_of[key] for key in ids], dtype=np.int64))
    read: dict[str, list[torch.Tensor]] = {"weak": [], "strong": []}
    for kind, names in kinds.items():
        for name in names:
            try:
                kept_M, x_Md = load_features(store, part, encoder_id, name)
            except MissingRowsError as error:
                raise InputError(
                    f"Every item must have the view {name}. Got {error.missing} of {error.total} "
                    f"without it. Run: svp embed {study.path}"
                ) from error
            if len(kept_M) != len(part):
                raise InputError(
                    f"Every embedded item must have the view {name}. Got "
                    f"{len(part) - len(kept_M)} whose images could not be read for it. "
                    f"Run: svp embed {study.path} --retry"
                )
            read[kind].append(torch.from_numpy(np.ascontiguousarray(x_Md)))
    return ItemViews(weak=tuple(read["weak"]), strong=tuple(read["strong"]))
