"""Proxies: heads trained on cached embeddings, by which strategies choose.

Embeddings go in raw; the standardiser of the pool is part of every proxy.
"""

from svp.proxies.fit import ProxyConfig, fit_proxy
from svp.proxies.linear import LinearConfig, LinearProxy
from svp.proxies.mlp import MLPConfig, MLPProxy
from svp.proxies.proxy import FitReport, Head, Proxy
from svp.proxies.saved import load_proxy
from svp.proxies.standardiser import Standardiser

__all__ = [
    "FitReport",
    "Head",
    "LinearConfig",
    "LinearProxy",
    "MLPConfig",
    "MLPProxy",
    "Proxy",
    "ProxyConfig",
    "Standardiser",
    "fit_proxy",
    "load_proxy",
]
