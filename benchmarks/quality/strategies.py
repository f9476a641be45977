"""Every strategy on real images, in one table: accuracy, labels saved, balance, seconds.

    python -m benchmarks.quality.strategies --data DIR --encoder FOLDER --work DIR

`--data` holds CIFAR-10's `train.zip` and `test.zip` with one folder a class, `--encoder` is what
`svp pretrain` wrote. Two pools: a uniform part of the training images, and a long-tailed cut of
it (class c keeps a share that falls geometrically to 1 / --imbalance). All strategies of a seed
start from the same random batch, learn with the same linear proxy, and use their defaults;
strategies that read labels inside a batch are given them and marked. Killed? Run it again:
finished runs are kept in `--work`.

`--table RESULT` prints the tables of a finished result as Markdown.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.archives import read_part
from svp.embed import StoredView, ViewConfig
from svp.encoders.encoder import open_encoder
from svp.metrics import RandomCurve, accuracy, balanced_accuracy, imbalance, mean_sd
from svp.progress import automatic
from svp.provenance import hardware, now, versions
from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.seed import derive_seed, numpy_generator
from svp.strategies.base import PoolView
from svp.strategies.catalog import build_strategy, names, reads_labels, run_strategy
from svp.strategies.keys import keys_of

Rows = npt.NDArray[np.int64]
VIEWS = ("weak-0", "weak-1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One pool with its test set."""

    name: str
    x: torch.Tensor
    views: tuple[torch.Tensor, ...]
    y: Rows
    keys: npt.NDArray[np.uint64]
    classes: int
    x_test: torch.Tensor
    y_test: Rows


def run(task: Task, name: str, seed: int, batch: int, rounds: int) -> dict[str, Any]:
    """Run one strategy through all rounds."""
    strategy = build_strategy(name)
    standardiser = Standardiser.fit(task.x)
    labelled = numpy_generator(seed, "first batch").permutation(len(task.y))[:batch]
    state: Mapping[str, Any] = {}
    accuracies, balanced, ratios, shares, seconds = [], [], [], [], []
    for number in range(rounds + 1):
        at = np.sort(labelled)
        proxy = fit_proxy(
            task.x[torch.from_numpy(at)],
            torch.from_numpy(task.y[at]),
            task.classes,
            LinearConfig(),
            standardiser=standardiser,
            seed=derive_seed(seed, "proxy", number),
        )
        predicted = proxy.logits(task.x_test).argmax(dim=1).numpy()
        accuracies.append(accuracy(task.y_test, predicted))
        balanced.append(balanced_accuracy(task.y_test, predicted))
        spread = imbalance(np.bincount(task.y[at], minlength=task.classes))
        ratios.append(spread.ratio)
        shares.append(spread.entropy_share)
        if number == rounds:
            break
        view = PoolView(
            embeddings_Nd=task.x,
            keys_N=task.keys,
            unlabelled_U=np.setdiff1d(np.arange(len(task.y)), at),
            labelled_L=at,
            y_L=task.y[at],
            n_classes=task.classes,
            proxy=proxy,
            views=task.views,
            state=state,
        )
        began = time.perf_counter()
        chosen = run_strategy(
            strategy,
            view,
            batch,
            derive_seed(seed, "select", number),
            oracle=(lambda rows: task.y[rows]) if reads_labels(strategy) else None,
        )
        seconds.append(time.perf_counter() - began)
        state = chosen.state
        labelled = np.concatenate([labelled, chosen.rows_b])
    return {
        "accuracy": accuracies,
        "balanced_accuracy": balanced,
        "imbalance": ratios,
        "entropy_share": shares,
        "select_s": seconds,
    }


