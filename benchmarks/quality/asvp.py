"""Does ASVP hold up? Standard active learning, SVPp and ASVP on CIFAR-10, in time and accuracy.

    python -m benchmarks.quality.asvp --data DIR --encoder FOLDER --work DIR

`--data` holds `train.zip` and `test.zip` with one folder a class, `--encoder` is what
`svp pretrain` wrote. Every strategy and seed starts from the same random batch.

- **standard**: the network itself is fine-tuned every round and chooses by its own features.
- **SVPp**: a linear proxy on the pretrained features chooses; FT and LP-FT are both measured.
- **ASVP**: SVPp until the criterion asks for a refresh, measured by LP-FT before and by FT after.
  Every other position of the refresh is run as well for the first strategy.

Accuracy is that of the final recipe at every round, on held-out images that decide nothing. Labels
saved are against random labels with the same training (FT). Killed? Run it again: finished
trainings are kept in `--work`.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.archives import read_part
from svp.alignment import Criterion, CriterionConfig, Verdict, class_statistics
from svp.encoders.encoder import Encoder, open_encoder
from svp.finetune.config import FinetuneConfig
from svp.finetune.data import FinetuneData
from svp.finetune.model import FinetunedModel
from svp.finetune.run import finetune
from svp.metrics import RandomCurve, mean_sd
from svp.progress import automatic
from svp.provenance import hardware, now, versions
from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.seed import derive_seed, numpy_generator
from svp.strategies.base import PoolView, ProxyView
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.keys import keys_of

Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that all runs share."""

    images: torch.Tensor
    ids: tuple[str, ...]
    y: Rows
    classes: tuple[str, ...]
    pool: Rows
    test: Rows
    keys: npt.NDArray[np.uint64]
    encoder: Encoder
    features: torch.Tensor
    embed_s: float
    work: Path
    config: FinetuneConfig


class Network:
    """A fine-tuned network as a proxy on its own features."""

    def __init__(self, model: FinetunedModel) -> None:
        self.head = model.head

    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return the features as they are."""
        return x_Bd

    def logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C)."""
        return torch.nn.functional.linear(x_Bd, self.head.weight_Cd, self.head.bias_C)


def tune(task: Task, labelled: Rows, mode: str, seed: int) -> tuple[FinetunedModel, float, float]:
    """Fine-tune from the pretrained network on these labels: model, accuracy, seconds."""
    config = dataclasses.replace(task.config, mode=mode)
    rows = np.concatenate([np.sort(labelled), task.test])
    data = FinetuneData(
        images_N3SS=task.images[torch.from_numpy(rows)],
        ids=tuple(task.ids[row] for row in rows),
        class_names=task.classes,
        labelled_rows=np.arange(len(labelled)),
        labels_L=task.y[rows[: len(labelled)]],
        held_out_rows=np.arange(len(labelled), len(rows)),
        held_out_labels_E=task.y[task.test],
    )
    name = hashlib.sha256(np.sort(labelled).tobytes()).hexdigest()[:16]
    done = finetune(
        task.encoder, data, config, output=task.work / f"{mode}-{seed}-{name}", seed=seed
    )
    assert done.evaluation is not None
    seconds = done.metrics["seconds"]["train"] + done.metrics["seconds"]["probe"]
    return done.model, done.evaluation.accuracy, seconds


def select(
    task: Task,
    features: torch.Tensor,
    proxy: ProxyView,
    labelled: Rows,
    name: str,
    b: int,
    seed: int,
) -> Rows:
    """Choose b more pool rows; features are those of the pool, in its order."""
    at = np.searchsorted(task.pool, np.sort(labelled))
    free = np.setdiff1d(np.arange(len(task.pool)), at)
    view = PoolView(
        embeddings_Nd=features,
        keys_N=task.keys,
        unlabelled_U=free,
        labelled_L=at,
        y_L=task.y[task.pool[at]],
        n_classes=len(task.classes),
        proxy=proxy,
    )
    chosen = run_strategy(build_strategy(name), view, b, derive_seed(seed, "select", len(labelled)))
    return task.pool[chosen.rows_b]


def proxy_of(task: Task, features: torch.Tensor, labelled: Rows) -> ProxyView:
    """Fit the linear proxy on these labels."""
    place = np.searchsorted(task.pool, labelled)
    return fit_proxy(
        features[torch.from_numpy(place)],
        torch.from_numpy(task.y[labelled]),
        len(task.classes),
        LinearConfig(),
        standardiser=Standardiser.fit(features),
        seed=0,
    )


