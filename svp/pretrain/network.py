"""BYOL's three networks: online, target, predictor.

Sources: Grill et al. 2020, "Bootstrap Your Own Latent", section 3; Cai et al. 2021, "Exponential
Moving Average Normalization for Self-supervised and Semi-supervised Learning", section 3.

Shapes: B = batch, S = image side, p = projection_dim.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from svp.encoders.backbones import build_backbone
from svp.pretrain.config import PretrainConfig


def target_momentum(step: int, total: int, momentum0: float) -> float:
    """Return 1 - (1 - m0)(1 + cos(pi k / K)) / 2 for step k of K: m0 at the start, 1 at the end."""
    return 1 - (1 - momentum0) * (1 + math.cos(math.pi * step / total)) / 2


def regression_loss(p_Bp: torch.Tensor, z_Bp: torch.Tensor) -> torch.Tensor:
    """Return the mean of 2 - 2 cos(p, z) over the batch, in float32 (Grill et al., eq. 2)."""
    return 2 - 2 * F.cosine_similarity(p_Bp.float(), z_Bp.float(), dim=1).mean()


def head(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return Linear - BatchNorm - ReLU - Linear without biases; the weights are not drawn yet."""
    # On the meta device: constructors would draw weights from the global random state.
    with torch.device("meta"):
        layers = nn.Sequential(
            nn.Linear(inputs, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, outputs, bias=False),
        )
    made = layers.to_empty(device="cpu")
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.reset_parameters()
    return made


class Branch(nn.Module):
    """A backbone and its projector."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        """Return projections (B, p)."""
        z_Bp: torch.Tensor = self.projector(self.backbone(x_B3SS))
        return z_Bp


def build_branch(config: PretrainConfig, *, generator: torch.Generator) -> Branch:
    """Return a backbone and a projector with weights drawn by `generator`."""
    backbone = build_backbone(config.arch, image_size=config.image_size, generator=generator)
    features = int(backbone.num_features)  # type: ignore[arg-type]  # nn.Module attributes
    projector = head(features, config.head_width, config.projection_dim)
    for layer in projector.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
    return Branch(backbone, projector)


class BYOLNetwork(nn.Module):
    """Online and target branch with the predictor between them.

    The target never receives a gradient and follows the online branch by `follow`.
    """

    def __init__(self, config: PretrainConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self._averages_statistics = config.method == "eman"
        online = build_branch(config, generator=generator)
        # Registered first: checkpoints number parameters in this order.
        self.predictor = head(config.projection_dim, config.head_width, config.projection_dim)
        for layer in self.predictor.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01, generator=generator)
        self.online = online
        self.target = copy.deepcopy(self.online)
        self.target.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "BYOLNetwork":
        """Set the mode; an EMAN target stays in eval mode."""
        super().train(mode)
        if self._averages_statistics:
            self.target.eval()
        return self

    def forward(self, view1_B3SS: torch.Tensor, view2_B3SS: torch.Tensor) -> torch.Tensor:
        """Return the loss of both directions, a scalar in [0, 8]."""
        with torch.no_grad():
            z1_Bp, z2_Bp = self.target(view1_B3SS), self.target(view2_B3SS)
        p1_Bp = self.predictor(self.online(view1_B3SS))
        p2_Bp = self.predictor(self.online(view2_B3SS))
        return regression_loss(p1_Bp, z2_Bp) + regression_loss(p2_Bp, z1_Bp)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the target towards the online branch: target <- m target + (1 - m) online.

        EMAN moves every floating buffer alike, the running statistics included, and copies
        counters. Plain BYOL moves parameters only; its target keeps its own statistics.
        """
        pairs = [*zip(self.target.parameters(), self.online.parameters(), strict=True)]
        if self._averages_statistics:
            pairs += zip(self.target.buffers(), self.online.buffers(), strict=True)  # type: ignore[arg-type]
        for theirs, ours in pairs:
            if theirs.is_floating_point():
                theirs.lerp_(ours, 1 - momentum)
            else:
                theirs.copy_(ours)
