"""A pool with a linear head given by its weights, for tests of strategies that look at the head."""

import numpy as np
import torch

from svp.proxies import Head
from svp.strategies.base import Int64Array, PoolView
from svp.strategies.keys import keys_of


class LinearOnInput:
    """A proxy whose last layer reads the embeddings as they are."""

    def __init__(self, weight_Cd: torch.Tensor, bias_C: torch.Tensor) -> None:
        self.head = Head(weight_Cd=weight_Cd, bias_C=bias_C)

    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        return x_Bd

    def logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x_Bd, self.head.weight_Cd, self.head.bias_C)


def linear_view(
    x_Nd: torch.Tensor,
    weight_Cd: torch.Tensor | None = None,
    bias_C: torch.Tensor | None = None,
    *,
    y_L: Int64Array | None = None,
    views: tuple[torch.Tensor, ...] = (),
) -> PoolView:
    """A pool whose first rows have the labels `y_L`; without weights its logits are x."""
    n, dim = x_Nd.shape
    weight_Cd = torch.eye(dim) if weight_Cd is None else weight_Cd
    bias_C = torch.zeros(len(weight_Cd)) if bias_C is None else bias_C
    labelled = 0 if y_L is None else len(y_L)
    return PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(str(row) for row in range(n)),
        unlabelled_U=np.arange(labelled, n, dtype=np.int64),
        labelled_L=np.arange(labelled, dtype=np.int64),
        y_L=np.zeros(0, dtype=np.int64) if y_L is None else y_L,
        n_classes=len(weight_Cd),
        proxy=LinearOnInput(weight_Cd, bias_C),
        views=views,
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Independent standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
