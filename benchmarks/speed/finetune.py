"""Throughput of fine-tuning beside the bare step, and what FlexMatch's bookkeeping costs.

    python -m benchmarks.speed.finetune --arch resnet18 --size 64 --batch 64 --uratio 3

Bare: forward, backward and optimiser step of the same network on tensors that are ready on the
device, as many images and the same passes as a step of the method needs. Whole: `Training.run_step`
from the decoded images of a warm cache: gathering, weak and strong views, thresholds, averaged
weights and all. Bookkeeping: FlexMatch's rule alone on a pool of `--pool` images.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.speed.machine import context, median_s, synchronise
from svp.encoders.backbones import build_backbone
from svp.encoders.encoder import Encoder
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.weights import Loaded
from svp.finetune.config import FinetuneConfig
from svp.finetune.model import Classifier, Normalisation, autocast, trainable_copy
from svp.finetune.optimiser import build_optimiser
from svp.finetune.presets import preset
from svp.finetune.training import Training
from svp.pseudolabels.flexmatch import FlexMatch

CLASSES = 100


def _encoder(arch: str, size: int, device: torch.device) -> Encoder:
    if arch.startswith("timm:"):
        from svp.encoders import timmodels

        architecture: dict[str, Any] = {"family": "timm", "model": arch.removeprefix("timm:")}
        module = timmodels.build(architecture)
    else:
        architecture = {"family": "backbone", "model": arch, "image_size": size}
        module = build_backbone(arch, image_size=size)
    how = Preprocessing(size=size, resize_to=size)
    loaded = Loaded(module=module, architecture=architecture, pooling="-", preprocessing=how,
                    provenance={})  # fmt: skip
    return Encoder(loaded, device=device)


def _cache(folder: Path, images: int, size: int) -> torch.Tensor:
    """Write random images as the cache writes decoded ones, and map them."""
    path = folder / "images.u8"
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(0, images, 256):
            file.write(rng.integers(0, 256, (256, 3, size, size), dtype=np.uint8).tobytes())
    shape = (-(-images // 256) * 256, 3, size, size)
    return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", shape=shape))


def _bare(
    classifier: Classifier, config: FinetuneConfig, size: int, device: torch.device
) -> Callable[[], object]:
    """Return one step on ready tensors: the passes of the method without anything around them."""
    optimiser = build_optimiser(classifier, config)
    labelled = config.batch_size
    unlabelled = 0 if config.method == "supervised" else config.uratio * labelled

    def ready(count: int) -> torch.Tensor:
        x = torch.rand(count, 3, size, size, device=device)
        return x.contiguous(memory_format=torch.channels_last)

    x_all, x_weak = ready(labelled + unlabelled), ready(max(unlabelled, 1))
    y = torch.randint(0, CLASSES, (labelled + unlabelled,), device=device)
    classifier.train()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast(device, config.precision):
            if unlabelled:
                classifier.eval()
                with torch.no_grad():
                    classifier(x_weak)
                classifier.train()
            logits = classifier(x_all)
        functional.cross_entropy(logits.float(), y).backward()
        optimiser.step()

    return step


def _median_interleaved(
    works: list[Callable[[], object]], device: torch.device, repeats: int
) -> list[float]:
    """Return the median wall time of each, taken in turns so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 2):
        for work, seconds in zip(works, times, strict=True):
            synchronise(device)
            start = time.perf_counter()
            work()
            synchronise(device)
            if repeat >= 2:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def measure(
    method: str, options: argparse.Namespace, images: torch.Tensor, device: torch.device
) -> dict[str, Any]:
    """Return the times of one method."""
    config = preset(
        "small", method=method, steps=10**6, batch_size=options.batch, uratio=options.uratio,
        supervised_share=0.0, precision=options.precision, crop=options.crop,
    )  # fmt: skip
    encoder = _encoder(options.arch, options.size, device)
    classifier = trainable_copy(encoder, CLASSES).to(device)
    classifier.draw_head(torch.Generator().manual_seed(0))
    labelled = torch.arange(options.batch * 4)
    unlabelled = torch.arange(options.batch * 4, len(images))
    training = Training(
        classifier,
        Normalisation.of(encoder),
        images,
        (labelled, labelled % CLASSES),
        (unlabelled, torch.full_like(unlabelled, -1)),
        config,
        seed=0,
        device=device,
    )
    other = trainable_copy(encoder, CLASSES).to(device)
    other.draw_head(torch.Generator().manual_seed(0))
    bare = _bare(other, config, options.size, device)
    bare_s, whole_s = _median_interleaved([bare, training.run_step], device, options.repeats)
    per_step = options.batch * (1 if method == "supervised" else 1 + 2 * options.uratio)
    return {
        "method": method,
        "bare_s": bare_s,
        "step_s": whole_s,
        "fraction_of_bare": bare_s / whole_s,
        "views_per_s": per_step / whole_s,
    }


def bookkeeping(options: argparse.Namespace, device: torch.device) -> float:
    """Return the seconds of FlexMatch's rule per step on a pool of `options.pool` images."""
    rule = FlexMatch(options.pool, CLASSES, device=device)
    count = options.batch * options.uratio
    logits = 8 * torch.randn(count, CLASSES, device=device)
    rows = torch.randint(0, options.pool, (count,), device=device)
    return median_s(lambda: rule.targets(logits, rows), device, 50)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18", help="svp's, or timm:NAME")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--uratio", type=int, default=3)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--pool", type=int, default=1_000_000)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--crop", choices=["pad", "resized"], default="pad")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        images = _cache(Path(folder), options.images, options.size)
        rows = [measure(m, options, images, device) for m in ("supervised", "flexmatch")]
    kept_s = bookkeeping(options, device)
    result = {
        "context": context(device),
        "setting": {k: str(v) for k, v in vars(options).items() if k != "json"},
        "rows": rows,
        "bookkeeping_s": kept_s,
        "bookkeeping_share_of_step": kept_s / rows[1]["step_s"],
    }
    for row in rows:
        print(
            f"{row['method']:<11} bare {1e3 * row['bare_s']:8.1f} ms  step "
            f"{1e3 * row['step_s']:8.1f} ms  {row['fraction_of_bare']:.2f} of bare  "
            f"{row['views_per_s']:,.0f} views/s"
        )
    print(
        f"bookkeeping {1e3 * kept_s:.2f} ms a step on {options.pool:,} images: "
        f"{kept_s / rows[1]['step_s']:.2%} of a FlexMatch step"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
