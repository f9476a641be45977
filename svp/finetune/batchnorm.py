"""Batch-norm layers while training: frozen, or running on statistics that are not kept."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the layers that mix the images of a batch in training."""
    return [layer for layer in module.modules() if isinstance(layer, _BATCH_NORMS)]


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch-norm layer into eval mode: statistics are used, not updated."""
    for layer in batch_norms(module):
        layer.eval()


@contextlib.contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch inside, but leave running statistics as they are."""
    layers = [layer for layer in batch_norms(module) if layer.training]
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, tracked in zip(layers, before, strict=True):
            layer.track_running_stats = tracked


def synchronised(module: nn.Module, device: torch.device) -> None:
    """Make batch-norm layers compute over all processes, in place.

    Raises:
        ValueError: They cannot on this device.
    """
    if device.type == "cpu":
        raise ValueError("batch-norm over processes needs GPUs")
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, _BATCH_NORMS):
                wide = nn.SyncBatchNorm.convert_sync_batchnorm(child)  # type: ignore[no-untyped-call]
                setattr(parent, name, wide)
