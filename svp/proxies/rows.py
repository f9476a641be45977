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

    def next(self, count: int) -> torch.Tensor:
        """Return the next `count` rows, (M, count)."""
        left = self._left_MK
        while left is None or left.shape[1] < count:
            fresh = self.epoch()
            left = fresh if left is None else torch.cat([left, fresh], dim=1)
        self._left_MK = left[:, count:]
        return left[:, :count]


class Source:
    """Gathers standardised rows of a step."""

    def __init__(
        self,
        x_Ld: torch.Tensor,
        kept_L: torch.Tensor,
        config: NetworkConfig,
        *,
        standardiser: Standardiser,
        views: StoredViews | None,
    ) -> None:
        self._mean_d = standardiser.mean_d.to(x_Ld.device)
        self._scale_d = standardiser.std_d.to(x_Ld.device).reciprocal()
        self._weak: tuple[torch.Tensor, ...] = ()
        self._strong: tuple[torch.Tensor, ...] = ()
        self.unlabelled = 0
        if not config.reads_views:
            self._x_Ld = self._standardised(x_Ld[kept_L])
            return
        wants_strong = config.trainer != "pseudolabel"
        if views is None or not views.weak or (wants_strong and not views.strong):
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

    def _standardised(self, x: torch.Tensor) -> torch.Tensor:
        # Subtracting first keeps the digits of dimensions whose mean is far from 0.
        return x.to(torch.float32).sub(self._mean_d).mul_(self._scale_d)

    def _gather(self, x_Nd: torch.Tensor, rows_MB: torch.Tensor) -> torch.Tensor:
        rows = x_Nd.index_select(0, rows_MB.flatten())
        return rows.view(*rows_MB.shape, x_Nd.shape[1])

    def labelled_rows(self, rows_MB: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return labelled rows, (M, B, d): plain ones, or those of the epoch's weak view."""
        if not self._weak:
            return self._gather(self._x_Ld, rows_MB)
        view = self._weak[epoch % len(self._weak)]
        return self._standardised(self._gather(view, self._labelled_L[rows_MB]))

    def unlabelled_rows(
        self, rows_Mu: torch.Tensor, epoch: int, strong: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return unlabelled rows under the epoch's weak and strong view, each (M, u, d)."""
        rows = self._unlabelled_U[rows_Mu]
        weak = self._standardised(self._gather(self._weak[epoch % len(self._weak)], rows))
        if not strong:
            return weak, None
        view = self._strong[epoch % len(self._strong)]
        return weak, self._standardised(self._gather(view, rows))
