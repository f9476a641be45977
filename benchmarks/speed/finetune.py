"""Throughput of fine-tuning beside the bare step, and what the difference consists of.

    python -m benchmarks.speed.finetune --json benchmarks/results/speed-finetune.json
    python -m benchmarks.speed.finetune --archs timm:vit_base_patch16_224 --size 224 --device cuda

Timed in turns, so that all meet the same machine, for each network and method:

* bare: forward, backward and optimiser step of the same network on tensors that are ready on the
  device, as many images and the same passes as a step of the method needs;
* step: `Training.run_step` from the decoded images of a warm cache, with everything that it does;
* views: gathering the step's pixels and drawing its weak and strong views, and nothing else. On a
  CPU this arithmetic shares the cores with the network, in any loop;
* bookkeeping: FlexMatch's rule on the step's logits, with a pool of `--pool` images.

Reported are medians of the repeats' ratios: the bare share of a step, of a step without its views,
and the shares of views and bookkeeping. What is left (`rest_share`) is averaged weights, losses,
normalisation and reports. With `--clock cpu` the process's own time is taken instead of the wall's,
for machines that others use too; it means something only with one thread on a CPU.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.speed.machine import context, synchronise
from svp.encoders.backbones import build_backbone
from svp.encoders.encoder import Encoder
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.weights import Loaded
from svp.finetune.config import FinetuneConfig
from svp.finetune.model import Classifier, Normalisation, autocast, trainable_copy
from svp.finetune.optimiser import build_optimiser
from svp.finetune.parallel import Group
from svp.finetune.presets import preset
from svp.finetune.training import Training
from svp.finetune.views import Views
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
        functional.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def _seconds(
    works: dict[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the seconds of every repeat of each work, taken in turns; two rounds only warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 2):
        for name, work in works.items():
            synchronise(device)
            start = clock()
            work()
            synchronise(device)
            if repeat >= 2:
                times[name].append(clock() - start)
    return {name: np.array(values) for name, values in times.items()}


def measure(
    arch: str,
    method: str,
    options: argparse.Namespace,
    images: torch.Tensor,
    device: torch.device,
) -> dict[str, Any]:
    """Return times and shares of one method with one network."""
    config = preset(
        "small", method=method, steps=10**6, batch_size=options.batch, uratio=options.uratio,
        supervised_share=0.0, precision=options.precision, crop=options.crop,
    )  # fmt: skip
    encoder = _encoder(arch, options.size, device)
    rows_L = torch.arange(options.batch * 4)
    rows_U = torch.arange(options.batch * 4, len(images))
    labelled = rows_L, rows_L % CLASSES

    def fresh() -> Classifier:
        classifier = trainable_copy(encoder, CLASSES).to(device)
        classifier.draw_head(torch.Generator().manual_seed(0))
        return classifier

    training = Training(
        fresh(),
        Normalisation.of(encoder),
        images,
        labelled,
        (rows_U, torch.full_like(rows_U, -1)),
        config,
        seed=0,
        device=device,
    )
    views = Views(
        images,
        labelled,
        rows_U,
        config,
        first_unlabelled=None if method == "supervised" else 0,
        seed=0,
        device=device,
        group=Group(),
    )
    step = itertools.count()
    works: dict[str, Callable[[], object]] = {
        "bare": _bare(fresh(), config, options.size, device),
        "step": training.run_step,
        "views": lambda: views.at(next(step)),
    }
    if method == "flexmatch":
        works["bookkeeping"] = _bookkeeping(options, device)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    times = _seconds(works, device, options.repeats, clock)
    whole = times["step"]
    per_step = options.batch * (1 if method == "supervised" else 1 + 2 * options.uratio)

    def share(of: np.ndarray[Any, Any], among: np.ndarray[Any, Any]) -> float:
        return round(float(np.median(of / among)), 4)

    spent = sum(times[name] for name in times if name != "step")
    return {
        "arch": arch,
        "method": method,
        **{f"{name}_s": float(np.median(values)) for name, values in times.items()},
        "bare_share": share(times["bare"], whole),
        "bare_share_without_views": share(times["bare"], whole - times["views"]),
        "views_share": share(times["views"], whole),
        "bookkeeping_share": share(times.get("bookkeeping", np.zeros_like(whole)), whole),
        "rest_share": share(whole - spent, whole),
        "views_per_s": round(per_step / float(np.median(whole)), 1),
    }


def _bookkeeping(options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """Return FlexMatch's work in one step on a pool of `options.pool` images."""
    rule = FlexMatch(options.pool, CLASSES, device=device)
    count = options.batch * options.uratio
    logits_MC = 8 * torch.randn(count, CLASSES, device=device)
    rows_M = torch.randint(0, options.pool, (count,), device=device)
    return lambda: rule.targets(logits_MC, rows_M)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--archs",
        nargs="+",
        default=["resnet8", "resnet14-wide", "resnet18"],
        help="svp's, or timm:NAME",
    )
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--uratio", type=int, default=3)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--pool", type=int, default=1_000_000)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--crop", choices=["pad", "resized"], default="pad")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="of both sides; default: all cores")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(
        f"{'network':<16}{'method':<12}{'bare ms':>9}{'step ms':>9}{'bare':>7}{'no views':>10}"
        f"{'views':>8}{'rule':>8}{'rest':>8}{'views/s':>9}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = _cache(Path(folder), options.images, options.size)
        for arch in options.archs:
            for method in ("supervised", "flexmatch"):
                row = measure(arch, method, options, images, device)
                rows.append(row)
                print(
                    f"{arch:<16}{method:<12}{1e3 * row['bare_s']:>9.1f}{1e3 * row['step_s']:>9.1f}"
                    f"{row['bare_share']:>7.2f}{row['bare_share_without_views']:>10.2f}"
                    f"{row['views_share']:>8.1%}{row['bookkeeping_share']:>8.2%}"
                    f"{row['rest_share']:>8.1%}{row['views_per_s']:>9,.0f}",
                    flush=True,
                )
    result = {
        "schema": "svp.benchmarks.finetune/2",
        "targets": {"bare_share": 0.9, "bookkeeping_share": 0.01},
        "context": context(device),
        "load": [round(load, 2) for load in os.getloadavg()],
        "setting": {k: v for k, v in vars(options).items() if k != "json"},
        "rows": rows,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
