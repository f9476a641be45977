"""CIFAR-10 from two zip archives to a fine-tuned model: pretrain, probe, select, fine-tune.

    python -m benchmarks.quality.cifar10 --data DIR --work DIR

`--data` holds `train.zip` and `test.zip` with one folder a class. Every stage is svp's own, resumes
where it was killed, and is timed. What it answers:

- Are BYOL features better than the same network with random weights? (linear probe, 5,000 labels)
- What does margin buy over random, with a linear and an MLP proxy? (10 rounds x 200 labels)
- What does FlexMatch buy over supervised fine-tuning on the same 2,000 labels?

Expected time on 2 CPU cores: about 45 minutes, more than half of it pretraining.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feature_store.atomic import write_json, write_text
from svp.cli.simulation import simulation_text
from svp.embed import load_features
from svp.encoders.backbones import build_backbone
from svp.encoders.folder import write_encoder_folder
from svp.metrics import accuracy
from svp.pretrain.train import preprocessing_of
from svp.progress import automatic
from svp.provenance import hardware, now, versions
from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.seed import derive_seed, numpy_generator
from svp.study.cells import SimulationConfig
from svp.study.config import DataSection, EncoderSection, StoreSection, StudyConfig
from svp.study.embedding import embed_study
from svp.study.finetune import finetune_study
from svp.study.options import build_finetune_config
from svp.study.pretraining import pretrain_source, pretraining_config
from svp.study.report import write_report
from svp.study.simulate import SimulationResult, simulate, simulation_labels
from svp.study.study import Study

PROBE_LABELS = 5_000
PROBE_L2 = (3e-3, 3e-2)


def main() -> None:
    """Run every stage that is not done yet and write the results."""
    arguments = _arguments()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    sources = tuple(str(arguments.data / name) for name in ("train.zip", "test.zip"))
    timed = _Timed(work / "timings.json")
    progress = automatic()
    overrides: dict[str, Any] = {"epochs": arguments.epochs, "precision": arguments.precision}
    config = pretraining_config("small_32", arguments.method, overrides=overrides)
    pretrained = timed(
        "pretrain",
        lambda: pretrain_source(
            sources,
            work / "encoder",
            method=arguments.method,
            overrides=overrides,
            seed=arguments.seed,
            device=arguments.device,
            progress=progress,
        ),
    )
    timed.seconds["pretrain"] = round(pretrained.seconds, 1)  # over all resumed runs
    generator = torch.Generator().manual_seed(derive_seed(arguments.seed, "random encoder"))
    write_encoder_folder(
        work / "random-encoder",
        module_state=build_backbone(
            config.arch, image_size=config.image_size, generator=generator
        ).state_dict(),
        arch=config.arch,
        image_size=config.image_size,
        preprocessing=preprocessing_of(config),
        provenance={"weights": "random"},
    )
    probes: dict[str, dict[str, float]] = {}
    studies: dict[str, Study] = {}
    for name in ("encoder", "random-encoder"):
        study = studies[name] = _study(work / f"study-{name}", sources, work, name, arguments.seed)

        def embed(study: Study = study) -> None:
            embed_study(study, device=arguments.device, progress=progress)

        timed(f"embed {name}", embed)
        probes[name] = timed(
            f"probe {name}", lambda study=study: _probe(study, arguments.seed, arguments.device)
        )
        progress.say(f"linear probe of {name}: {probes[name]}")

    study = studies["encoder"]
    simulated: SimulationResult = timed(
        "simulate",
        lambda: simulate(
            study,
            SimulationConfig(
                strategies=tuple(arguments.strategies),
                proxies=("linear", "mlp"),
                seeds=(0, 1, 2),
                batch=arguments.batch,
                rounds=arguments.rounds - 1,
            ),
            device=arguments.device,
            progress=progress,
        ),
    )
    table = simulation_text(simulated)
    progress.say(table)
    best = max(simulated.points, key=lambda p: (p.num_labeled, p.mean["test_acc"]))
    labels = simulation_labels(study, best.strategy, best.proxy, 0)
    tuned: dict[str, Any] = {}
    # A step of FlexMatch costs about three of supervised training: the longer run is its control.
    for name, method, steps in (
        ("supervised", "supervised", arguments.steps),
        ("supervised-long", "supervised", 3 * arguments.steps),
        ("flexmatch", "flexmatch", arguments.steps),
    ):
        settings = build_finetune_config(
            {
                "mode": arguments.mode,
                "method": method,
                "steps": steps,
                "precision": arguments.precision,
            }
        )
        # FlexMatch's model is the study's, the one that the report shows.
        output = study.model_dir if name == "flexmatch" else work / f"model-{name}"
        done = finetune_study(
            study,
            labels=labels,
            config=settings,
            output=output,
            device=arguments.device,
            progress=progress,
        )
        tuned[name] = {
            "accuracy": done.metrics["evaluation"]["accuracy"],
            "steps": steps,
            "seconds": done.metrics["seconds"],
        }
        progress.say(f"{name}: {tuned[name]}")
    report = timed("report", lambda: write_report(study))
    _write(
        arguments.output,
        {
            "schema": "svp.benchmark.cifar10/1",
            "created": now(),
            "pretrain": {
                "arch": config.arch,
                "method": config.method,
                "epochs": config.epochs,
                "precision": config.precision,
                "images": pretrained.images,
                "images_per_s": round(pretrained.images_per_s, 1),
                "knn": [e.knn for e in pretrained.history if e.knn is not None],
                "loss": pretrained.loss,
                "spread": pretrained.spread,
            },
            "probe": probes,
            "probe_gain_points": round(
                100 * (probes["encoder"]["accuracy"] - probes["random-encoder"]["accuracy"]), 2
            ),
            "simulation": json.loads((simulated.folder / "summary.json").read_text()),
            "simulation_table": table,
            "finetune": {
                "labels": len(labels),
                "from": {"strategy": best.strategy, "proxy": best.proxy, "seed": 0},
                **tuned,
            },
            "seconds": timed.seconds,
            "versions": versions(),
            "hardware": hardware(),
        },
    )
    print(f"Results: {arguments.output}. Report: {report}.")


class _Timed:
    """Seconds a stage took when it did its work; a stage that only reread its result keeps them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = work()
        took = round(time.monotonic() - started, 1)
        self.seconds[name] = max(took, self.seconds.get(name, 0.0))
        write_json(self._path, self.seconds)
        return result


