"""Published recipes of proxies, by name.

Sources: LabelBench (Zhang et al. 2024), its trainer configurations per dataset and embedding;
ASVP (Wen et al.), appendix A and its ImageNet script; DISTIL (Beck et al. 2021), section 4.3:
SGD 0.01, momentum 0.9, decay 5e-4, cosine over 300 epochs; BASE (Emam et al. 2021), linear
evaluation: rate 15, a tenth every 20 of 60 epochs, batch 128.

Where a recipe stops early, it does so in LabelBench on a fixed validation set outside the label
budget. Here a tenth of the labels is held out instead, unless a validation set is passed.
DISTIL's and BASE's recipes were made for whole networks and for standard features; the rate 15 of
BASE belongs to features that are not standardised and diverges on few labels.

LabelBench's program does three things that its paper does not say: it leaves out the last batch of
an epoch unless that is full, it starts every epoch with a new order of the unlabelled rows, and
under label smoothing it rounds the targets that mixup mixed, so that rows are mixed and their
labels are not. The presets do none of them; `proxy_preset(name, as_published=True)` does all, for
comparisons with numbers made by that program. Its schedules are
kept as they are: the cosine of its semi-supervised recipes lasts 500 steps, which 1,000 labels
never reach, and the warm-up of its supervised ones lasts 200, which 1,000 labels do not reach.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from svp.errors import InputError
from svp.proxies.fit import ProxyConfig
from svp.proxies.mlp import MLPConfig
from svp.proxies.network import NetworkConfig, Trainer

_Kind = Literal["linear", "mlp"]
_VALIDATION: Final = 0.1


def _semi(
    kind: _Kind,
    lr: float,
    weight_decay: float,
    *,
    epochs: int = 20,
    patience: int = 3,
    trainer: Trainer = "flexmatch",
) -> NetworkConfig:
    return NetworkConfig(
        kind=kind,
        trainer=trainer,
        optimiser="adam",
        lr=lr,
        weight_decay=weight_decay,
        schedule="restarts",
        period=500,
        epochs=epochs,
        batch_size=128,
        unlabelled_ratio=5,
        cutoff=0.95 if trainer == "flexmatch" else None,
        validation=_VALIDATION,
        patience=patience,
    )


def _passive(
    kind: _Kind,
    lr: float,
    weight_decay: float,
    *,
    epochs: int = 60,
    smoothing: float = 0.1,
    mixup: float = 0.0,
    patience: int = 5,
) -> NetworkConfig:
    return NetworkConfig(
        kind=kind,
        optimiser="adamw",
        lr=lr,
        weight_decay=weight_decay,
        schedule="cosine",
        warmup_steps=200,
        epochs=epochs,
        batch_size=500,
        label_smoothing=smoothing,
        mixup=mixup,
        validation=_VALIDATION,
        patience=patience,
    )


#: Recipes by name. LabelBench's shallow network is our mlp without batch normalisation.
PRESETS: Final[Mapping[str, ProxyConfig]] = MappingProxyType(
    {
        "labelbench-cifar10-flexmatch-linear": _semi("linear", 3e-3, 1e-4),
        "labelbench-cifar10-flexmatch-mlp": _semi("mlp", 1e-3, 1e-3),
        "labelbench-cifar10-freematch-linear": _semi("linear", 3e-3, 1e-4, trainer="freematch"),
        "labelbench-cifar10-freematch-mlp": _semi("mlp", 1e-3, 1e-3, trainer="freematch"),
        "labelbench-cifar10-softmatch-linear": _semi("linear", 3e-3, 1e-4, trainer="softmatch"),
        "labelbench-cifar10-softmatch-mlp": _semi("mlp", 1e-3, 1e-3, trainer="softmatch"),
        "labelbench-cifar100-flexmatch-linear": _semi("linear", 1e-3, 3e-4),
        "labelbench-cifar100-flexmatch-mlp": _semi("mlp", 1e-3, 3e-4),
        "labelbench-imagenet-flexmatch-linear": _semi("linear", 1e-3, 1e-4),
        "labelbench-imagenet-flexmatch-mlp": _semi("mlp", 1e-3, 1e-3, patience=2),
        "labelbench-imagenet-coca-flexmatch-linear": _semi("linear", 3e-4, 1e-5),
        "labelbench-imagenet-coca-flexmatch-mlp": _semi("mlp", 1e-3, 3e-4, patience=2),
        "labelbench-iwildcam-flexmatch-linear": _semi("linear", 1e-2, 1e-5),
        "labelbench-iwildcam-flexmatch-mlp": _semi("mlp", 1e-3, 1e-4),
        "labelbench-iwildcam-coca-flexmatch-linear": _semi("linear", 1e-2, 3e-6, epochs=30),
        "labelbench-iwildcam-coca-flexmatch-mlp": _semi("mlp", 3e-3, 1e-3),
        "labelbench-fmow-flexmatch-linear": _semi("linear", 3e-3, 3e-5),
        "labelbench-fmow-flexmatch-mlp": _semi("mlp", 1e-3, 1e-3),
        "labelbench-fmow-coca-flexmatch-linear": _semi("linear", 3e-3, 1e-5),
        "labelbench-fmow-coca-flexmatch-mlp": _semi("mlp", 1e-3, 3e-3),
        "labelbench-caltech256-flexmatch-linear": _semi("linear", 6e-3, 1e-4),
        "labelbench-caltech256-flexmatch-mlp": _semi("mlp", 7e-4, 1e-5, epochs=40),
        "labelbench-svhn-flexmatch-linear": _semi("linear", 1e-3, 1e-5, epochs=30),
        "labelbench-iwildcam-supervised-linear": _passive("linear", 1e-2, 1e-2, mixup=0.2),
        "labelbench-iwildcam-supervised-mlp": _passive("mlp", 1e-3, 1e-2),
        "labelbench-fmow-supervised-linear": _passive(
            "linear", 1e-3, 1e-5, epochs=30, smoothing=0.01, mixup=0.2, patience=3
        ),
        "labelbench-fmow-supervised-mlp": _passive(
            "mlp", 3e-3, 1e-4, epochs=20, mixup=0.05, patience=3
        ),
        "labelbench-caltech256-supervised-linear": _passive("linear", 1e-3, 1e-2, mixup=0.2),
        "labelbench-caltech256-supervised-mlp": _passive("mlp", 1e-3, 1e-2),
        "asvp-paper": MLPConfig.preset("paper"),
        "asvp-imagenet": MLPConfig.preset("imagenet"),
        "distil-linear": NetworkConfig(
            optimiser="sgd",
            lr=0.01,
            weight_decay=5e-4,
            schedule="cosine",
            epochs=300,
            batch_size=20,
        ),
        "base-linear-evaluation": NetworkConfig(
            optimiser="sgd",
            lr=15.0,
            weight_decay=1e-4,
            schedule="steps",
            period=20,
            epochs=60,
            batch_size=128,
            validation=_VALIDATION,
            patience=30,
        ),
    }
)


def proxy_preset(name: str, *, as_published: bool = False) -> ProxyConfig:
    """Return a published recipe.

    Args:
        name: One of `PRESETS`.
        as_published: Whether to do what the program published with it does, where that is
            another thing than the recipe says: `drop_last`, `unlabelled_order` and
            `mixup_targets` of LabelBench's.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(
            f"A preset must be one of svp's. Got {name!r}. Known: {', '.join(sorted(PRESETS))}."
        )
    config = PRESETS[name]
    if as_published and name.startswith("labelbench-") and isinstance(config, NetworkConfig):
        return dataclasses.replace(
            config, drop_last=True, unlabelled_order="anew", mixup_targets="larger"
        )
    return config


def preset_kind(config: ProxyConfig) -> str:
    """Return `linear` or `mlp`: the kind of proxy that a configuration trains."""
    if isinstance(config, NetworkConfig):
        return config.kind
    return "mlp" if isinstance(config, MLPConfig) else "linear"


def with_values(config: ProxyConfig, values: Mapping[str, object]) -> ProxyConfig:
    """Return a configuration with some values replaced."""
    return dataclasses.replace(config, **values)  # type: ignore[arg-type]  # checked by its owner
