"""One fit of a proxy on a study's labels, and what it predicts.

Shapes: M = items with an embedding, L = labelled, C = classes seen so far, d = features.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from svp.metrics import accuracy, balanced_accuracy, macro_f1

if TYPE_CHECKING:
    import torch

    from svp.proxies import Proxy, ProxyConfig, Standardiser
    from svp.strategies.base import Rows
    from svp.study.stored_views import ItemViews

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

_TILE_ROWS = 16_384


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """A proxy with the names of its classes.

    Attributes:
        classes: Names of classes 0 … C-1.
        proxy: The trained proxy; None with fewer than two classes.
        train_s: Seconds the fit took.
    """

    classes: tuple[str, ...]
    proxy: "Proxy | None"
    train_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Class and confidence of every item asked about.

    Attributes:
        class_M: Class numbers of the learner.
        confidence_M: Probability of that class.
    """

    class_M: Int64Array
    confidence_M: Float32Array


def fit_learner(
    x_Md: "torch.Tensor | Rows",
    rows_L: Int64Array,
    names_L: Sequence[str],
    config: "ProxyConfig",
    *,
    standardiser: "Standardiser",
    seed: int,
    device: str,
    classes: Sequence[str] | None = None,
    start: Learner | None = None,
    views: "ItemViews | None" = None,
) -> Learner:
    """Fit a proxy on the labelled rows of `x_Md`.

    Args:
        x_Md: Embeddings.
        rows_L: Labelled rows.
        names_L: Their class names.
        config: Kind and settings of the proxy.
        standardiser: Of the pool.
        seed: Decides initialisation and order.
        device: Where to fit.
        classes: All class names where they are known; None: those of `names_L`, sorted.
        start: The last round's, from which a proxy with `warm_start` starts.
        views: Views of the same items, for a proxy that learns from unlabelled ones.
    """
    import torch

    from svp.proxies import LinearConfig, LinearProxy, fit_proxy
    from svp.strategies.base import gather

    classes = tuple(sorted(set(names_L)) if classes is None else classes)
    if len(classes) < 2:
        return Learner(classes=classes, proxy=None, train_s=0.0)
    began = time.monotonic()
    number = {name: index for index, name in enumerate(classes)}
    y_L = torch.tensor([number[name] for name in names_L], dtype=torch.int64)
    x_Ld = gather(x_Md, rows_L).to(device=device, dtype=torch.float32)
    before = start if isinstance(config, LinearConfig) and config.warm_start else None
    if before is not None and not (
        isinstance(before.proxy, LinearProxy) and before.proxy.standardiser.dim == x_Ld.shape[1]
    ):
        before = None
    proxy = fit_proxy(
        x_Ld,
        y_L.to(device),
        len(classes),
        config,
        standardiser=standardiser,
        seed=seed,
        device=torch.device(device),
        start=before.proxy if before is not None else None,
        start_classes=(
            None if before is None else [number.get(name, -1) for name in before.classes]
        ),
        views=views.split(rows_L) if views is not None else None,
    )
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)  # kernels run on after the call: time what was done
    return Learner(classes=classes, proxy=proxy, train_s=time.monotonic() - began)


def predict(learner: Learner, x_Md: "torch.Tensor | Rows", device: str) -> Prediction:
    """Predict every row; with one known class, that class with confidence 1."""
    import torch

    from svp.strategies.base import gather

    total = x_Md.shape[0]
    if learner.proxy is None:
        return Prediction(
            class_M=np.zeros(total, dtype=np.int64),
            confidence_M=np.ones(total, dtype=np.float32),
        )
    classes, confidences = [], []
    with torch.no_grad():
        for start in range(0, total, _TILE_ROWS):
            rows = slice(start, min(start + _TILE_ROWS, total))
            tile_Td = (
                x_Md[rows]
                if isinstance(x_Md, torch.Tensor)
                else gather(x_Md, np.arange(rows.start, rows.stop))
            ).to(device=device, dtype=torch.float32)
            best = learner.proxy.logits(tile_Td).float().softmax(dim=1).max(dim=1)
            classes.append(best.indices)
            confidences.append(best.values)
    if not classes:
        return Prediction(
            class_M=np.zeros(0, dtype=np.int64), confidence_M=np.zeros(0, dtype=np.float32)
        )
    return Prediction(
        class_M=torch.cat(classes).cpu().numpy(),
        confidence_M=torch.cat(confidences).cpu().numpy(),
    )


def codes(names: Sequence[str], classes: Sequence[str]) -> Int64Array:
    """Return class numbers of names; names beyond `classes` get the numbers after C, sorted.

    So a class that is evaluated but was never seen in training is an error, not a crash.
    """
    number = {name: index for index, name in enumerate(classes)}
    for name in sorted(set(names) - set(classes)):
        number[name] = len(number)
    return np.asarray([number[name] for name in names], dtype=np.int64)


def score(
    learner: Learner, x_Md: "torch.Tensor | Rows", names_M: Sequence[str], device: str
) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1 on items with known labels."""
    y_M = codes(names_M, learner.classes)
    predicted_M = predict(learner, x_Md, device).class_M
    return {
        "items": len(y_M),
        "accuracy": accuracy(y_M, predicted_M),
        "balanced_accuracy": balanced_accuracy(y_M, predicted_M),
        "macro_f1": macro_f1(y_M, predicted_M),
    }