def pool_features(task: Task, model: FinetunedModel) -> tuple[torch.Tensor, float]:
    """Embed the pool by a fine-tuned network: features and seconds."""
    began = time.perf_counter()
    return model.features(task.images[torch.from_numpy(task.pool)]), time.perf_counter() - began


@dataclasses.dataclass
class Run:
    """One campaign."""

    accuracy: list[float]
    select_s: float = 0.0
    train_s: float = 0.0
    embed_s: float = 0.0


def standard(task: Task, sizes: Sequence[int], name: str, seed: int, first: Rows) -> Run:
    """Fine-tune every round, choose by the network itself."""
    run, labelled = Run([]), first
    for size, following in zip(sizes, [*sizes[1:], None], strict=True):
        assert len(labelled) == size
        model, accuracy, seconds = tune(task, labelled, "ft", seed)
        run.accuracy.append(accuracy)
        if following is None:
            break
        run.train_s += seconds
        features, embed_s = pool_features(task, model)
        run.embed_s += embed_s
        began = time.perf_counter()
        more = select(task, features, Network(model), labelled, name, following - size, seed)
        run.select_s += time.perf_counter() - began
        labelled = np.concatenate([labelled, more])
    return run


def via_proxy(
    task: Task,
    sizes: Sequence[int],
    name: str,
    seed: int,
    first: Rows,
    *,
    refresh_at: int | None,
    before: str,
) -> tuple[Run, list[Verdict]]:
    """Choose by the proxy; refresh the features once `refresh_at` labels are there."""
    run, labelled, features = Run([]), first, task.features
    run.embed_s = task.embed_s
    criterion = Criterion(
        CriterionConfig(),
        general_mean_D=features.mean(dim=0).numpy(),
        general_std_D=features.std(dim=0, correction=0).numpy(),
    )
    verdicts = []
    refreshed = False
    for size, following in zip(sizes, [*sizes[1:], None], strict=True):
        if not refreshed:
            place = np.searchsorted(task.pool, labelled)
            statistics = class_statistics(
                features[torch.from_numpy(place)].numpy(), task.y[labelled]
            )
            verdicts.append(criterion.judge(statistics, n_classes=len(task.classes)))
            if size == refresh_at:
                model, _, seconds = tune(task, labelled, "ft", seed)
                features, embed_s = pool_features(task, model)
                run.train_s, run.embed_s = run.train_s + seconds, run.embed_s + embed_s
                refreshed = True
        _, accuracy, _ = tune(task, labelled, "ft" if refreshed else before, seed)
        run.accuracy.append(accuracy)
        if following is None:
            break
        began = time.perf_counter()
        proxy = proxy_of(task, features, labelled)
        more = select(task, features, proxy, labelled, name, following - size, seed)
        run.select_s += time.perf_counter() - began
        labelled = np.concatenate([labelled, more])
    return run, verdicts


def main() -> None:
    """Run everything that is not done yet and write the results."""
    arguments = _arguments()
    task = _task(arguments)
    sizes = [arguments.batch * (index + 1) for index in range(arguments.rounds)]
    seeds, strategies = range(arguments.seeds), arguments.strategies
    said = automatic()
    runs: dict[str, list[Run]] = {}
    verdicts: dict[str, list[list[Verdict]]] = {}
    positions: dict[str, list[str]] = {}
    for seed in seeds:
        order = numpy_generator(seed, "random labels").permutation(task.pool)
        for mode in ("ft", "lp-ft"):
            random = Run([tune(task, order[:size], mode, seed)[1] for size in sizes])
            runs.setdefault(f"random/{mode}", []).append(random)
        for name in strategies:
            first = order[: sizes[0]]
            runs.setdefault(f"standard/{name}", []).append(standard(task, sizes, name, seed, first))
            for before in ("ft", "lp-ft"):
                run, judged = via_proxy(
                    task, sizes, name, seed, first, refresh_at=None, before=before
                )
                runs.setdefault(f"svpp-{before}/{name}", []).append(run)
            verdicts.setdefault(name, []).append(judged)
            asked = next((v.labels for v in judged if v.stale), None)
            positions.setdefault(name, []).append(str(asked))
            tried = sizes[:-1] if name == strategies[0] else [p for p in [asked] if p is not None]
            for position in tried:
                run, _ = via_proxy(
                    task, sizes, name, seed, first, refresh_at=position, before="lp-ft"
                )
                runs.setdefault(f"refresh@{position}/{name}", []).append(run)
                if position == asked:
                    runs.setdefault(f"asvp/{name}", []).append(run)
            if asked is None or asked not in tried:
                runs.setdefault(f"asvp/{name}", []).append(runs[f"svpp-lp-ft/{name}"][-1])
            said.say(f"seed {seed}, {name}: the criterion asks for a refresh at {asked} labels")
        _write(arguments, task, sizes, runs, verdicts, positions)


