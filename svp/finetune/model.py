"""The target model: a backbone with a head, as it trains and as it is opened afterwards.

Shapes: B = batch, S = image side in pixels, d = features, C = classes.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn import functional

from svp.augment.fixmatch import to_float
from svp.errors import InputError


class TrainableEncoder(Protocol):
    """What a fine-tune needs of an encoder."""

    @property
    def id(self) -> str:
        """Digest over architecture, weights, preprocessing and numeric mode."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON of all that moves a vector; `architecture` in it says how to build the module."""

    @property
    def dim(self) -> int:
        """d, the width of the features."""

    @property
    def module(self) -> nn.Module:
        """Maps normalised float images (B, 3, S, S) to features (B, d)."""

    def normalise(self, x_u8_B3SS: torch.Tensor, /) -> torch.Tensor:
        """Map uint8 images to what `module` takes: an affine map per channel."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A last layer to start from, such as a zero-shot head from class names.

    Attributes:
        weight_Cd: float (C, d).
        bias_C: float (C,).
        unit_features: Whether it acts on features scaled to length 1.
    """

    weight_Cd: torch.Tensor
    bias_C: torch.Tensor
    unit_features: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """x * scale + shift per channel, on images in [0, 1]."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @classmethod
    def of(cls, encoder: TrainableEncoder) -> "Normalisation":
        """Read the map off an encoder by what it does to black, grey and white."""
        device = next(encoder.module.parameters()).device
        level_3 = torch.tensor([0, 51, 255], dtype=torch.uint8, device=device)
        x_3C11 = level_3[:, None, None, None].expand(3, 3, 1, 1)
        mapped_3C = encoder.normalise(x_3C11).double().cpu()[:, :, 0, 0]
        shift_C, scale_C = mapped_3C[0], mapped_3C[2] - mapped_3C[0]
        if not torch.allclose(mapped_3C[1], shift_C + 0.2 * scale_C, atol=1e-4):
            raise InputError(
                "The encoder's normalise must be affine per channel to be fine-tuned. Got another "
                "map. Fold the rest of it into the encoder's module."
            )
        return cls(scale=tuple(scale_C.tolist()), shift=tuple(shift_C.tolist()))

    def __call__(self, x_BCSS: torch.Tensor) -> torch.Tensor:
        """Return normalised images, in the memory layout of `Classifier`."""
        scale_C11 = x_BCSS.new_tensor(self.scale)[:, None, None]
        shift_C11 = x_BCSS.new_tensor(self.shift)[:, None, None]
        x_BCSS = x_BCSS.contiguous(memory_format=torch.channels_last)
        return torch.addcmul(shift_C11, x_BCSS, scale_C11)


class Classifier(nn.Module):
    """Backbone and last layer, whose values `draw_head` or `set_head` sets."""

    def __init__(self, backbone: nn.Module, dim: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        # Built without values: Linear's constructor would draw from the global random state.
        self.head = nn.Linear(dim, num_classes, device="meta").to_empty(device="cpu")
        self.unit_features = False
        # Convolutions are faster on it, and a model reopened must compute in the same order.
        self.to(memory_format=torch.channels_last)

    def features(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        """Return what the last layer acts on, (B, d)."""
        z_Bd = cast(torch.Tensor, self.backbone(x_B3SS))
        return functional.normalize(z_Bd, dim=1) if self.unit_features else z_Bd

    def forward(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of normalised images."""
        return cast(torch.Tensor, self.head(self.features(x_B3SS)))

    def draw_head(self, generator: torch.Generator) -> None:
        """Start the last layer as nn.Linear does: uniform within 1/sqrt(d).

        Args:
            generator: On the CPU, so that a seed gives the same head on every device.
        """
        bound = self.head.in_features**-0.5
        with torch.no_grad():
            for parameter in (self.head.weight, self.head.bias):
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(drawn)

    def set_head(self, head: Head) -> None:
        """Take over a given last layer."""
        if head.weight_Cd.shape != self.head.weight.shape:
            raise InputError(
                f"head must have shape {tuple(self.head.weight.shape)} (classes, features). "
                f"Got {tuple(head.weight_Cd.shape)}. Build it for this encoder and these classes."
            )
        with torch.no_grad():
            self.head.weight.copy_(head.weight_Cd)
            self.head.bias.copy_(head.bias_C)
        self.unit_features = head.unit_features


