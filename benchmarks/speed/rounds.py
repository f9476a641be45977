"""A round of proxy training beside the peers' own trainers: same arrays, settings and accuracy.

LabelBench and ASVP run from clones (`benchmarks.speed.labelbench`, `benchmarks.speed.asvp`),
scikit-learn from its package. Recipes are used as LabelBench's program runs them
(`proxy_preset(..., as_published=True)`): an epoch leaves out its last batch unless that is full
and shuffles the unlabelled rows anew, and mixup does not mix labels. So both sides take the same
steps at the same rates and differ in their random numbers alone. Both stop early on the same
validation rows outside the labels.

LabelBench reads its feature files again in every epoch, which is its design; ours has the arrays
in memory, where they were before the clock started. Processor time is reported beside wall time:
where other programs share the cores it is the fairer of the two.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from typing import Final

import torch

from benchmarks.speed import asvp, labelbench
from benchmarks.speed.labelbench import Round, Trained
from benchmarks.speed.machine import clock, clumps
from benchmarks.speed.pools import CASES
from svp.proxies import (
    LinearConfig,
    MLPConfig,
    ProxyConfig,
    Standardiser,
    StoredViews,
    fit_proxy,
    proxy_preset,
)

_HELD_ROWS: Final = 5000
_VIEW_NOISE: Final = 0.5
_FLEXMATCH: Final = "labelbench-cifar10-flexmatch-linear"
_FLEXMATCH_FILE: Final = "cifar10/flexmatch/clip_ViTB32_linear.json"
_PASSIVE: Final = "labelbench-iwildcam-supervised-linear"
_PASSIVE_FILE: Final = "iwildcam/passive/clip_ViTB32_linear.json"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One of our proxies and a peer's program for the same thing.

    Attributes:
        name: How the command line calls it.
        case: Whose sizes the pool has, of `benchmarks.speed.pools`.
        labelled: Labels.
        peer: `labelbench`, `asvp` or `sklearn`.
        target: Times faster that ours should be.
        preset: LabelBench's recipe of ours.
        file: Its configuration file.
        layers: Its own count of layers.
        workers: Whether it has as many loading processes as its configuration says; else none.
    """

    name: str
    case: str
    labelled: int
    peer: str
    target: float
    preset: str = ""
    file: str = ""
    layers: int = 1
    workers: bool = False


def _flexmatch(name: str, case: str, labelled: int, target: float, **more: bool) -> Comparison:
    return Comparison(
        name=name,
        case=case,
        labelled=labelled,
        peer="labelbench",
        target=target,
        preset=_FLEXMATCH if case == "S" else _FLEXMATCH.replace("cifar10", "cifar100"),
        file=_FLEXMATCH_FILE if case == "S" else _FLEXMATCH_FILE.replace("cifar10", "cifar100"),
        **more,
    )


def _passive(name: str, labelled: int, target: float) -> Comparison:
    return Comparison(
        name=name,
        case="S",
        labelled=labelled,
        peer="labelbench",
        target=target,
        preset=_PASSIVE,
        file=_PASSIVE_FILE,
    )


COMPARISONS: Final = (
    _flexmatch("flexmatch-s-1k", "S", 1000, 30.0),
    _flexmatch("flexmatch-s-10k", "S", 10_000, 25.0),
    _flexmatch("flexmatch-m-10k", "M", 10_000, 10.0),
    _flexmatch("flexmatch-s-1k-workers", "S", 1000, 100.0, workers=True),
    Comparison(
        name="flexmatch-shallow-s-5k",
        case="S",
        labelled=5000,
        peer="labelbench",
        target=6.0,
        preset="labelbench-cifar10-flexmatch-mlp",
        file="cifar10/flexmatch/clip_ViTB32_shallow.json",
        layers=2,
    ),
    _passive("passive-s-1k", 1000, 40.0),
    _passive("passive-s-10k", 10_000, 12.0),
    Comparison(name="asvp-s-10k", case="S", labelled=10_000, peer="asvp", target=1.5),
    Comparison(name="asvp-m-10k", case="M", labelled=10_000, peer="asvp", target=1.5),
    Comparison(name="optimum-s-10k", case="S", labelled=10_000, peer="sklearn", target=1.5),
    Comparison(name="optimum-m-10k", case="M", labelled=10_000, peer="sklearn", target=1.5),
)

#: What runs unless it is asked for by name: everything but what takes minutes by itself.
USUAL: Final = tuple(one.name for one in COMPARISONS if not one.workers)


def rows(options: argparse.Namespace) -> list[dict[str, object]]:
    """Run the comparisons that `options` names and whose peers it has; return a row for each."""
    found: list[dict[str, object]] = []
    tasks: dict[tuple[str, int], Round] = {}
    print(
        f"{'round':<24}{'seconds':>9}{'peer':>9}{'x':>7}{'target':>7}{'cpu s':>8}{'peer':>8}"
        f"{'x':>7}{'steps':>7}{'peer':>6}{'acc':>8}{'sd':>7}{'peer':>8}{'sd':>7}"
    )
    _load_optimisers()
    for one in COMPARISONS:
        if one.name not in options.rounds:
            continue
        if one.peer != "sklearn" and getattr(options, one.peer) is None:
            print(f"{one.name:<24}  left out: it needs --{one.peer} CLONE")
            continue
        key = (one.case, one.labelled)
        if key not in tasks:
            tasks[key] = _task(one, options.pool)
        found.append(_compare(one, tasks[key], options))
    return found


def _load_optimisers() -> None:
    """Let PyTorch's optimisers import what they do at their first step, seconds on a CPU."""
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    for optimiser in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        optimiser([weight], lr=0.1).step()


