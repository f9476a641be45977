"""FlexMatch's thresholds beside a plain implementation, step by step on recorded trainings.

    python -m benchmarks.quality.flexmatch --steps 60

On images: a small network is fine-tuned on digits. On features: proxies learn from stored weak and
strong views of the digits, two networks side by side, each of which is compared. Every step's weak
logits and row numbers are recorded as they reach the rule, and given to an implementation that
shares nothing with svp's: Zhang et al. 2021, equations 5 to 11, with a `Counter` over all N_u marks
recounted in every step. Thresholds, masks and labels must agree in every step. Takes seconds.

Shapes: K = networks, M = unlabelled rows of a step, C = classes.
"""

import argparse
import contextlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch

from benchmarks.speed.machine import context

if TYPE_CHECKING:
    from svp.proxies import StoredViews

_LABELS: Final = 40
_BATCH: Final = 32
_RATIO: Final = 7


class PlainFlexMatch:
    """Equations 5 to 11, in double precision and without any care for speed."""

    def __init__(self, unlabelled: int, classes: int, tau: float, warmup: bool) -> None:
        self.learnt = [-1] * unlabelled  # u-hat: class of the last confident prediction
        self.classes, self.tau, self.warmup = classes, tau, warmup

    def thresholds(self) -> list[float]:
        """Return T(c) for every class from a full recount."""
        count = Counter(self.learnt)
        sigma = [count[c] for c in range(self.classes)]
        most = max([*sigma, count[-1]]) if self.warmup else max(sigma)
        beta = [s / most if most else 0.0 for s in sigma]
        return [self.tau * b / (2 - b) for b in beta]

    def step(self, rows: list[int], probs: np.ndarray[Any, Any]) -> tuple[list[int], list[bool]]:
        """Return labels and masks of one batch, then mark what is confident."""
        bounds = self.thresholds()
        labels = [int(p.argmax()) for p in probs]
        masks = [float(p[y]) >= bounds[y] for p, y in zip(probs, labels, strict=True)]
        for row, y, p in zip(rows, labels, probs, strict=True):
            if p[y] >= self.tau:
                self.learnt[row] = y
        return labels, masks


