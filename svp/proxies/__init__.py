"""Proxies: heads trained on cached embeddings, by which strategies choose.

Embeddings go in raw; the standardiser of the pool is part of every proxy.
"""

from svp.proxies.fit import ProxyConfig, fit_proxy
from svp.proxies.gradient import fit_network_seeds
from svp.proxies.linear import LinearConfig, LinearProxy
from svp.proxies.mlp import MLPConfig, MLPProxy
from svp.proxies.network import NetworkConfig, NetworkProxy
from svp.proxies.presets import PRESETS, proxy_preset
from svp.proxies.proxy import FitReport, Head, Proxy
from svp.proxies.rows import StoredViews
from svp.proxies.saved import load_proxy
from svp.proxies.standardiser import Standardiser

__all__ = [
    "PRESETS",
    "FitReport",
    "Head",
    "LinearConfig",
    "LinearProxy",
    "MLPConfig",
    "MLPProxy",
    "NetworkConfig",
    "NetworkProxy",
    "Proxy",
    "ProxyConfig",
    "Standardiser",
    "StoredViews",
    "fit_network_seeds",
    "fit_proxy",
    "load_proxy",
    "proxy_preset",
]
