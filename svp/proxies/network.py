"""Proxies trained by gradient steps: linear or with one hidden layer, one member or several.

Members differ in their seed and are one model with a leading axis, so that a step of ten of them
is one batched matrix product. Logits of an ensemble are the mean of its members' logits, which is
itself a linear head on the members' hidden units side by side: strategies that ask for `hidden`
and `head` see the ensemble, and `member_logits` gives its parts.

Sources: Lakshminarayanan, Pritzel and Blundell 2017, "Simple and scalable predictive uncertainty
estimation using deep ensembles"; Abe and Mamitsuka 1998, "Query learning strategies using
boosting and bagging" (`bootstrap`).

Shapes: M = members, B = rows, d = input features, h = hidden units, C = classes.
"""

import dataclasses
import math
from typing import Any, ClassVar, Final, Literal

import torch

from svp.errors import InputError
from svp.proxies.proxy import FitReport, Head, Proxy
from svp.proxies.standardiser import Standardiser
from svp.seed import derive_seed

Trainer = Literal[
    "supervised", "flexmatch", "fixmatch", "freematch", "softmatch", "pseudolabel", "uda"
]
Schedule = Literal["constant", "cosine", "seven_sixteenths", "restarts", "steps"]

BN_MOMENTUM: Final = 0.1
BN_EPS: Final = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """How a proxy is trained by gradient steps; `svp.proxies.presets` has published recipes.

    Attributes:
        kind: `linear`, or `mlp` with one hidden layer and ReLU.
        trainer: `supervised`, or a semi-supervised rule that learns from stored weak and strong
            views of unlabelled items too.
        hidden: Hidden units of an mlp; None means as many as the embedding has dimensions.
        batch_norm: Whether an mlp normalises before its ReLU.
        dropout: Share of the last layer's inputs that a training step leaves out.
        optimiser: `sgd`, `adam` (decay added to the gradient) or `adamw` (decay apart from it).
        lr: Peak learning rate.
        weight_decay: Of every parameter.
        momentum: Nesterov momentum of sgd.
        schedule: `constant`; `cosine` to 0; `seven_sixteenths` (cos(7 pi s / 16 S)); `restarts`
            (cosine periods of `period` steps, each twice as long as the one before, without
            warm-up); `steps` (a tenth after every `period` epochs).
        warmup_steps: Steps in which the rate rises linearly; not counted by `cosine`.
        period: See `schedule`.
        epochs: Passes over the labelled rows.
        batch_size: Labelled rows of a step; a last batch of one row joins the batch before it.
        drop_last: Whether every epoch leaves out the rows of its last batch where that is not
            full, unless it is the only one.
        label_smoothing: Share of each target that is spread over all classes.
        class_weights: `balanced` weighs a row by the inverse number of rows of its class.
        mixup: Parameter of the Beta distribution that mixes pairs of rows and their targets
            (Zhang et al. 2018); 0 for none.
        mixup_targets: `mixed` as the rows are; `larger` gives a mixed row the class of its larger
            part alone, which some programs do.
        members: Networks trained at once.
        bootstrap: Whether each member sees its own sample of the labelled rows, with replacement.
        validation: Share of the labelled rows that is held out. It is bought like every label, so
            it counts in the budget, but no step sees it.
        patience: Epochs without a lower loss on the held-out rows before training ends; the best
            epoch's weights are kept. None: all epochs. Without held-out rows it does nothing.
        unlabelled_ratio: Unlabelled rows of a step per labelled one.
        unlabelled_order: `through` uses up one order of all unlabelled rows before it draws the
            next, over as many epochs as that takes; `anew` draws one at the start of every epoch,
            so that some rows are seen late or never.
        cutoff: Confidence that a pseudo-label needs; None: the rule's own.
        unlabelled_weight: Of the loss on unlabelled rows.
    """

    kind: Literal["linear", "mlp"] = "linear"
    trainer: Trainer = "supervised"
    hidden: int | None = None
    batch_norm: bool = False
    dropout: float = 0.0
    optimiser: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    period: int = 500
    epochs: int = 50
    batch_size: int = 128
    drop_last: bool = False
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    mixup: float = 0.0
    mixup_targets: Literal["mixed", "larger"] = "mixed"
    members: int = 1
    bootstrap: bool = False
    validation: float = 0.0
    patience: int | None = None
    unlabelled_ratio: int = 5
    unlabelled_order: Literal["through", "anew"] = "through"
    cutoff: float | None = None
    unlabelled_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (
            ("hidden", 1),
            ("period", 1),
            ("epochs", 1),
            ("batch_size", 1),
            ("members", 1),
            ("patience", 1),
            ("unlabelled_ratio", 1),
            ("warmup_steps", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}. Got {value}. Raise it.")
        for name, most in (
            ("dropout", 1.0),
            ("momentum", 1.0),
            ("label_smoothing", 1.0),
            ("validation", 1.0),
            ("weight_decay", math.inf),
            ("mixup", math.inf),
            ("unlabelled_weight", math.inf),
        ):
            if not 0.0 <= getattr(self, name) < most:
                raise InputError(
                    f"{name} must be in [0, {most:g}). Got {getattr(self, name)}. Correct it."
                )
        if not 0.0 < self.lr < math.inf:
            raise InputError(f"lr must be positive. Got {self.lr}. Try 0.001.")
        if self.cutoff is not None and not 0.0 < self.cutoff <= 1.0:
            raise InputError(f"cutoff must be in (0, 1]. Got {self.cutoff}. FlexMatch uses 0.95.")
        if self.kind == "linear" and (self.hidden is not None or self.batch_norm):
            raise InputError(
                "hidden and batch_norm must be left out of a linear proxy. Got "
                f"hidden {self.hidden}, batch_norm {self.batch_norm}. Use kind mlp, or omit them."
            )
        if self.mixup and self.trainer != "supervised":
            raise InputError(
                f"mixup must be 0 with unlabelled views. Got {self.mixup} and {self.trainer}. "
                "Use one of them."
            )

    @property
    def reads_views(self) -> bool:
        """Whether training needs stored weak and strong views."""
        return self.trainer != "supervised"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HiddenLayers:
    """The hidden layers of all members.

    Attributes:
        weight_Mhd: Weights.
        bias_Mh: Biases.
        scale_Mh: Learned scale of the normalisation, or None without one; likewise the next.
        shift_Mh: Learned shift.
        mean_Mh: Running mean.
        var_Mh: Running variance.
    """

    weight_Mhd: torch.Tensor
    bias_Mh: torch.Tensor
    scale_Mh: torch.Tensor | None
    shift_Mh: torch.Tensor | None
    mean_Mh: torch.Tensor | None
    var_Mh: torch.Tensor | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Members:
    """All parameters of all members, with their forward pass.

    Activations are kept one feature per row, (M, h, B) and (M, C, B): products then need no
    transposed copies, and sums over classes run along whole vectors of items.

    Attributes:
        layers: Hidden layers; None for linear members.
        weight_MCh: Weights of the last layers.
        bias_MC: Biases.
    """

    layers: HiddenLayers | None
    weight_MCh: torch.Tensor
    bias_MC: torch.Tensor

    @classmethod
    def draw(
        cls, config: NetworkConfig, dim: int, n_classes: int, seeds: tuple[int, ...]
    ) -> "Members":
        """Draw every parameter from U(-1/sqrt(fan in), 1/sqrt(fan in)), PyTorch's default.

        On the CPU, so that every device starts from the same networks.
        """
        generators = [
            torch.Generator().manual_seed(derive_seed(seed, "network", "init")) for seed in seeds
        ]

        def uniform(*shape: int, fan_in: int) -> torch.Tensor:
            bound = 1.0 / math.sqrt(fan_in)
            drawn = [
                torch.empty(*shape).uniform_(-bound, bound, generator=one) for one in generators
            ]
            return torch.stack(drawn)

        layers, width = None, dim
        if config.kind == "mlp":
            width = config.hidden if config.hidden is not None else dim
            stats = (len(seeds), width)
            weight_Mhd = uniform(width, dim, fan_in=dim)
            layers = HiddenLayers(
                weight_Mhd=weight_Mhd,
                bias_Mh=uniform(width, fan_in=dim),
                scale_Mh=torch.ones(stats) if config.batch_norm else None,
                shift_Mh=torch.zeros(stats) if config.batch_norm else None,
                mean_Mh=torch.zeros(stats) if config.batch_norm else None,
                var_Mh=torch.ones(stats) if config.batch_norm else None,
            )
        return cls(
            layers=layers,
            weight_MCh=uniform(n_classes, width, fan_in=width),
            bias_MC=uniform(n_classes, fan_in=width),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor by name."""
        named: dict[str, torch.Tensor] = {
            "head.weight": self.weight_MCh,
            "head.bias": self.bias_MC,
        }
        if self.layers is not None:
            for name in _LAYER_TENSORS:
                value = getattr(self.layers, name)
                if value is not None:
                    named[f"hidden.{name.removesuffix('_Mhd').removesuffix('_Mh')}"] = value
        return named

    @classmethod
    def of_tensors(cls, named: dict[str, torch.Tensor]) -> "Members":
        """Return members from what `tensors` gave."""
        layers = None
        if "hidden.weight" in named:
            layers = HiddenLayers(
                **{
                    name: named.get(f"hidden.{name.removesuffix('_Mhd').removesuffix('_Mh')}")
                    for name in _LAYER_TENSORS
                }  # type: ignore[arg-type]  # weight and bias are always there
            )
        return cls(layers=layers, weight_MCh=named["head.weight"], bias_MC=named["head.bias"])

    def learnt(self) -> dict[str, torch.Tensor]:
        """Return what an optimiser moves, by name."""
        return {name: value for name, value in self.tensors().items() if name not in _BUFFERS}

    def to(self, device: torch.device) -> "Members":
        """Return them on `device`."""
        return Members.of_tensors({key: value.to(device) for key, value in self.tensors().items()})

    def member(self, place: int) -> "Members":
        """Return one member alone."""
        return Members.of_tensors(
            {key: value[place : place + 1].clone() for key, value in self.tensors().items()}
        )

    def hidden(self, x_MBd: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """Return the inputs of the last layers, (M, h, B); training moves running statistics."""
        x_MdB = x_MBd.transpose(1, 2)
        if self.layers is None:
            return x_MdB
        layers = self.layers
        z_MhB = torch.baddbmm(layers.bias_Mh[:, :, None], layers.weight_Mhd, x_MdB)
        if layers.scale_Mh is not None and layers.shift_Mh is not None:
            assert layers.mean_Mh is not None
            assert layers.var_Mh is not None
            # One call normalises all members: to it they are channels of one long signal.
            z_MhB = torch.nn.functional.batch_norm(
                z_MhB.reshape(1, -1, z_MhB.shape[2]),
                layers.mean_Mh.view(-1),
                layers.var_Mh.view(-1),
                layers.scale_Mh.view(-1),
                layers.shift_Mh.view(-1),
                training=training and z_MhB.shape[2] > 1,
                momentum=BN_MOMENTUM,
                eps=BN_EPS,
            ).view(z_MhB.shape)
        return z_MhB.relu_()

    def last(self, hidden_MhB: torch.Tensor) -> torch.Tensor:
        """Return logits, (M, C, B)."""
        return torch.baddbmm(self.bias_MC[:, :, None], self.weight_MCh, hidden_MhB)

    def logits(self, x_MBd: torch.Tensor) -> torch.Tensor:
        """Return logits without dropout or batch statistics, (M, C, B)."""
        return self.last(self.hidden(x_MBd))


_LAYER_TENSORS: Final = ("weight_Mhd", "bias_Mh", "scale_Mh", "shift_Mh", "mean_Mh", "var_Mh")
_BUFFERS: Final = ("hidden.mean", "hidden.var")


class NetworkProxy(Proxy):
    """One network or an ensemble, on standardised embeddings.

    Attributes:
        members: All parameters.
        config: What it was trained with.
    """

    kind: ClassVar[str] = "network"

    def __init__(
        self,
        standardiser: Standardiser,
        members: Members,
        report: FitReport,
        config: NetworkConfig,
    ) -> None:
        count, n_classes, _ = members.weight_MCh.shape
        if members.layers is None:
            weight_Ch = members.weight_MCh.mean(dim=0)
        else:
            weight_Ch = members.weight_MCh.transpose(0, 1).reshape(n_classes, -1) / count
        super().__init__(
            standardiser,
            Head(weight_Cd=weight_Ch.contiguous(), bias_C=members.bias_MC.mean(dim=0)),
            report,
        )
        self.members = members
        self.config = config

    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return the input of the last layer, (B, h), or (B, M h) for an ensemble of mlps."""
        x_Bd = self.standardiser(x_Bd)
        if self.members.layers is None:
            return x_Bd
        hidden_MhB = self.members.hidden(x_Bd.expand(len(self.members.bias_MC), *x_Bd.shape))
        return hidden_MhB.flatten(0, 1).T.contiguous()

    def member_logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return the logits of each member, (M, B, C) float32."""
        with torch.no_grad():
            x_Bd = self.standardiser(x_Bd)
            z_MCB = self.members.logits(x_Bd.expand(len(self.members.bias_MC), *x_Bd.shape))
            return z_MCB.transpose(1, 2).contiguous()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return standardiser and members by name."""
        return {
            "standardiser.mean": self.standardiser.mean_d,
            "standardiser.std": self.standardiser.std_d,
            **{f"members.{name}": value for name, value in self.members.tensors().items()},
        }

    def settings(self) -> dict[str, Any]:
        """Return the configuration."""
        return dataclasses.asdict(self.config)
