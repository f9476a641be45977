"""What every proxy is: a standardiser, perhaps a hidden layer, and a linear head.

Shapes: B = rows, d = input features, h = features of the last layer, C = classes.
"""

import abc
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Final

import safetensors.torch
import torch

from feature_store import atomic
from svp.proxies.standardiser import Standardiser

FORMAT: Final = "svp.proxy/1"
# Up to about this many columns, CPU libraries multiply faster the other way round.
_NARROW: Final = 32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Head:
    """The last layer: logits = hidden @ weight.T + bias.

    Attributes:
        weight_Cd: Float32, (C, h).
        bias_C: Float32, (C,).
    """

    weight_Cd: torch.Tensor
    bias_C: torch.Tensor


def affine(x_Bh: torch.Tensor, weight_Ch: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
    """Return x @ weight.T + bias, (B, C)."""
    if len(bias_C) > _NARROW:
        return torch.nn.functional.linear(x_Bh, weight_Ch, bias_C)
    return torch.addmm(bias_C[:, None], weight_Ch, x_Bh.T).T.contiguous()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FitReport:
    """What a fit did.

    Attributes:
        rows: Labelled rows it saw.
        classes_seen: How many of the C classes had a label.
        constant: The only class seen, if there was just one: the proxy then always predicts it.
        steps: Iterations of the solver, or optimiser steps.
        converged: Whether the stopping rule was met; None where training runs a fixed length.
        loss: Final training objective; NaN where it is not tracked.
        gradient: Norm of the gradient at the end, relative to the start; NaN likewise.
        validation_rows: Labelled rows that were held out, beside `rows`.
        l2: The regularisation that was used, where it was chosen on the labels.
    """

    rows: int
    classes_seen: int
    constant: int | None
    steps: int
    converged: bool | None
    loss: float
    gradient: float
    validation_rows: int = 0
    l2: float | None = None


class Proxy(abc.ABC):
    """A trained head. Takes raw embeddings of any floating dtype; computes in float32.

    Attributes:
        kind: `linear`, `mlp` or `network`.
        standardiser: Of the pool it was trained for.
        head: The last layer.
        report: What the fit did.
    """

    kind: ClassVar[str]

    def __init__(self, standardiser: Standardiser, head: Head, report: FitReport) -> None:
        self.standardiser = standardiser
        self.head = head
        self.report = report

    @abc.abstractmethod
    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return the input of the last layer, (B, h) float32."""

    @abc.abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything learned, by name; what `save` writes."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the configuration it was trained with, as JSON."""

    @property
    def n_classes(self) -> int:
        """Number of classes C."""
        return len(self.head.bias_C)

    @property
    def device(self) -> torch.device:
        """Where it computes; inputs must be there."""
        return self.head.bias_C.device

    def logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return class logits, (B, C) float32."""
        with torch.no_grad():
            return affine(self.hidden(x_Bd), self.head.weight_Cd, self.head.bias_C)

    def predict_proba(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return class probabilities, (B, C) float32; rows sum to 1."""
        return self.logits(x_Bd).softmax(dim=1)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; equal proxies give equal bytes."""
        report = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in dataclasses.asdict(self.report).items()
        }
        described = {
            "format": FORMAT,
            "kind": self.kind,
            "config": self.settings(),
            "report": report,
        }
        tensors = {name: value.cpu().contiguous() for name, value in self.tensors().items()}
        text = json.dumps(described, sort_keys=True, allow_nan=False)
        atomic.write_bytes(path, safetensors.torch.save(tensors, metadata={"svp": text}))
