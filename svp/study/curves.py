"""What a simulation's cells say together: curves over seeds, gains over random, labels saved.

Accuracies stay shares in [0, 1]. Standard deviations are of the sample (ddof 1).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from svp.metrics import (
    Paired,
    RandomCurve,
    Saving,
    mean_saving,
    mean_sd,
    paired_difference,
    penalty_matrix,
)

RESULT_COLUMNS: Final = (
    "strategy",
    "proxy",
    "seed",
    "num_labeled",
    "test_acc",
    "balanced_acc",
    "macro_f1",
    "pool_acc",
    "imbalance",
    "select_s",
    "train_s",
    "pool_acc_model",
    "entropy_share",
    "unseen_classes",
)
_AVERAGED: Final = ("test_acc", "balanced_acc", "macro_f1", "pool_acc", "pool_acc_model")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run: a strategy with a proxy and a seed.

    Attributes:
        strategy: Name of the strategy.
        proxy: Kind of the proxy.
        seed: Seed.
        uses_oracle: Whether the strategy read labels inside a batch.
        rounds: One mapping of `RESULT_COLUMNS` from `num_labeled` on, per round.
        selected: Ids chosen per round; the first entry is the initial batch.
    """

    strategy: str
    proxy: str
    seed: int
    uses_oracle: bool
    rounds: tuple[Mapping[str, float], ...]
    selected: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """A strategy and proxy at one number of labels, over seeds.

    Attributes:
        strategy: Name of the strategy.
        proxy: Kind of the proxy.
        num_labeled: Labels so far.
        runs: Seeds.
        mean: Mean per metric.
        sd: Sample standard deviation per metric; NaN for one seed.
        gain: Test accuracy minus random's on the same seeds.
        saving: What these labels are worth in random labels, by mean test accuracy.
        uses_oracle: Whether the strategy read labels inside a batch.
    """

    strategy: str
    proxy: str
    num_labeled: int
    runs: int
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    gain: Paired
    saving: Saving
    uses_oracle: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurveTotal:
    """A strategy and proxy over all its rounds.

    Attributes:
        strategy: Name of the strategy.
        proxy: Kind of the proxy.
        mean_gain: Mean over rounds, the shared initial one included, of the gain over random.
        saving: Mean saving over the rounds after the initial one, bounds taken as they are.
        saving_uncensored: The same without the rounds that are bounds; NaN if none is left.
        censored: Rounds whose saving is a bound.
        select_s: Mean seconds of a selection.
        train_s: Mean seconds of a proxy fit.
        uses_oracle: Whether the strategy read labels inside a batch.
    """

    strategy: str
    proxy: str
    mean_gain: float
    saving: float
    saving_uncensored: float
    censored: int
    select_s: float
    train_s: float
    uses_oracle: bool


def result_rows(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Return one row per cell and round, by `RESULT_COLUMNS`."""
    return [
        {"strategy": cell.strategy, "proxy": cell.proxy, "seed": cell.seed, **numbers}
        for cell in cells
        for numbers in cell.rounds
    ]


def curve_points(cells: Sequence[Cell]) -> list[CurvePoint]:
    """Average cells over seeds and compare each with random under the same proxy."""
    groups = _grouped(cells)
    points: list[CurvePoint] = []
    for (strategy, proxy), runs in groups.items():
        baseline = groups["random", proxy]
        sizes = [int(numbers["num_labeled"]) for numbers in runs[0].rounds]
        random_curve = RandomCurve(
            sizes,
            [mean_sd(_column(baseline, place, "test_acc"))[0] for place in range(len(sizes))],
        )
        for place, size in enumerate(sizes):
            averaged = {name: mean_sd(_column(runs, place, name)) for name in _AVERAGED}
            mean = {name: pair[0] for name, pair in averaged.items()}
            points.append(
                CurvePoint(
                    strategy=strategy,
                    proxy=proxy,
                    num_labeled=size,
                    runs=len(runs),
                    mean=mean,
                    sd={name: pair[1] for name, pair in averaged.items()},
                    gain=paired_difference(
                        _column(runs, place, "test_acc"), _column(baseline, place, "test_acc")
                    ),
                    saving=random_curve.saving(size, mean["test_acc"]),
                    uses_oracle=runs[0].uses_oracle,
                )
            )
    return points


def curve_totals(cells: Sequence[Cell], points: Sequence[CurvePoint]) -> list[CurveTotal]:
    """Summarise each strategy and proxy over its rounds."""
    totals: list[CurveTotal] = []
    for (strategy, proxy), runs in _grouped(cells).items():
        own = [point for point in points if (point.strategy, point.proxy) == (strategy, proxy)]
        saving = mean_saving([point.saving for point in own[1:]])
        chosen = [numbers["select_s"] for run in runs for numbers in run.rounds[1:]]
        trained = [numbers["train_s"] for run in runs for numbers in run.rounds]
        totals.append(
            CurveTotal(
                strategy=strategy,
                proxy=proxy,
                mean_gain=mean_sd([point.gain.mean for point in own])[0],
                saving=saving.every,
                saving_uncensored=saving.uncensored,
                censored=saving.censored,
                select_s=mean_sd(chosen)[0] if chosen else math.nan,
                train_s=mean_sd(trained)[0],
                uses_oracle=runs[0].uses_oracle,
            )
        )
    return totals


def penalties(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Return the penalty matrix of each proxy; nothing with fewer than two seeds."""
    groups = _grouped(cells)
    found: dict[str, dict[str, Any]] = {}
    for proxy in dict.fromkeys(cell.proxy for cell in cells):
        runs = {
            strategy: [[numbers["test_acc"] for numbers in run.rounds] for run in group]
            for (strategy, kind), group in groups.items()
            if kind == proxy
        }
        if all(len(group) >= 2 for group in runs.values()):
            names, share_KK = penalty_matrix(runs)
            found[proxy] = {"strategies": list(names), "share_won": share_KK.tolist()}
    return found


def _grouped(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        groups.setdefault((cell.strategy, cell.proxy), []).append(cell)
    order = {(cell.strategy, cell.proxy): place for place, cell in reversed([*enumerate(cells)])}
    return dict(sorted(groups.items(), key=lambda entry: order[entry[0]]))


def _column(runs: Sequence[Cell], place: int, name: str) -> list[float]:
    return [float(run.rounds[place][name]) for run in runs]
