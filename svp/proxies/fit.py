"""Fitting a proxy of whichever kind its configuration names."""

import torch

from svp.errors import InputError
from svp.proxies.linear import LinearConfig, fit_linear
from svp.proxies.mlp import MLPConfig, fit_mlp
from svp.proxies.proxy import Proxy
from svp.proxies.standardiser import Standardiser

ProxyConfig = LinearConfig | MLPConfig


def fit_proxy(
    x_Ld: torch.Tensor,
    y_L: torch.Tensor,
    n_classes: int,
    config: ProxyConfig,
    *,
    standardiser: Standardiser,
    seed: int,
    device: torch.device | str = "cpu",
) -> Proxy:
    """Train a proxy on labelled embeddings.

    Args:
        x_Ld: Raw embeddings of the labelled rows, any floating dtype.
        y_L: Their classes, int64 in [0, n_classes).
        n_classes: C, of which some may have no label yet.
        config: Kind and settings.
        standardiser: Of the whole pool.
        seed: Decides initialisation and order; the linear proxy needs none.
        device: Where to train; the proxy stays there.

    Raises:
        InputError: If there are no rows, or shapes or classes do not fit together.
    """
    if len(x_Ld) == 0 or x_Ld.ndim != 2 or len(x_Ld) != len(y_L):
        raise InputError(
            "A proxy must be trained on at least one labelled row (L, d). Got embeddings "
            f"{tuple(x_Ld.shape)} and {len(y_L)} labels. Label some images first."
        )
    if x_Ld.shape[1] != standardiser.dim:
        raise InputError(
            f"Embeddings must have the standardiser's {standardiser.dim} dimensions. Got "
            f"{x_Ld.shape[1]}. Fit the standardiser on the same table."
        )
    low, high = int(y_L.min()), int(y_L.max())
    if low < 0 or high >= n_classes:
        raise InputError(
            f"Classes must be in [0, {n_classes}). Got values from {low} to {high}. "
            "Number the classes from 0."
        )
    device = torch.device(device)
    x_Ld = x_Ld.to(device=device, dtype=torch.float32)
    y_L = y_L.to(device=device, dtype=torch.int64)
    standardiser = standardiser.to(device)
    if isinstance(config, LinearConfig):
        return fit_linear(x_Ld, y_L, n_classes, config, standardiser=standardiser)
    return fit_mlp(x_Ld, y_L, n_classes, config, standardiser=standardiser, seed=seed)