@contextlib.contextmanager
def recorded(networks: int) -> Iterator[list[list[dict[str, Any]]]]:
    """Give one list for each network; meanwhile each gets what the rule sees and answers.

    Args:
        networks: K, how many train side by side.
    """
    from svp.pseudolabels.flexmatch import FlexMatch
    from svp.pseudolabels.rule import Targets

    told: list[list[dict[str, Any]]] = [[] for _ in range(networks)]
    plain_targets = FlexMatch.targets

    def targets(self: FlexMatch, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        before_KC = self.thresholds().view(networks, -1).clone()
        rows_KM = rows_M.view(networks, -1).clone()
        probs = weak_logits_MC.detach().float().softmax(1)
        # Several networks keep their classes before their rows.
        probs_KMC = probs[None] if probs.ndim == 2 else probs.transpose(1, 2)
        answer = plain_targets(self, weak_logits_MC, rows_M)
        labels_KM, weights_KM = (x.view(networks, -1) for x in (answer.label_M, answer.weight_M))
        for place, steps in enumerate(told):
            steps.append(
                {
                    "rows": rows_KM[place].tolist(),
                    "probs": probs_KMC[place].numpy(),
                    "thresholds": before_KC[place].tolist(),
                    "labels": labels_KM[place].tolist(),
                    "masks": (weights_KM[place] > 0).tolist(),
                }
            )
        return answer

    FlexMatch.targets = targets  # type: ignore[method-assign]
    try:
        yield told
    finally:
        FlexMatch.targets = plain_targets  # type: ignore[method-assign]


def write_encoder(folder: Path) -> None:
    """Write a small network of random weights for images of 8 px."""
    from svp.encoders.backbones import build_backbone
    from svp.encoders.folder import write_encoder_folder
    from svp.encoders.preprocessing import Preprocessing

    write_encoder_folder(
        folder,
        module_state=build_backbone("resnet8", image_size=8).state_dict(),
        arch="resnet8",
        image_size=8,
        preprocessing=Preprocessing(size=8, resize_to=8),
        provenance={},
    )


def on_images(
    folder: Path, steps: int, warmup: bool, tau: float
) -> tuple[int, list[dict[str, Any]]]:
    """Fine-tune on digits; return N_u and what the rule saw and answered in each step."""
    from sklearn.datasets import load_digits

    from svp.encoders.encoder import open_encoder
    from svp.finetune.data import FinetuneData
    from svp.finetune.presets import preset
    from svp.finetune.run import finetune

    values, classes = load_digits(return_X_y=True)
    x = torch.from_numpy((values.reshape(-1, 1, 8, 8) / 16 * 255).astype(np.uint8))
    data = FinetuneData(
        images_N3SS=x.expand(-1, 3, -1, -1).contiguous(),
        ids=tuple(map(str, range(len(x)))),
        class_names=tuple(map(str, range(10))),
        labelled_rows=np.arange(_LABELS),
        labels_L=classes[:_LABELS].astype(np.int64),
        unlabelled_rows=np.arange(_LABELS, len(x)),
    )
    config = preset(
        "small", method="flexmatch", steps=steps, batch_size=_BATCH, uratio=_RATIO, flip=False,
        cutoff=tau, threshold_warmup=warmup, supervised_share=0.2,
    )  # fmt: skip
    encoder = open_encoder(str(folder / "encoder"))
    with recorded(1) as (told,):
        finetune(encoder, data, config, output=folder / f"model-{warmup}", seed=0)
    return len(data.unlabelled_rows), told


def store_views(folder: Path) -> tuple[torch.Tensor, torch.Tensor, "StoredViews"]:
    """Embed plain, weak and strong views of the digits into a store and read them back.

    Returns:
        The plain embeddings (N, d), classes (N,), and the views with who is labelled.
    """
    from feature_store import open_store
    from svp.data import open_source
    from svp.demo import write_digits
    from svp.embed import EmbedConfig, ViewConfig, embed_views, load_features, parse_views
    from svp.encoders.encoder import open_encoder
    from svp.proxies import StoredViews

    write_digits(folder / "digits")
    source = open_source(folder / "digits")
    pool = source.scan().pool
    store = open_store(folder / "store", create=True)
    results = embed_views(
        pool, source, open_encoder(str(folder / "encoder")), store,
        views=parse_views("eval,weak:2,strong:2"), view_config=ViewConfig(seed=0, flip=False),
        config=EmbedConfig(workers=1),
    )  # fmt: skip
    plain, *others = (
        torch.from_numpy(load_features(store, pool, results[0].encoder_id, one.view)[1])
        for one in results
    )
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    views = StoredViews(
        weak=(others[0], others[1]),
        strong=(others[2], others[3]),
        labelled_L=order[:_LABELS],
        unlabelled_U=order[_LABELS:],
    )
    digits = [int(name) for name in pool.labels or () if name is not None]
    return plain.float(), torch.tensor(digits), views


def on_features(
    stored: tuple[torch.Tensor, torch.Tensor, "StoredViews"],
    kind: Literal["linear", "mlp"],
    steps: int,
    tau: float,
) -> tuple[int, list[list[dict[str, Any]]]]:
    """Train two proxies at once; return N_u and what the rule saw and answered, per network."""
    from svp.proxies import NetworkConfig, Standardiser, fit_proxy

    x_Nd, y_N, views = stored
    config = NetworkConfig(
        kind=kind, trainer="flexmatch", lr=0.1, batch_size=_BATCH, unlabelled_ratio=_RATIO,
        cutoff=tau, members=2, epochs=math.ceil(steps / math.ceil(_LABELS / _BATCH)),
    )  # fmt: skip
    rows_L = views.labelled_L
    with recorded(config.members) as told:
        fit_proxy(
            x_Nd[rows_L], y_N[rows_L], 10, config,
            standardiser=Standardiser.fit(x_Nd), seed=0, views=views,
        )  # fmt: skip
    return len(views.unlabelled_U), told


def compare(
    unlabelled: int, told: list[dict[str, Any]], warmup: bool, tau: float
) -> dict[str, Any]:
    """Return the largest difference of a threshold and how many answers differ."""
    plain = PlainFlexMatch(unlabelled, 10, tau, warmup)
    worst, labels, masks, share = 0.0, 0, 0, 0.0
    for step in told:
        bounds = plain.thresholds()
        worst = max([worst, *(abs(a - b) for a, b in zip(bounds, step["thresholds"], strict=True))])
        ours, theirs = plain.step(step["rows"], step["probs"])
        labels += sum(a != b for a, b in zip(ours, step["labels"], strict=True))
        masks += sum(a != b for a, b in zip(theirs, step["masks"], strict=True))
        share = sum(theirs) / len(theirs)
    return {
        "warmup": warmup,
        "tau": tau,
        "steps": len(told),
        "unlabelled": unlabelled,
        "largest_threshold_difference": worst,
        "labels_differing": labels,
        "masks_differing": masks,
        "marked_at_the_end": sum(mark >= 0 for mark in plain.learnt),
        "mask_share_at_the_end": share,
    }


def main() -> None:
    """Record, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="on images")
    parser.add_argument("--feature-steps", type=int, default=200)
    parser.add_argument("--tau", type=float, default=0.95)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/flexmatch.json"))
    options = parser.parse_args()
    steps, tau = options.steps, options.tau
    rows: list[dict[str, Any]] = []

    def note(what: dict[str, Any], seen: dict[str, Any]) -> None:
        rows.append({**what, **seen})
        print(json.dumps(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_encoder(folder / "encoder")
        for warmup in (True, False):
            unlabelled, told = on_images(folder, steps, warmup, tau)
            note({"on": "images"}, compare(unlabelled, told, warmup, tau))
        stored = store_views(folder)
        kinds: tuple[Literal["linear", "mlp"], ...] = ("linear", "mlp")
        for kind in kinds:
            unlabelled, networks = on_features(stored, kind, options.feature_steps, tau)
            for network, told in enumerate(networks):
                # Proxies always warm their thresholds up.
                seen = compare(unlabelled, told, True, tau)
                note({"on": "features", "proxy": kind, "network": network}, seen)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"context": context(torch.device("cpu")), "rows": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    wrong = [
        row
        for row in rows
        if row["labels_differing"] or row["masks_differing"]
        or row["largest_threshold_difference"] > 1e-6
    ]  # fmt: skip
    raise SystemExit(f"They differ: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