def trainable_copy(encoder: TrainableEncoder, num_classes: int) -> Classifier:
    """Return a classifier over a deep copy of the encoder's network, in float32, trainable."""
    backbone = copy.deepcopy(encoder.module).float()
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)
    return Classifier(backbone, encoder.dim, num_classes)


class FinetunedModel:
    """A fine-tuned network, ready to predict from uint8 images.

    Attributes:
        class_names: Names of the C classes, in the order of the logits.
        normalisation: What is done to images in [0, 1] first.
        description: What `config.json` says about how it was made.
    """

    def __init__(
        self,
        classifier: Classifier,
        normalisation: Normalisation,
        class_names: Sequence[str],
        *,
        batch_size: int = 512,
        precision: str = "fp32",
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self._classifier = classifier.eval().requires_grad_(False)
        self._batch_size = batch_size
        self._precision = precision
        self.normalisation = normalisation
        self.class_names = tuple(class_names)
        self.description = dict(description or {})

    @property
    def backbone(self) -> nn.Module:
        """The network without its last layer: normalised (B, 3, S, S) to features (B, d)."""
        return self._classifier.backbone

    @property
    def network(self) -> nn.Module:
        """Backbone and last layer: normalised float images (B, 3, S, S) to logits (B, C)."""
        return self._classifier

    @property
    def head(self) -> Head:
        """The last layer."""
        linear = self._classifier.head
        return Head(
            weight_Cd=linear.weight,
            bias_C=linear.bias,
            unit_features=self._classifier.unit_features,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._classifier.head.weight.device

    def state(self) -> dict[str, torch.Tensor]:
        """Return all weights and buffers on the CPU, contiguous."""
        state = self._classifier.state_dict()
        return {name: value.cpu().contiguous() for name, value in state.items()}

    def features(self, x_N3SS: torch.Tensor) -> torch.Tensor:
        """Return the features (N, d) the last layer acts on, float32 on the CPU."""
        return self._batched(self._classifier.features, x_N3SS)

    def logits(self, x_N3SS: torch.Tensor) -> torch.Tensor:
        """Return logits (N, C), float32 on the CPU.

        Args:
            x_N3SS: uint8 images of the size the model was trained at.
        """
        return self._batched(self._classifier, x_N3SS)

    def probabilities(self, x_N3SS: torch.Tensor) -> torch.Tensor:
        """Return softmax probabilities (N, C), float32 on the CPU."""
        return self.logits(x_N3SS).softmax(dim=1)

    @torch.no_grad()
    def _batched(self, network: Any, x_N3SS: torch.Tensor) -> torch.Tensor:
        if x_N3SS.dtype != torch.uint8 or x_N3SS.ndim != 4 or x_N3SS.shape[1] != 3:
            raise InputError(
                "images must be uint8 of shape (N, 3, S, S). "
                f"Got {x_N3SS.dtype} {tuple(x_N3SS.shape)}. Decode them with the encoder's "
                "preprocessing."
            )
        parts = []
        for x_B3SS in torch.split(x_N3SS, self._batch_size):
            x_B3SS = self.normalisation(to_float(x_B3SS.to(self.device)))
            with autocast(self.device, self._precision):
                parts.append(network(x_B3SS).float().cpu())
        if not parts:
            head = self._classifier.head
            width = head.in_features if network is not self._classifier else head.out_features
            return torch.empty(0, width)
        return torch.cat(parts)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the network runs under `precision`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
