"""Activations computed again on the way back instead of being kept.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from torch import nn

from svp.errors import InputError


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Let a network of timm or open_clip keep the inputs of its blocks alone.

    Raises:
        InputError: The network does not know how.
    """
    for module in (backbone, getattr(backbone, "visual", None)):
        switch = getattr(module, "set_grad_checkpointing", None)
        if switch is not None:
            switch(True)
            return
    raise InputError(
        "checkpoint_blocks must be off for a network that cannot compute its blocks again. Got "
        f"{type(backbone).__name__}. Set checkpoint_blocks = false, or use accumulate."
    )