def main() -> None:
    """Run what is not done yet, write the result and print the tables."""
    arguments = _arguments()
    if arguments.table:
        print(tables(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return
    chosen = arguments.strategies or list(names())
    sizes = [arguments.batch * (index + 1) for index in range(arguments.rounds + 1)]
    result: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "sizes": sizes,
        "seeds": arguments.seeds,
        "datasets": [],
    }
    for task in _tasks(arguments):
        runs: dict[str, list[dict[str, Any]]] = {}
        with automatic().task(task.name, len(chosen) * arguments.seeds, "runs") as progress:
            # Seed by seed, so that a run that is stopped early has whole seeds.
            for seed in range(arguments.seeds):
                for name in chosen:
                    path = arguments.work / task.name / f"{name}-{seed}.json"
                    if not path.is_file():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        done = run(task, name, seed, arguments.batch, arguments.rounds)
                        path.write_text(json.dumps(done), encoding="utf-8")
                    runs.setdefault(name, []).append(json.loads(path.read_text()))
                    progress.advance(1, name)
        result["datasets"].append(
            {
                "name": task.name,
                "pool": len(task.y),
                "test": len(task.y_test),
                "per_class": np.bincount(task.y, minlength=task.classes).tolist(),
                "rows": _rows(runs, sizes, arguments.measure),
            }
        )
    result |= {
        "measure": arguments.measure,
        "created": now(),
        "versions": versions(),
        "hardware": {**hardware(), "threads": torch.get_num_threads()},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(tables(result))


def _rows(
    runs: Mapping[str, list[dict[str, Any]]], sizes: list[int], measure: str
) -> list[dict[str, Any]]:
    random = np.array([one[measure] for one in runs["random"]])
    curve = RandomCurve(sizes, random.mean(axis=0).tolist())
    rows = []
    for name, found in runs.items():
        strategy = build_strategy(name)
        curves = np.array([one[measure] for one in found])
        savings, censored = [], 0
        for one in curves:
            at = [curve.saving(n, a) for n, a in zip(sizes[1:], one[1:], strict=True)]
            savings.append(float(np.mean([each.ratio for each in at])))
            censored += sum(each.censored is not None for each in at)
        gains = (curves - random[: len(curves)])[:, 1:].mean(axis=1)
        rows.append(
            {
                "strategy": name,
                "family": strategy.family,
                "reads_labels": reads_labels(strategy),
                "runs": len(found),
                "curve": [[float(v) for v in mean_sd(column.tolist())] for column in curves.T],
                "final": mean_sd(curves[:, -1].tolist()),
                "gain": mean_sd(gains.tolist()),
                "saving": mean_sd(savings),
                "censored": censored,
                "imbalance": mean_sd([one["imbalance"][-1] for one in found]),
                "entropy_share": mean_sd([one["entropy_share"][-1] for one in found]),
                "select_s": float(np.median([s for one in found for s in one["select_s"]])),
            }
        )
    return sorted(rows, key=lambda row: -row["saving"][0])


def tables(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown, best saving first."""
    parts = []
    for data in result["datasets"]:
        counts = data["per_class"]
        parts += [
            f"### {data['name']}: {data['pool']:,} images, {max(counts):,} to {min(counts):,} per "
            "class",
            "",
            f"| strategy | {result['measure'].replace('_', ' ')} at {result['sizes'][-1]:,} | gain "
            "over random, points | labels saved | largest / smallest class | seconds |",
            "|---|---|---|---|---|---|",
        ]
        for row in data["rows"]:
            mark = " (reads labels)" if row["reads_labels"] else ""
            bounds = f", {row['censored']} bounds" if row["censored"] else ""
            parts.append(
                f"| {row['strategy']}{mark} | {100 * row['final'][0]:.1f} "
                f"±{100 * row['final'][1]:.1f} | {100 * row['gain'][0]:+.2f} "
                f"±{100 * row['gain'][1]:.2f} | {100 * row['saving'][0]:+.0f} "
                f"±{100 * row['saving'][1]:.0f} %{bounds} | {row['imbalance'][0]:.1f} | "
                f"{row['select_s']:.2f} |"
            )
        parts.append("")
    return "\n".join(parts)


def _tasks(arguments: argparse.Namespace) -> list[Task]:
    encoder = open_encoder(str(arguments.encoder), device="cpu")
    part = read_part(arguments.data, encoder, pool=arguments.pool, test=arguments.test)
    images, y, held_out = part.images_N3SS, part.y_N, part.held_out_N
    ids, digests, code = part.pool.ids, part.pool.digests, part.classes
    features = torch.cat([encoder.features(b).float() for b in torch.split(images, 256)])
    views = []
    for name in VIEWS:
        make, found = StoredView(name, ViewConfig()), []
        for start in range(0, len(images), 256):
            some = slice(start, start + 256)
            shown = make(images[some].float() / 255, digests[some])
            found.append(encoder.features_of(encoder.normalise_float(shown)).float())
        views.append(torch.cat(found))
    order = np.flatnonzero(~held_out)
    share = arguments.imbalance ** (-np.arange(len(code)) / (len(code) - 1))
    tail = np.concatenate(
        [
            order[y[order] == c][: round(share[c] * int((y[order] == c).sum()))]
            for c in range(len(code))
        ]
    )
    x_test, y_test = features[torch.from_numpy(held_out)], y[held_out]
    return [
        Task(
            name=name,
            x=features[torch.from_numpy(rows)],
            views=tuple(view[torch.from_numpy(rows)] for view in views),
            y=y[rows],
            keys=keys_of(ids[row] for row in rows),
            classes=len(code),
            x_test=x_test,
            y_test=y_test,
        )
        for name, rows in (("CIFAR-10", order), ("CIFAR-10, long tail", np.sort(tail)))
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/strategies"))
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/strategies-quality.json")
    )
    parser.add_argument("--table", type=Path, help="print the tables of this result")
    parser.add_argument("--strategies", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--imbalance", type=float, default=50.0)
    parser.add_argument("--measure", choices=("accuracy", "balanced_accuracy"), default="accuracy")
    found = parser.parse_args()
    if found.table is None and (found.data is None or found.encoder is None):
        parser.error("--data and --encoder are required")
    return found


if __name__ == "__main__":
    main()