def _task(one: Comparison, pool: int) -> Round:
    case = CASES[one.case]
    count = pool + 2 * _HELD_ROWS
    x, y = clumps(count, case.dim, case.classes, torch.device("cpu"), case.separation)
    noise = torch.randn(pool, case.dim, generator=torch.Generator().manual_seed(1))
    held = pool + _HELD_ROWS
    return Round(
        x_Nd=x[:pool],
        strong_Nd=x[:pool] + _VIEW_NOISE * noise,
        y_N=y[:pool],
        labelled_L=torch.arange(min(one.labelled, pool // 2)),
        x_Vd=x[pool:held],
        y_V=y[pool:held],
        x_Td=x[held:],
        y_T=y[held:],
        classes=case.classes,
    )


def _config(one: Comparison) -> ProxyConfig:
    if one.peer == "labelbench":
        return proxy_preset(one.preset, as_published=True)
    return MLPConfig() if one.peer == "asvp" else LinearConfig()


def _compare(one: Comparison, task: Round, options: argparse.Namespace) -> dict[str, object]:
    # The first run warms caches up and is not counted.
    ours = _Summary.of([_ours(one, task, seed) for seed in (0, *range(options.repeats))][1:])
    theirs = _Summary.of([_theirs(one, task, options, seed) for seed in range(options.peer_runs)])
    wall, cpu = theirs.seconds / ours.seconds, theirs.cpu_s / ours.cpu_s
    print(
        f"{one.name:<24}{ours.seconds:>9.3g}{theirs.seconds:>9.3g}{wall:>7.1f}{one.target:>7.4g}"
        f"{ours.cpu_s:>8.3g}{theirs.cpu_s:>8.3g}{cpu:>7.1f}{ours.steps:>7.4g}{theirs.steps:>6.4g}"
        f"{ours.accuracy:>8.4f}{ours.spread:>7.4f}{theirs.accuracy:>8.4f}{theirs.spread:>7.4f}",
        flush=True,
    )
    return {
        "proxy": one.name,
        "labelled": len(task.labelled_L),
        "classes": task.classes,
        "pool": len(task.x_Nd),
        "peer": one.peer,
        "peer_workers": one.workers,
        "target": one.target,
        "times_faster": wall,
        "times_less_cpu": cpu,
        **dataclasses.asdict(ours),
        **{f"peer_{name}": value for name, value in dataclasses.asdict(theirs).items()},
    }


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Summary:
    """Several trainings with different seeds.

    Attributes:
        seconds: Median wall time.
        cpu_s: Median processor time.
        steps: Median number of steps.
        accuracy: Mean, on the test rows.
        spread: Its standard deviation over the seeds; 0 for one run.
        runs: How many.
    """

    seconds: float
    cpu_s: float
    steps: float
    accuracy: float
    spread: float
    runs: int

    @classmethod
    def of(cls, runs: Sequence[Trained]) -> "_Summary":
        accuracies = [run.accuracy for run in runs]
        return cls(
            seconds=statistics.median(run.seconds for run in runs),
            cpu_s=statistics.median(run.cpu_s for run in runs),
            steps=statistics.median(run.steps for run in runs),
            accuracy=statistics.mean(accuracies),
            spread=statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
            runs=len(runs),
        )


def _ours(one: Comparison, task: Round, seed: int) -> Trained:
    config, count = _config(one), len(task.labelled_L)
    views = StoredViews(
        weak=(task.x_Nd,),
        strong=(task.strong_Nd,),
        labelled_L=task.labelled_L,
        unlabelled_U=torch.arange(count, len(task.x_Nd)),
    )
    standardiser = Standardiser.fit(task.x_Nd)
    proxy, taken = clock(
        lambda: fit_proxy(
            task.x_Nd[:count],
            task.y_N[:count],
            task.classes,
            config,
            standardiser=standardiser,
            seed=seed,
            views=views,
            validation=(task.x_Vd, task.y_V),
        )
    )
    right = proxy.logits(task.x_Td).argmax(dim=1) == task.y_T
    return Trained(
        seconds=taken.wall,
        cpu_s=taken.cpu,
        steps=proxy.report.steps,
        accuracy=float(right.float().mean()),
    )


def _theirs(one: Comparison, task: Round, options: argparse.Namespace, seed: int) -> Trained:
    if one.peer == "labelbench":
        return labelbench.run(
            options.labelbench, one.file, task, one.layers, seed=seed, workers=one.workers
        )
    config = _config(one)
    if isinstance(config, MLPConfig):
        return asvp.run(options.asvp, task, config, seed=seed)
    assert isinstance(config, LinearConfig)
    return _sklearn(task, config)


def _sklearn(task: Round, config: LinearConfig) -> Trained:
    from sklearn.linear_model import LogisticRegression

    standardiser = Standardiser.fit(task.x_Nd)
    z_Ld, y_L = standardiser(task.x_Nd[task.labelled_L]).numpy(), task.y_N[task.labelled_L].numpy()
    # Its own tolerance bounds the largest entry of the gradient; ours stops about as late.
    model = LogisticRegression(
        C=1.0 / (float(config.l2) * len(y_L)), max_iter=config.max_iterations, tol=2e-5
    )
    _, taken = clock(lambda: model.fit(z_Ld, y_L))
    right = model.predict(standardiser(task.x_Td).numpy()) == task.y_T.numpy()
    return Trained(
        seconds=taken.wall,
        cpu_s=taken.cpu,
        steps=int(model.n_iter_.max()),
        accuracy=float(right.mean()),
    )
