"""SimCLR: two views of an image are to be closer to each other than to any other image's.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations",
section 2.1, equation 1 and algorithm 1. Views are those of the recipe, as for BYOL; the projector
is BYOL's too, so that two methods differ in what they learn by alone.

Shapes: B = batch, S = image side, p = projection_dim.
"""

import torch
import torch.nn.functional as F
from torch import nn

from svp.pretrain.config import PretrainConfig
from svp.pretrain.network import build_branch


def contrastive_loss(z1_Bp: torch.Tensor, z2_Bp: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the normalised temperature-scaled cross-entropy, mean over all 2B views, in float32.

    Each view is classified among the 2B - 1 others by cosine / temperature; right is the other
    view of its image. Projections of equal cosines give ln(2B - 1).
    """
    # Autocast would take the product in half precision, where cosines near 1 are all alike.
    with torch.autocast(z1_Bp.device.type, enabled=False):
        z_2Bp = F.normalize(torch.cat([z1_Bp, z2_Bp]).float(), dim=1)
        logits_2B2B = z_2Bp @ z_2Bp.T / temperature
        logits_2B2B.fill_diagonal_(float("-inf"))
        partner_2B = torch.arange(len(z_2Bp), device=z_2Bp.device).roll(len(z1_Bp))
        return F.cross_entropy(logits_2B2B, partner_2B)


class SimCLRNetwork(nn.Module):
    """One branch; it is its own target."""

    def __init__(self, config: PretrainConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self._temperature = config.temperature
        self.online = build_branch(config, generator=generator)
        self.train()

    def forward(self, view1_B3SS: torch.Tensor, view2_B3SS: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar. Both views share their batch statistics, as published."""
        z1_Bp, z2_Bp = self.online(torch.cat([view1_B3SS, view2_B3SS])).chunk(2)
        return contrastive_loss(z1_Bp, z2_Bp, self._temperature)

    def follow(self, momentum: float) -> None:
        """Do nothing: there is no target that could follow."""
        del momentum
