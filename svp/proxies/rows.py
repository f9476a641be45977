"""Rows of a training step, gathered and standardised where the tensors already sit.

Shapes: M = members, N = pool, L = labelled rows, U = unlabelled rows, B = labelled rows of a step,
u = unlabelled rows of a step, d = features.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from svp.errors import InputError
from svp.proxies.network import NetworkConfig
from svp.proxies.standardiser import Standardiser


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredViews:
    """Embeddings of one pool under random views, and who is labelled.

    Epoch e trains on the views number e modulo how many there are.

    Attributes:
        weak: Weak views, each (N, d), any floating dtype.
        strong: Strong views, each (N, d).
        labelled_L: Pool rows of the labelled items, in the order of the labels, int64.
        unlabelled_U: Pool rows of the items to learn from without labels, int64.
    """

    weak: tuple[torch.Tensor, ...]
    strong: tuple[torch.Tensor, ...]
    labelled_L: torch.Tensor
    unlabelled_U: torch.Tensor

    def to(self, device: torch.device) -> "StoredViews":
        """Return them on `device`."""
        return StoredViews(
            weak=tuple(view.to(device) for view in self.weak),
            strong=tuple(view.to(device) for view in self.strong),
            labelled_L=self.labelled_L.to(device),
            unlabelled_U=self.unlabelled_U.to(device),
        )


class Orders:
    """Streams of rows, one per member: every permutation is used up before the next is drawn."""

    def __init__(
        self, rows: int, generators: Sequence[torch.Generator], *, resample: bool = False
    ) -> None:
        self._rows, self._generators = rows, generators
        self._sample_ML = None
        if resample:
            self._sample_ML = self._stack(
                lambda one: torch.randint(rows, (rows,), generator=one, device=one.device)
            )
        self._left_MK: torch.Tensor | None = None

    def _stack(self, draw: Callable[[torch.Generator], torch.Tensor]) -> torch.Tensor:
        return torch.stack([draw(one) for one in self._generators])

    def epoch(self) -> torch.Tensor:
        """Return an order of all rows, (M, L)."""
        order_ML = self._stack(
            lambda one: torch.randperm(self._rows, generator=one, device=one.device)
        )
        return order_ML if self._sample_ML is None else self._sample_ML.gather(1, order_ML)

    def restart(self) -> None:
        """Forget what is left of the permutation in use."""
        self._left_MK = None

    def next(self, count: int) -> torch.Tensor:
        """Return the next `count` rows, (M, count)."""
        left = self._left_MK
        while left is None or left.shape[1] < count:
            fresh = self.epoch()
            left = fresh if left is None else torch.cat([left, fresh], dim=1)
        self._left_MK = left[:, count:]
        return left[:, :count]


class Source:
    """Gathers standardised rows of a step into a buffer that every step uses again."""

    def __init__(
        self,
        x_Ld: torch.Tensor,
        kept_L: torch.Tensor,
        config: NetworkConfig,
        *,
        standardiser: Standardiser,
        views: StoredViews | None,
        members: int,
    ) -> None:
        self._mean_d = standardiser.mean_d.to(x_Ld.device)
        self._scale_d = standardiser.std_d.to(x_Ld.device).reciprocal()
        self._weak: tuple[torch.Tensor, ...] = ()
        self._strong: tuple[torch.Tensor, ...] = ()
        self._buffer_MRd = x_Ld.new_empty((members, 0, x_Ld.shape[1]))
        self.unlabelled = 0
        if not config.reads_views:
            self._x_Ld = self._standardise_(x_Ld[kept_L])
            return
        self._uses_strong = config.trainer != "pseudolabel"
        if views is None or not views.weak or (self._uses_strong and not views.strong):
            raise InputError(
                f"A proxy trained by {config.trainer} must have stored weak and strong views. Got "
                "none. Embed them: svp embed --views eval,weak:2,strong:2"
            )
        if len(views.labelled_L) != len(x_Ld):
            raise InputError(
                f"Views must name the pool row of each of the {len(x_Ld)} labelled items. Got "
                f"{len(views.labelled_L)}. Pass the rows the labels belong to."
            )
        views = views.to(x_Ld.device)
        self._weak, self._strong = views.weak, views.strong
        self._labelled_L = views.labelled_L[kept_L]
        self._unlabelled_U = views.unlabelled_U
        self.unlabelled = len(views.unlabelled_U)

    def _standardise_(self, x: torch.Tensor) -> torch.Tensor:
        # Subtracting first keeps the digits of dimensions whose mean is far from 0.
        return x.sub_(self._mean_d).mul_(self._scale_d)

    def _gather(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Return rows of several tables, one after the other, (M, R, d); the next call reuses it.

        Args:
            parts: Tables (N, d), and the rows (M, n) of each.
        """
        count = sum(rows_Mn.shape[1] for _, rows_Mn in parts)
        if self._buffer_MRd.shape[1] < count:
            members, _, dim = self._buffer_MRd.shape
            self._buffer_MRd = self._mean_d.new_empty((members, count, dim))
        start = 0
        for x_Nd, rows_Mn in parts:
            stop = start + rows_Mn.shape[1]
            for into_nd, rows_n in zip(self._buffer_MRd[:, start:stop], rows_Mn, strict=True):
                if x_Nd.dtype == into_nd.dtype:
                    torch.index_select(x_Nd, 0, rows_n, out=into_nd)
                else:
                    into_nd.copy_(x_Nd.index_select(0, rows_n))
            start = stop
        return self._buffer_MRd[:, :count]

    def labelled_rows(self, rows_MB: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return labelled rows, (M, B, d): plain ones, or those of the epoch's weak view."""
        if not self._weak:
            return self._gather([(self._x_Ld, rows_MB)])
        weak = self._weak[epoch % len(self._weak)]
        return self._standardise_(self._gather([(weak, self._labelled_L.take(rows_MB))]))

    def all_rows(self, rows_MB: torch.Tensor, rows_Mu: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return the rows of a semi-supervised step, (M, R, d): what is learnt from comes first.

        Labelled rows, then strong views of unlabelled ones where the trainer uses them, then
        their weak views, all of the epoch's views.
        """
        weak = self._weak[epoch % len(self._weak)]
        unlabelled_Mu = self._unlabelled_U.take(rows_Mu)
        parts = [(weak, self._labelled_L.take(rows_MB)), (weak, unlabelled_Mu)]
        if self._uses_strong:
            parts.insert(1, (self._strong[epoch % len(self._strong)], unlabelled_Mu))
        return self._standardise_(self._gather(parts))