def _write(
    arguments: argparse.Namespace,
    task: Task,
    sizes: Sequence[int],
    runs: Mapping[str, list[Run]],
    verdicts: Mapping[str, list[list[Verdict]]],
    positions: Mapping[str, list[str]],
) -> None:
    baseline = np.array([run.accuracy for run in runs["random/ft"]]).mean(axis=0)
    curve = RandomCurve(sizes, baseline.tolist())
    rows = []
    for name, found in runs.items():
        savings, costs = [], []
        for run in found:
            at = [curve.saving(n, a) for n, a in zip(sizes, run.accuracy, strict=True)]
            savings.append(float(np.mean([one.ratio for one in at[1:]])))
            compute_s = run.select_s + run.train_s + run.embed_s
            costs.append(
                sizes[-1] * arguments.label_price + compute_s / 3600 * arguments.hour_price
            )
        accuracy = np.array([run.accuracy for run in found])
        rows.append(
            {
                "run": name,
                "seeds": len(found),
                "accuracy": [[round(v, 5) for v in mean_sd(column)] for column in accuracy.T],
                "saving": [round(value, 4) for value in mean_sd(savings)],
                "select_s": round(float(np.mean([run.select_s for run in found])), 2),
                "train_s": round(float(np.mean([run.train_s for run in found])), 2),
                "embed_s": round(float(np.mean([run.embed_s for run in found])), 2),
                "cost": round(float(np.mean(costs)), 3),
            }
        )
    record = {
        "what": __doc__.splitlines()[0],
        "created": now(),
        "encoder": task.encoder.id,
        "pool": len(task.pool),
        "test": len(task.test),
        "sizes": list(sizes),
        "training": dataclasses.asdict(task.config),
        "criterion": dataclasses.asdict(CriterionConfig()),
        "prices": {"label": arguments.label_price, "hour": arguments.hour_price},
        "refresh_asked_at": dict(positions),
        "verdicts": {
            name: [[dataclasses.asdict(v) for v in run] for run in found]
            for name, found in verdicts.items()
        },
        "rows": rows,
        "versions": versions(),
        "hardware": {**hardware(), "threads": torch.get_num_threads()},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        curve_text = " ".join(f"{100 * mean:.1f}" for mean, _ in row["accuracy"])
        mean, sd = row["saving"]
        print(
            f"{row['run']:24s} n={row['seeds']} accuracy {curve_text}  saved {100 * mean:+.1f} "
            f"±{100 * sd:.1f} %  select+train+embed "
            f"{row['select_s'] + row['train_s'] + row['embed_s']:.0f} s  cost {row['cost']:.2f}",
            flush=True,
        )


def _task(arguments: argparse.Namespace) -> Task:
    encoder = open_encoder(str(arguments.encoder), device="cpu")
    part = read_part(arguments.data, encoder, pool=arguments.pool, test=arguments.test)
    images, ids = part.images_N3SS, part.pool.ids
    pool_rows, test_rows = np.flatnonzero(~part.held_out_N), np.flatnonzero(part.held_out_N)
    began = time.perf_counter()
    features = torch.cat(
        [
            encoder.features(batch).float()
            for batch in torch.split(images[torch.from_numpy(pool_rows)], 256)
        ]
    )
    return Task(
        images=images,
        ids=ids,
        y=part.y_N,
        classes=part.classes,
        pool=pool_rows,
        test=test_rows,
        keys=keys_of(ids[row] for row in pool_rows),
        encoder=encoder,
        features=features,
        embed_s=time.perf_counter() - began,
        work=arguments.work,
        config=FinetuneConfig(
            method="supervised",
            steps=arguments.steps,
            batch_size=64,
            head_lr=0.05,
            backbone_lr=0.05,
            precision=arguments.precision,
        ),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/asvp"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/asvp.json"))
    parser.add_argument("--strategies", nargs="+", default=["margin", "badge"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--label-price", type=float, default=0.036, help="of one label")
    parser.add_argument("--hour-price", type=float, default=0.10, help="of one machine hour")
    return parser.parse_args()


if __name__ == "__main__":
    main()
