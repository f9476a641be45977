"""Fitting a proxy of whichever kind its configuration names."""

from collections.abc import Sequence

import torch

from svp.errors import InputError
from svp.proxies.gradient import fit_network
from svp.proxies.linear import LinearConfig, LinearProxy, fit_linear
from svp.proxies.mlp import MLPConfig, fit_mlp
from svp.proxies.network import NetworkConfig
from svp.proxies.proxy import Proxy
from svp.proxies.rows import StoredViews
from svp.proxies.standardiser import Standardiser

ProxyConfig = LinearConfig | MLPConfig | NetworkConfig


def fit_proxy(
    x_Ld: torch.Tensor,
    y_L: torch.Tensor,
    n_classes: int,
    config: ProxyConfig,
    *,
    standardiser: Standardiser,
    seed: int,
    device: torch.device | str = "cpu",
    start: Proxy | None = None,
    start_classes: Sequence[int] | None = None,
    views: StoredViews | None = None,
    validation: tuple[torch.Tensor, torch.Tensor] | None = None,
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
        start: The last round's proxy on the same features. Only the linear proxy uses it: it
            reaches the same optimum sooner. Others start afresh, as published.
        start_classes: Number here of each class of `start`, -1 where it is gone; None: the same.
        views: Stored views, for semi-supervised network proxies.
        validation: Raw embeddings and classes for early stopping of network proxies, instead of
            a share of the labels.

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
        return fit_linear(
            x_Ld,
            y_L,
            n_classes,
            config,
            standardiser=standardiser,
            start=start if isinstance(start, LinearProxy) else None,
            start_classes=start_classes,
        )
    if isinstance(config, NetworkConfig):
        return fit_network(
            x_Ld,
            y_L,
            n_classes,
            config,
            standardiser=standardiser,
            seed=seed,
            views=views,
            validation=validation,
        )
    return fit_mlp(x_Ld, y_L, n_classes, config, standardiser=standardiser, seed=seed)
