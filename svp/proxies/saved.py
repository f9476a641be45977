"""Reading proxies that `Proxy.save` wrote."""

import json
import math
from pathlib import Path
from typing import Any

import safetensors
import torch

from svp.errors import InputError
from svp.proxies.linear import LinearConfig, LinearProxy
from svp.proxies.mlp import HiddenLayer, MLPConfig, MLPProxy
from svp.proxies.network import Members, NetworkConfig, NetworkProxy
from svp.proxies.proxy import FORMAT, FitReport, Head, Proxy
from svp.proxies.standardiser import Standardiser


def load_proxy(path: str | Path, *, device: torch.device | str = "cpu") -> Proxy:
    """Read a proxy that `Proxy.save` wrote.

    Raises:
        InputError: If the file is missing or is not a proxy.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt", device=str(device)) as file:
            described: dict[str, Any] = json.loads((file.metadata() or {}).get("svp", "{}"))
            # Copies: where a tensor lies in the file would decide which kernels its products run,
            # and so their last bits, and a replayed round would differ from the first.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if described.get("format") != FORMAT:
            raise ValueError(f"format {described.get('format')}")
        return _proxy(described, tensors)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"A proxy file must be readable and of format {FORMAT}. Got {path} ({error}). "
            "Run the round again to write it."
        ) from error


def _proxy(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Proxy:
    standardiser = Standardiser(
        mean_d=tensors["standardiser.mean"], std_d=tensors["standardiser.std"]
    )
    numbers: dict[str, Any] = {
        name: math.nan if value is None and name in ("loss", "gradient") else value
        for name, value in described["report"].items()
    }
    report = FitReport(**numbers)
    if described["kind"] == NetworkProxy.kind:
        members = Members.of_tensors(
            {
                name.removeprefix("members."): value
                for name, value in tensors.items()
                if name.startswith("members.")
            }
        )
        return NetworkProxy(standardiser, members, report, NetworkConfig(**described["config"]))
    head = Head(weight_Cd=tensors["head.weight"], bias_C=tensors["head.bias"])
    if described["kind"] == LinearProxy.kind:
        return LinearProxy(standardiser, head, report, LinearConfig(**described["config"]))
    layer = HiddenLayer(
        weight_hd=tensors["hidden.weight"],
        bias_h=tensors["hidden.bias"],
        scale_h=tensors["hidden.norm.scale"],
        shift_h=tensors["hidden.norm.shift"],
        mean_h=tensors["hidden.norm.mean"],
        var_h=tensors["hidden.norm.var"],
    )
    return MLPProxy(standardiser, layer, head, report, MLPConfig(**described["config"]))
