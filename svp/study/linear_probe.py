"""A linear probe and nearest neighbours on a table of features.

The probe is a convex problem solved to its optimum, so its accuracy is a property of the features
and not of a schedule.

Sources: Alain and Bengio 2017, "Understanding intermediate layers using linear classifier probes";
Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (nearest
neighbours); Emam et al. 2021, linear evaluation (recipe `base`).

Shapes: N = rows of the table, T = training part, E = held-out part, B = rows of a tile, d =
features, K = classes with a training label.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from svp.errors import InputError

if TYPE_CHECKING:
    import torch

    from svp.proxies import Proxy

Recipe = Literal["optimum", "base"]
"""`optimum`: logistic regression on standardised features, solved, its regularisation chosen on a
validation part. `base`: Emam et al.'s SGD on features as they are (rate 15, a tenth every 20 of 60
epochs, batches of 128)."""

NEIGHBOURS: Final = 20
_ROWS: Final = 16_384

Int64Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a probe measured. Accuracies are shares in [0, 1].

    Attributes:
        encoder_id: Whose features; empty where only features were given.
        dim: Their width, d.
        classes: C.
        train: Labels that the probe was fitted on, those of the validation part included.
        validation: Labels among `train` by which the regularisation was chosen, or training
            stopped.
        held_out: Labels it was measured on.
        held_out_by: `test` for the source's own split, `part` for a fifth drawn by the seed.
        dropped: Labelled images without an embedding.
        recipe: How the probe was fitted.
        l2: The regularisation; None where the recipe fixes it.
        top1: Accuracy of the probe.
        top1_se: Its standard error as a share of `held_out` independent images.
        top5: Share of images whose class is among the five likeliest; None up to five classes.
        knn: Accuracy of a vote of the nearest training images by cosine.
        knn_k: How many vote.
        fit_s: Seconds of fitting, the choice of l2 included.
        embedded: Images embedded for this.
        reused: Images whose embedding the store had.
    """

    encoder_id: str
    dim: int
    classes: int
    train: int
    validation: int
    held_out: int
    held_out_by: Literal["test", "part"]
    dropped: int
    recipe: Recipe
    l2: float | None
    top1: float
    top1_se: float
    top5: float | None
    knn: float
    knn_k: int
    fit_s: float
    embedded: int = 0
    reused: int = 0


def measure(
    x_Nd: "torch.Tensor",
    names_N: Sequence[str],
    *,
    train: Int64Array,
    validation: Int64Array,
    held_out: Int64Array,
    recipe: Recipe = "optimum",
    seed: int = 0,
    device: str = "cpu",
    k: int = NEIGHBOURS,
) -> Probe:
    """Fit a probe on some rows of a table and measure it on others.

    Args:
        x_Nd: Features, any floating dtype.
        names_N: Class of each row.
        train: Rows to fit on.
        validation: Rows among `train` by which the recipe `optimum` chooses its regularisation;
            the probe is then fitted on all of `train`.
        held_out: Rows to measure on; those of a class without training rows count as wrong.
        recipe: How to fit.
        seed: Decides initialisation and order of the recipe `base`.
        device: Where to fit.
        k: Neighbours that vote.

    Raises:
        InputError: Training rows have fewer than two classes, nothing is held out, or the recipe
            is unknown.
    """
    import torch

    from svp.pretrain.monitor import knn_accuracy

    if recipe not in get_args(Recipe):
        raise InputError(f"recipe must be optimum or base. Got {recipe!r}. Use optimum.")
    seen = {names_N[row] for row in train}
    if len(seen) < 2 or not len(held_out):
        raise InputError(
            "A probe must have training labels of at least two classes, and held-out ones. Got "
            f"{len(seen)} classes and {len(held_out)} held-out labels. Label more images."
        )
    classes = sorted(seen | {names_N[row] for row in held_out})
    number = {name: place for place, name in enumerate(classes)}
    y_N = torch.tensor([number[name] for name in names_N], dtype=torch.int64, device=device)
    x_Nd = x_Nd.to(device=device, dtype=torch.float32)
    train_T, held_out_E = (torch.from_numpy(rows).to(device) for rows in (train, held_out))
    x_Td, y_T = x_Nd[train_T], y_N[train_T]
    x_Ed, y_E = x_Nd[held_out_E], y_N[held_out_E]
    validating_T = torch.isin(train_T, torch.from_numpy(validation).to(device))
    began = time.monotonic()
    proxy, l2, validated = _fit(x_Td, y_T, validating_T, len(classes), recipe, seed, device)
    fit_s = time.monotonic() - began
    first, fifth = 0, 0
    for x_Bd, y_B in zip(torch.split(x_Ed, _ROWS), torch.split(y_E, _ROWS), strict=True):
        hit_BK = proxy.logits(x_Bd).topk(min(5, len(classes)), dim=1).indices == y_B[:, None]
        first += int(hit_BK[:, 0].sum())
        fifth += int(hit_BK.sum())
    top1 = first / len(y_E)
    return Probe(
        encoder_id="",
        dim=x_Nd.shape[1],
        classes=len(classes),
        train=len(train),
        validation=validated,
        held_out=len(held_out),
        held_out_by="part",
        dropped=0,
        recipe=recipe,
        l2=l2,
        top1=top1,
        top1_se=math.sqrt(top1 * (1 - top1) / len(y_E)),
        top5=fifth / len(y_E) if len(classes) > 5 else None,
        knn=knn_accuracy(x_Td, y_T, x_Ed, y_E, k=k),
        knn_k=min(k, len(train)),
        fit_s=fit_s,
    )


def _fit(
    x_Td: "torch.Tensor",
    y_T: "torch.Tensor",
    validating_T: "torch.Tensor",
    classes: int,
    recipe: Recipe,
    seed: int,
    device: str,
) -> "tuple[Proxy, float | None, int]":
    """Return the probe, the regularisation that was chosen, and how many rows it was chosen on."""
    import torch

    from svp.proxies import LinearConfig, Standardiser, fit_proxy, proxy_preset
    from svp.proxies.regularisation import choose_l2

    if recipe == "base":
        width = x_Td.shape[1]
        as_they_are = Standardiser(
            mean_d=torch.zeros(width, device=device), std_d=torch.ones(width, device=device)
        )
        config = proxy_preset("base-linear-evaluation")
        proxy = fit_proxy(
            x_Td, y_T, classes, config, standardiser=as_they_are, seed=seed, device=device
        )
        return proxy, None, proxy.report.validation_rows
    standardiser = Standardiser.fit(x_Td)
    seen_K, index_T = torch.unique(y_T, return_inverse=True)
    l2 = choose_l2(standardiser(x_Td), index_T, len(seen_K), held_L=validating_T)
    proxy = fit_proxy(
        x_Td,
        y_T,
        classes,
        LinearConfig(l2=l2),
        standardiser=standardiser,
        seed=seed,
        device=device,
    )
    return proxy, l2, int(validating_T.sum())