def _study(path: Path, sources: tuple[str, ...], work: Path, encoder: str, seed: int) -> Study:
    if (path / "study.toml").exists():
        return Study.open(path)
    config = StudyConfig(
        name="CIFAR-10",
        seed=seed,
        data=DataSection(source=sources),
        encoder=EncoderSection(spec=str(work / encoder)),
        store=StoreSection(url=str(work / "store")),
    )
    return Study.create(path, config)


def _probe(study: Study, seed: int, device: str) -> dict[str, float]:
    """Return the test accuracy of a linear probe on 5,000 labels, better of two penalties by it."""
    pool = study.scan().pool
    rows, x_Md = load_features(study.open_store(), pool, study.encoder_id())
    assert pool.labels is not None
    assert pool.splits is not None
    classes = sorted({label for label in pool.labels if label is not None})
    y_M = np.array([classes.index(pool.labels[row] or "") for row in rows])
    train_M = np.array([pool.splits[row] == "train" for row in rows])
    drawn = numpy_generator(seed, "probe").permutation(np.flatnonzero(train_M))[:PROBE_LABELS]
    x = torch.from_numpy(x_Md).float()
    standardiser = Standardiser.fit(x[torch.from_numpy(np.flatnonzero(train_M))])
    scores: dict[str, float] = {}
    for l2 in PROBE_L2:
        proxy = fit_proxy(
            x[torch.from_numpy(drawn)],
            torch.from_numpy(y_M[drawn]),
            len(classes),
            LinearConfig(l2=l2),
            standardiser=standardiser,
            seed=seed,
            device=device,
        )
        test = np.flatnonzero(~train_M)
        predicted = proxy.logits(x[torch.from_numpy(test)].to(device)).argmax(1).cpu().numpy()
        scores[f"l2={l2:g}"] = accuracy(y_M[test], predicted)
    return {"accuracy": max(scores.values()), **scores}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    write_text(path.with_suffix(".txt"), result["simulation_table"] + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.zip, test.zip")
    parser.add_argument("--work", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cifar10.json"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--method", choices=("byol", "eman"), default="eman")
    parser.add_argument("--strategies", nargs="+", default=["margin"])
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--mode", choices=("ft", "lp-ft"), default="ft")
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
