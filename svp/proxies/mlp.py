"""The MLP proxy: one hidden layer with batch normalisation, trained by SGD on embeddings.

Source: Wen, Pizarro and Williams, "Feature alignment: rethinking efficient active learning via
proxy in the context of pre-trained models" (ASVP), section 6.1 and appendix A:
Linear-BatchNorm-ReLU-Linear, SGD with Nesterov momentum, learning rate
lr * cos(7 pi / 16 * s / S) at step s of S, 50 epochs, batches of 2048.

Training runs on tensors that already sit on the device: the order is drawn there, batches are
gathered there, and nothing in the loop waits for the device.

Shapes: L = labelled rows, B = rows of a batch, d = features, h = hidden units, C = classes.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import torch

from svp.errors import InputError
from svp.proxies.proxy import FitReport, Head, Proxy
from svp.proxies.standardiser import Standardiser
from svp.seed import derive_seed

_BN_MOMENTUM = 0.1
_BN_EPS = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig:
    """Settings of the MLP proxy; the defaults are the paper's.

    Attributes:
        hidden: Hidden units; None means as many as the embedding has dimensions.
        epochs: Passes over the labelled rows.
        batch_size: Rows of a batch. A last batch of one row joins the batch before it.
        lr: Learning rate of the first step.
        momentum: Nesterov momentum.
        weight_decay: Added to the gradient of every parameter.
    """

    hidden: int | None = None
    epochs: int = 50
    batch_size: int = 2048
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1. Got {getattr(self, name)}. Raise it.")
        if self.hidden is not None and self.hidden < 1:
            raise InputError(f"hidden must be at least 1. Got {self.hidden}. Raise it or omit it.")
        if not self.lr > 0:
            raise InputError(f"lr must be positive. Got {self.lr}. The paper uses 0.01.")
        if not 0.0 <= self.momentum < 1.0:
            raise InputError(f"momentum must be in [0, 1). Got {self.momentum}. Use 0.9.")
        if not self.weight_decay >= 0.0:
            raise InputError(
                f"weight_decay must be at least 0. Got {self.weight_decay}. Use 0 for none."
            )

    @classmethod
    def preset(cls, name: Literal["paper", "imagenet"]) -> "MLPConfig":
        """Return the paper's settings, or those of its published ImageNet script (lr 0.1)."""
        if name == "paper":
            return cls()
        if name == "imagenet":
            return cls(lr=0.1)
        raise InputError(f"A preset must be paper or imagenet. Got {name}. Choose one of them.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HiddenLayer:
    """Linear and batch normalisation, as trained.

    Attributes:
        weight_hd: Weights of the linear layer.
        bias_h: Its biases.
        scale_h: Learned scale of the normalisation.
        shift_h: Learned shift.
        mean_h: Running mean.
        var_h: Running variance.
    """

    weight_hd: torch.Tensor
    bias_h: torch.Tensor
    scale_h: torch.Tensor
    shift_h: torch.Tensor
    mean_h: torch.Tensor
    var_h: torch.Tensor

    def __call__(self, x_Bd: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """Return the activations after ReLU, (B, h); training updates the running statistics."""
        z_Bh = torch.nn.functional.linear(x_Bd, self.weight_hd, self.bias_h)
        z_Bh = torch.nn.functional.batch_norm(
            z_Bh,
            self.mean_h,
            self.var_h,
            self.scale_h,
            self.shift_h,
            training=training,
            momentum=_BN_MOMENTUM,
            eps=_BN_EPS,
        )
        return torch.relu_(z_Bh)


class MLPProxy(Proxy):
    """A hidden layer and a head on standardised embeddings."""

    kind: ClassVar[str] = "mlp"

    def __init__(
        self,
        standardiser: Standardiser,
        layer: HiddenLayer,
        head: Head,
        report: FitReport,
        config: MLPConfig,
    ) -> None:
        super().__init__(standardiser, head, report)
        self.layer = layer
        self.config = config

    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return the activations after ReLU, (B, h); differentiable with respect to `x_Bd`."""
        return self.layer(self.standardiser(x_Bd))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return standardiser, hidden layer and head by name."""
        return {
            "standardiser.mean": self.standardiser.mean_d,
            "standardiser.std": self.standardiser.std_d,
            "hidden.weight": self.layer.weight_hd,
            "hidden.bias": self.layer.bias_h,
            "hidden.norm.scale": self.layer.scale_h,
            "hidden.norm.shift": self.layer.shift_h,
            "hidden.norm.mean": self.layer.mean_h,
            "hidden.norm.var": self.layer.var_h,
            "head.weight": self.head.weight_Cd,
            "head.bias": self.head.bias_C,
        }

    def settings(self) -> dict[str, Any]:
        """Return the configuration."""
        return dataclasses.asdict(self.config)


def cosine_lr(lr: float, step: int, steps: int) -> float:
    """Return the learning rate of `step` in [0, steps]: `lr` at 0, 0.1951 `lr` at `steps`."""
    return lr * math.cos(7.0 * math.pi / 16.0 * step / steps)


def batch_bounds(rows: int, batch_size: int, *, drop_last: bool = False) -> list[tuple[int, int]]:
    """Return the (start, stop) of each batch of an epoch.

    A batch of one row has no variance to normalise by, so a trailing one joins its neighbour.

    Args:
        rows: Rows of an epoch.
        batch_size: Rows of a full batch.
        drop_last: Whether a trailing batch that is not full is left out, unless it is the only one.
    """
    bounds = [(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]
    if drop_last and rows >= batch_size:
        return bounds[: rows // batch_size]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
        bounds[-2:] = [(bounds[-2][0], rows)]
    return bounds


def fit_mlp(
    x_Ld: torch.Tensor,
    y_L: torch.Tensor,
    n_classes: int,
    config: MLPConfig,
    *,
    standardiser: Standardiser,
    seed: int,
) -> MLPProxy:
    """Train the MLP proxy from a fresh initialisation.

    Args:
        x_Ld: Raw embeddings of the labelled rows, on the device to train on.
        y_L: Their classes in [0, n_classes). A single labelled row is normalised by the initial
            statistics, having none of its own.
        n_classes: C.
        config: Settings.
        standardiser: Of the pool.
        seed: Decides initialisation and order; on a CPU the result is equal bit for bit.
    """
    device = x_Ld.device
    x_Ld = standardiser(x_Ld)
    layer, head = _initialise(x_Ld.shape[1], n_classes, config, seed, device)
    parameters = [
        layer.weight_hd,
        layer.bias_h,
        layer.scale_h,
        layer.shift_h,
        head.weight_Cd,
        head.bias_C,
    ]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    order = torch.Generator(device=device).manual_seed(derive_seed(seed, "mlp", "order"))
    bounds = batch_bounds(len(x_Ld), config.batch_size)
    steps = config.epochs * len(bounds)
    for parameter in parameters:
        parameter.requires_grad_(True)
    step = 0
    for _ in range(config.epochs):
        rows_L = torch.randperm(len(x_Ld), generator=order, device=device)
        for start, stop in bounds:
            x_Bd = x_Ld.index_select(0, rows_L[start:stop])
            y_B = y_L.index_select(0, rows_L[start:stop])
            hidden_Bh = layer(x_Bd, training=stop - start > 1)
            z_BC = torch.nn.functional.linear(hidden_Bh, head.weight_Cd, head.bias_C)
            loss = torch.nn.functional.cross_entropy(z_BC, y_B)
            gradients = torch.autograd.grad(loss, parameters)
            _nesterov(parameters, gradients, momenta, cosine_lr(config.lr, step, steps), config)
            step += 1
    for parameter in parameters:
        parameter.requires_grad_(False)
    seen = torch.unique(y_L)
    report = FitReport(
        rows=len(x_Ld),
        classes_seen=len(seen),
        constant=int(seen[0]) if len(seen) == 1 else None,
        steps=steps,
        converged=None,
        loss=float(loss.detach()),
        gradient=float("nan"),
    )
    return MLPProxy(standardiser.to(device), layer, head, report, config)


def _initialise(
    dim: int, n_classes: int, config: MLPConfig, seed: int, device: torch.device
) -> tuple[HiddenLayer, Head]:
    """Draw weights and biases from U(-1/sqrt(fan in), 1/sqrt(fan in)), PyTorch's default.

    Drawn on the CPU, so that every device starts from the same network.
    """
    hidden = config.hidden if config.hidden is not None else dim
    generator = torch.Generator().manual_seed(derive_seed(seed, "mlp", "init"))

    def uniform(*shape: int, fan_in: int) -> torch.Tensor:
        bound = 1.0 / math.sqrt(fan_in)
        return torch.empty(*shape).uniform_(-bound, bound, generator=generator).to(device)

    layer = HiddenLayer(
        weight_hd=uniform(hidden, dim, fan_in=dim),
        bias_h=uniform(hidden, fan_in=dim),
        scale_h=torch.ones(hidden, device=device),
        shift_h=torch.zeros(hidden, device=device),
        mean_h=torch.zeros(hidden, device=device),
        var_h=torch.ones(hidden, device=device),
    )
    head = Head(
        weight_Cd=uniform(n_classes, hidden, fan_in=hidden),
        bias_C=uniform(n_classes, fan_in=hidden),
    )
    return layer, head


def _nesterov(
    parameters: list[torch.Tensor],
    gradients: tuple[torch.Tensor, ...],
    momenta: list[torch.Tensor],
    lr: float,
    config: MLPConfig,
) -> None:
    with torch.no_grad():
        for parameter, gradient, momentum in zip(parameters, gradients, momenta, strict=True):
            if config.weight_decay:
                gradient = gradient.add(parameter, alpha=config.weight_decay)
            momentum.mul_(config.momentum).add_(gradient)
            parameter.add_(gradient, alpha=-lr).add_(momentum, alpha=-lr * config.momentum)
