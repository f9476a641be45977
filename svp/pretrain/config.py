"""Configuration of a pretraining run, and the two presets."""

import dataclasses
from typing import Any, Final, Literal

from svp.augment.byol import ViewsConfig, views_32, views_224
from svp.encoders.backbones import ARCHITECTURES
from svp.errors import InputError

Method = Literal["byol", "eman", "simclr"]
Branch = Literal["online", "target"]
OptimiserName = Literal["lars", "sgd", "adamw"]

_MIN_VIEW_PX: Final = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """How a backbone is pretrained without labels.

    Attributes:
        method: `byol` averages parameters and lets the target's BatchNorm use its own batch;
            `eman` averages its statistics too and runs the target in eval mode; `simclr` has
            neither target nor predictor and tells views of one image from those of the others.
        arch: Name of a backbone, see `svp.encoders.backbones`.
        image_size: Side of the square input in pixels.
        epochs: Passes over the images.
        batch_size: Images per step; a smaller pool is one batch.
        optimiser: `lars`, `sgd` (Nesterov) or `adamw`.
        lr: Peak learning rate at this batch size; nothing rescales it.
        weight_decay: Coupled for lars and sgd, decoupled for adamw.
        optimiser_momentum: For lars and sgd.
        lars_eta: Trust coefficient.
        excluded: What neither decays nor is scaled by lars: `vectors` (biases and norms) or
            `eman`, EMAN's rule by name, under which the norms of the heads are not excluded.
        warmup_epochs: Linear from 0, per step.
        cosine_per: Whether the rate after the warm-up falls per `step` or per `epoch`.
        momentum0: BYOL: momentum of the target at the first step; rises to 1 along a cosine.
        temperature: SimCLR: divides the cosines; the lower, the more the nearest images count.
        head_width: Hidden units of projector and predictor.
        projection_dim: Width of the space in which views are compared.
        views: The augmentations.
        view_share: Side of the views over image_size, in (0, 1]; never below 8 px. A random crop
            enlarges what it shows, so smaller views both cost less and show things at the size
            the encoder will meet them at (Touvron et al. 2019, "Fixing the train-test
            resolution discrepancy").
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divides the result.
        branch: The network whose weights become the encoder.
        precision: `fp32`, or `bf16` for autocast of the forward passes.
        knn_k: Neighbours of the monitor.
        knn_every_epochs: How often it runs, if there are labels; 0 for never.
    """

    method: Method = "eman"
    arch: str = "resnet50"
    image_size: int = 224
    epochs: int = 200
    batch_size: int = 512
    optimiser: OptimiserName = "lars"
    lr: float = 1.8
    weight_decay: float = 1e-6
    optimiser_momentum: float = 0.9
    lars_eta: float = 1e-3
    excluded: Literal["vectors", "eman"] = "eman"
    warmup_epochs: float = 10.0
    cosine_per: Literal["step", "epoch"] = "epoch"
    momentum0: float = 0.98
    temperature: float = 0.1
    head_width: int = 4096
    projection_dim: int = 256
    views: ViewsConfig = dataclasses.field(default_factory=views_224)
    view_share: float = 1.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    branch: Branch = "online"
    precision: Literal["fp32", "bf16"] = "fp32"
    knn_k: int = 20
    knn_every_epochs: int = 10

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("method", ("byol", "eman", "simclr")),
            ("arch", ARCHITECTURES),
            ("optimiser", ("lars", "sgd", "adamw")),
            ("excluded", ("vectors", "eman")),
            ("cosine_per", ("step", "epoch")),
            ("branch", ("online", "target")),
            ("precision", ("fp32", "bf16")),
        )
        for name, known in choices:
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} must be one of {', '.join(known)}. Got {getattr(self, name)!r}. "
                    "Correct the pretraining configuration."
                )
        for name, least in (
            ("image_size", 8),
            ("epochs", 1),
            ("batch_size", 2),
            ("head_width", 1),
            ("projection_dim", 2),
            ("knn_k", 1),
            ("knn_every_epochs", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} must be at least {least}. Got {getattr(self, name)}. "
                    "Correct the pretraining configuration."
                )
        for name, least_f, most_f in (
            ("weight_decay", 0.0, 1.0),
            ("optimiser_momentum", 0.0, 0.9999),
            ("momentum0", 0.0, 1.0),
            ("warmup_epochs", 0.0, float(self.epochs)),
        ):
            if not least_f <= getattr(self, name) <= most_f:
                raise InputError(
                    f"{name} must be in [{least_f:g}, {most_f:g}]. Got {getattr(self, name)}. "
                    "Correct the pretraining configuration."
                )
        for name in ("lr", "lars_eta", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"{name} must be positive. Got {getattr(self, name)}. "
                    "Correct the pretraining configuration."
                )
        if not 0 < self.view_share <= 1:
            raise InputError(
                f"view_share must be in (0, 1]. Got {self.view_share}. "
                "Correct the pretraining configuration."
            )
        if self.method == "simclr" and self.branch != "online":
            raise InputError(
                f"branch must be online for simclr, which has no target. Got {self.branch}. "
                "Correct the pretraining configuration."
            )
        if not all(s > 0 for s in self.std):
            raise InputError(f"std must be positive. Got {self.std}. Give one per channel.")

    @property
    def view_size(self) -> int:
        """Side of the views in pixels."""
        return max(_MIN_VIEW_PX, round(self.image_size * self.view_share))

    def identity(self) -> dict[str, Any]:
        """Return every setting that the method reads: what makes a run that run."""
        settings = dataclasses.asdict(self)
        del settings["momentum0" if self.method == "simclr" else "temperature"]
        return settings


def imagenet_224(method: Method = "eman") -> PretrainConfig:
    """Return the 200-epoch recipe for photographs: ResNet-50 at 224 px, for accelerators.

    EMAN's; for SimCLR that of Chen et al. 2020: the rate that their appendix B.1 gives a batch of
    512, 0.075 sqrt(512), a projector of 2048 and 128 units, temperature 0.1.
    """
    if method != "simclr":
        return PretrainConfig(method=method)
    return PretrainConfig(
        method=method,
        lr=1.7,
        excluded="vectors",
        cosine_per="step",
        head_width=2048,
        projection_dim=128,
        temperature=0.1,
    )


def small_32(method: Method = "eman") -> PretrainConfig:
    """Return the recipe for thumbnails on a few CPU cores, tuned on CIFAR-10.

    A short run profits from many small steps: AdamW at batch 128 passed SGD at batch 256 within
    a third of the images. Views of 24 px cost half as much as views of 32 px.
    """
    return PretrainConfig(
        method=method,
        arch="resnet8",
        image_size=32,
        epochs=40,
        batch_size=128,
        optimiser="adamw",
        lr=2e-3,
        weight_decay=0.01,
        excluded="vectors",
        warmup_epochs=1.0,
        cosine_per="step",
        momentum0=0.97,
        # What Chen et al. 2020, appendix B.9, found best on CIFAR-10.
        temperature=0.5,
        head_width=512,
        projection_dim=128,
        views=views_32(),
        view_share=0.75,
    )
