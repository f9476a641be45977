"""Embeddings as torch tensors: in pinned memory, or straight to a device.

torch is imported when a function here is called, never before.

Shapes: N = asked digests, B = rows of a block, d = dim.
"""

import itertools
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_store.errors import FeatureStoreError, MissingRowsError
from feature_store.lazy import read_blocks
from feature_store.table import Table

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as TensorDtype

_STAGES: Final = 2  # one is filled from disk while the other is on its way to the device
STAGE_BYTES: Final = 64 * 2**20


def read_tensor(
    table: Table,
    digests: NDArray[np.uint8],
    *,
    device: Any = "cpu",
    pinned: bool = False,
    dtype: "TensorDtype | None" = None,
    verify: bool = True,
) -> "Tensor":
    """Return embeddings in the asked order as a tensor.

    On the way to a device, the host holds two blocks of at most 64 MiB, however large the pool.

    Args:
        table: The table.
        digests: (N, 32) uint8; may repeat.
        device: Where to, such as "cuda:0".
        pinned: Put a tensor on the CPU into page-locked memory, from where it can be copied to a
            CUDA device without waiting.
        dtype: Default: the stored one. bfloat16 rounds.
        verify: Check each chunk before its rows are used.

    Returns:
        (N, d) tensor on `device`.

    Raises:
        MissingRowsError: If any item has no embedding, or the table is empty.
        CorruptChunkError: If stored bytes are damaged.
        FeatureStoreError: If torch is not installed.
    """
    torch = _torch()
    stored, width = table.dtype, table.dim
    if stored is None or width is None:
        table.resolve(digests)  # names what is missing
        raise MissingRowsError(
            "A tensor must have a width. Got an empty table. Run `svp embed` first.",
            missing=0,
            total=0,
        )
    target = torch.device(device)
    wanted = getattr(torch, stored.name) if dtype is None else dtype
    shape = (len(digests), width)
    if target.type == "cpu":
        x_Nd: Tensor = torch.empty(shape, dtype=wanted, pin_memory=pinned)
        if wanted in {torch.float16, torch.float32, torch.float64}:
            table.read(digests, out=x_Nd.numpy(), verify=verify)
            return x_Nd
    else:
        x_Nd = torch.empty(shape, dtype=wanted, device=target)
    _copy_blocks(torch, table, digests, x_Nd, verify=verify)
    return x_Nd


def _copy_blocks(
    torch: Any,
    table: Table,
    digests: NDArray[np.uint8],
    x_Nd: "Tensor",
    *,
    verify: bool,
) -> None:
    """Fill a tensor block by block; reading one and copying the one before overlap."""
    cuda = x_Nd.device.type == "cuda"
    stored, width = table.dtype, table.dim
    assert stored is not None
    assert width is not None
    most = max(1, STAGE_BYTES // (width * stored.itemsize))
    if not cuda:
        for part, x_Bd in read_blocks(table, digests, rows=most, verify=verify):
            x_Nd[part] = torch.from_numpy(x_Bd).to(x_Nd.device, x_Nd.dtype)
        return
    shape, kind = (min(most, len(digests)), width), getattr(torch, stored.name)
    stages = [
        (torch.empty(shape, dtype=kind, pin_memory=True), torch.cuda.Event())
        for _ in range(_STAGES)
    ]
    table.resolve(digests)  # before anything is copied
    with torch.cuda.device(x_Nd.device):
        for start, (stage_Bd, copied) in zip(
            range(0, len(digests), most), itertools.cycle(stages), strict=False
        ):
            asked = digests[start : start + most]
            copied.synchronize()  # at once if nothing is on its way
            table.read(asked, out=stage_Bd[: len(asked)].numpy(), verify=verify)
            on_device_Bd = stage_Bd[: len(asked)].to(x_Nd.device, non_blocking=True)
            x_Nd[start : start + len(asked)] = on_device_Bd
            copied.record()
        torch.cuda.current_stream().synchronize()  # the stages are freed below


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise FeatureStoreError(
            "torch must be installed for tensors. Got no such package. "
            "Install it, or read numpy arrays with Table.read."
        ) from error
    return torch
