"""FlexMatch's thresholds beside a plain implementation, step by step on a recorded training.

    python -m benchmarks.quality.flexmatch --steps 60

A small network is fine-tuned on digits. Every step's weak logits and row numbers are recorded as
they reach the rule, and given to an implementation that shares nothing with svp's: Zhang et al.
2021, equations 5 to 11, with a `Counter` over all N_u marks recounted in every step. Thresholds,
masks and labels must agree in every step. Takes seconds.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.machine import context


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


def record(steps: int, warmup: bool, tau: float) -> tuple[int, list[dict[str, Any]]]:
    """Fine-tune on digits; return N_u and what the rule saw and answered in each step."""
    from sklearn.datasets import load_digits

    from svp.encoders.backbones import build_backbone
    from svp.encoders.encoder import open_encoder
    from svp.encoders.folder import write_encoder_folder
    from svp.encoders.preprocessing import Preprocessing
    from svp.finetune.data import FinetuneData
    from svp.finetune.presets import preset
    from svp.finetune.run import finetune
    from svp.pseudolabels.flexmatch import FlexMatch
    from svp.pseudolabels.rule import Targets

    values, classes = load_digits(return_X_y=True)
    x = torch.from_numpy((values.reshape(-1, 1, 8, 8) / 16 * 255).astype(np.uint8))
    data = FinetuneData(
        images_N3SS=x.expand(-1, 3, -1, -1).contiguous(),
        ids=tuple(map(str, range(len(x)))),
        class_names=tuple(map(str, range(10))),
        labelled_rows=np.arange(40),
        labels_L=classes[:40].astype(np.int64),
        unlabelled_rows=np.arange(40, len(x)),
    )
    told: list[dict[str, Any]] = []
    plain_targets = FlexMatch.targets

    def targets(self: FlexMatch, weak_logits_MC: torch.Tensor, rows_M: torch.Tensor) -> Targets:
        before = self.thresholds().tolist()
        answer = plain_targets(self, weak_logits_MC, rows_M)
        told.append(
            {
                "rows": rows_M.tolist(),
                "probs": weak_logits_MC.detach().float().softmax(1).numpy(),
                "thresholds": before,
                "labels": answer.label_M.tolist(),
                "masks": (answer.weight_M > 0).tolist(),
            }
        )
        return answer

    config = preset(
        "small", method="flexmatch", steps=steps, batch_size=32, uratio=7, flip=False, cutoff=tau,
        threshold_warmup=warmup, supervised_share=0.2,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_encoder_folder(
            Path(folder) / "encoder",
            module_state=build_backbone("resnet8", image_size=8).state_dict(),
            arch="resnet8",
            image_size=8,
            preprocessing=Preprocessing(size=8, resize_to=8),
            provenance={},
        )
        FlexMatch.targets = targets  # type: ignore[method-assign]
        try:
            encoder = open_encoder(f"{folder}/encoder")
            finetune(encoder, data, config, output=Path(folder) / "model", seed=0)
        finally:
            FlexMatch.targets = plain_targets  # type: ignore[method-assign]
    return len(data.unlabelled_rows), told


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
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tau", type=float, default=0.95)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/flexmatch.json"))
    options = parser.parse_args()
    rows = []
    for warmup in (True, False):
        unlabelled, told = record(options.steps, warmup, options.tau)
        rows.append(compare(unlabelled, told, warmup, options.tau))
        print(json.dumps(rows[-1]))
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
