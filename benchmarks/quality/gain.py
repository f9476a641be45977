"""Do the intervals of `svp gain` cover the truth? Campaigns on synthetic pools with known truth.

    python -m benchmarks.quality.gain --campaigns 500

Every campaign has a pool of its own: Gaussian classes of random means, so that a linear model ends
between about 60% and 97%. A round buys a batch, a share of it at random and the rest by the
smallest margin; the model is linear discriminant analysis, in closed form. After the last round the
campaign is judged by its own labels, with the functions that `svp gain` uses, and held against what
only a simulation can know: every label of the pool, a large test set, what the next rounds really
brought, and many runs of random labelling.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svp.metrics import RandomCurve
from svp.metrics.campaign import (
    REACH,
    forecast,
    labels_saved,
    pool_shares,
    progressive_counts,
    whole_error,
)
from svp.metrics.learning_curve import fit_learning_curve
from svp.metrics.sampled import Estimate, sampled_share
from svp.provenance import hardware, now, versions
from svp.seed import numpy_generator

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a campaign is.

    Attributes:
        pool: Items that may be labelled.
        test: Items of the test set that only the simulation sees.
        features: Dimensions.
        classes: Classes.
        initial: Random labels of the first round.
        batch: Labels of each further round.
        random: Of them, drawn at random.
        rounds: Further rounds.
        ahead: Rounds that the forecast looks ahead.
        orders: Random orders of the random labels' own curve.
        repeats: Campaigns on the same pool whose mean is the expected learning curve.
        truth_runs: Runs of random labelling that make its true curve.
        confidence: Nominal coverage.
    """

    pool: int = 2000
    test: int = 4000
    features: int = 8
    classes: int = 4
    initial: int = 40
    batch: int = 40
    random: int = 10
    rounds: int = 6
    ahead: int = 2
    orders: int = 10
    repeats: int = 6
    truth_runs: int = 8
    confidence: float = 0.9


class Model:
    """Linear discriminant analysis with a shrunk common covariance."""

    def __init__(self, x_Ld: Floats, y_L: Rows) -> None:
        self._classes = np.unique(y_L)
        means_Cd = np.stack([x_Ld[y_L == name].mean(axis=0) for name in self._classes])
        centred = x_Ld - means_Cd[np.searchsorted(self._classes, y_L)]
        cov = centred.T @ centred / len(x_Ld)
        prior = np.trace(cov) / len(cov) + 1e-3
        share = min(1.0, len(cov) / len(x_Ld))
        cov = (1 - share) * cov + share * prior * np.eye(len(cov))
        self._weight = np.linalg.solve(cov, means_Cd.T)
        self._bias = -0.5 * np.einsum("cd,dc->c", means_Cd, self._weight)

    def scores(self, x_Nd: Floats) -> Floats:
        """Return a score per class seen."""
        found: Floats = x_Nd @ self._weight + self._bias
        return found

    def predict(self, x_Nd: Floats) -> Rows:
        """Return the class of each row."""
        found: Rows = self._classes[self.scores(x_Nd).argmax(axis=1)]
        return found

    def margin(self, x_Nd: Floats) -> Floats:
        """Return how far the best class is ahead of the second."""
        top = np.sort(self.scores(x_Nd), axis=1)
        found: Floats = top[:, -1] - top[:, -2] if top.shape[1] > 1 else np.zeros(len(x_Nd))
        return found


@dataclasses.dataclass(kw_only=True, slots=True)
class _Path:
    """One run through the rounds: what was bought, measured, and true."""

    drawn: list[Rows]
    chosen: list[Rows] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    wrong: list[float] = dataclasses.field(default_factory=list)
    reached: list[float] = dataclasses.field(default_factory=list)
    found: dict[str, tuple[Estimate, float]] = dataclasses.field(default_factory=dict)


class Campaign:
    """One campaign and everything that is true of it."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._rng = rng = numpy_generator(seed, "gain")
        means = rng.normal(size=(setting.classes, setting.features)) * rng.uniform(0.5, 1.3)
        y_N = rng.integers(setting.classes, size=setting.pool + setting.test)
        x_Nd = means[y_N] + rng.normal(size=(len(y_N), setting.features))
        cut = setting.pool
        self._x, self._y, self._x_test, self._y_test = x_Nd[:cut], y_N[:cut], x_Nd[cut:], y_N[cut:]

    def run(self) -> dict[str, tuple[Estimate, float]]:
        """Return each estimate and its truth, by name."""
        path = self._path()
        paths = [path.reached, *(self._path().reached for _ in range(self._setting.repeats - 1))]
        average = np.mean(paths, axis=0).tolist()
        return path.found | self._curves(path, average)

    def _path(self) -> "_Path":
        """Run the rounds once, from a random start of its own."""
        setting, rng = self._setting, self._rng
        path = _Path(drawn=[rng.permutation(setting.pool)[: setting.initial]])
        taken_wrong: list[Rows] = []
        for number in range(setting.rounds + setting.ahead):
            labelled = np.concatenate([*path.drawn, *path.chosen])
            model = Model(self._x[labelled], self._y[labelled])
            path.reached.append(self._test(model))
            free = np.setdiff1d(np.arange(setting.pool), labelled)
            random = rng.permutation(free)[: setting.random]
            left = np.setdiff1d(free, random)
            order = np.argsort(model.margin(self._x[left]), kind="stable")
            chosen = left[order[: setting.batch - setting.random]]
            if number < setting.rounds:  # beyond, only the simulation looks
                right = model.predict(self._x) == self._y
                path.found |= self._accuracy(number, right, labelled, free, random)
                path.sizes.append(len(labelled))
                error = whole_error(
                    float(np.mean(~right[random])),
                    len(free),
                    np.concatenate(taken_wrong).tolist() if taken_wrong else [],
                    sum(map(len, path.drawn)),
                )
                path.wrong.append(error * len(random))
                taken_wrong.append(~right[chosen])
            path.drawn.append(random)
            path.chosen.append(chosen)
        labelled = np.concatenate([*path.drawn, *path.chosen])
        path.reached.append(self._test(Model(self._x[labelled], self._y[labelled])))
        return path

    def _test(self, model: Model) -> float:
        return float(np.mean(model.predict(self._x_test) == self._y_test))

    def _accuracy(
        self,
        number: int,
        right: npt.NDArray[np.bool_],
        labelled: Rows,
        free: Rows,
        random: Rows,
    ) -> dict[str, tuple[Estimate, float]]:
        chance = np.full(len(random), len(random) / len(free))
        estimate = sampled_share(
            right[random].tolist(), chance.tolist(), len(free), confidence=self._setting.confidence
        )
        shift, factor = pool_shares(right[labelled].tolist(), len(labelled), len(free))
        whole = estimate.scaled(factor, shift)
        return {
            f"candidates/{number}": (estimate, float(right[free].mean())),
            f"pool/{number}": (whole, float(right.mean())),
        }

    def _curves(self, path: "_Path", average: list[float]) -> dict[str, tuple[Estimate, float]]:
        setting, rng = self._setting, self._rng
        tested = [float(setting.random)] * len(path.sizes)
        curve = fit_learning_curve(path.sizes, path.wrong, tested)
        labels = path.sizes[-1] + setting.batch
        ahead = setting.batch * setting.ahead
        own = np.concatenate(path.drawn[: setting.rounds + 1])
        picked = np.concatenate(path.chosen[: setting.rounds])
        # What a random sample would hold of the items that the strategy took.
        extra = round(len(own) * len(picked) / (setting.pool - len(picked)))
        sample = np.concatenate([own, rng.permutation(picked)[:extra]])

        def fit(trained: Rows, asked: Rows) -> npt.NDArray[np.bool_] | None:
            rows, others = sample[trained], sample[asked]
            if len(np.unique(self._y[rows])) < 2:
                return None
            model = Model(self._x[rows], self._y[rows])
            right: npt.NDArray[np.bool_] = model.predict(self._x[others]) == self._y[others]
            return right

        counts = progressive_counts(len(sample), fit, rng, orders=setting.orders)
        random = fit_learning_curve(counts.labels, counts.wrong, counts.tested)
        reach = min(REACH * len(sample), float(setting.pool))
        saved = labels_saved(curve, random, labels, rng, reach=reach, confidence=setting.confidence)
        end = setting.rounds
        needed, _ = self._random_truth().labels_for(average[end])
        needed = min(needed, reach)
        smooth = curve.accuracy(labels, setting.confidence)
        gain = forecast(curve, labels, ahead, rng, confidence=setting.confidence)
        later = curve.accuracy(labels + ahead, setting.confidence)
        return {
            "accuracy now, on average": (smooth, average[end]),
            "accuracy now, this run": (smooth, path.reached[end]),
            "accuracy ahead, on average": (later, average[-1]),
            "accuracy ahead, this run": (later, path.reached[-1]),
            "gain ahead, on average": (gain, average[-1] - average[end]),
            "gain ahead, this run": (gain, path.reached[-1] - path.reached[end]),
            "random labels for the same": (saved.random_labels, needed),
            "share of labels saved": (saved.share, (needed - labels) / needed),
        }

    def _random_truth(self) -> RandomCurve:
        setting, rng = self._setting, self._rng
        sizes = sorted({round(10 * 1.35**k) for k in range(18) if 10 * 1.35**k <= setting.pool})
        means = np.zeros(len(sizes))
        for _ in range(setting.truth_runs):
            order = rng.permutation(setting.pool)
            for place, size in enumerate(sizes):
                rows = order[:size]
                model = Model(self._x[rows], self._y[rows])
                means[place] += np.mean(model.predict(self._x_test) == self._y_test)
        return RandomCurve(sizes, (means / setting.truth_runs).tolist())


def measure(setting: Setting, campaigns: int) -> dict[str, Any]:
    """Run campaigns and count how often intervals hold the truth."""
    found: dict[str, list[tuple[Estimate, float]]] = {}
    for seed in range(campaigns):
        for name, pair in Campaign(setting, seed).run().items():
            found.setdefault(name, []).append(pair)
    rows = [_row(name, pairs) for name, pairs in found.items() if "/" not in name]
    for kind in ("candidates", "pool"):
        by_round = [pairs for name, pairs in found.items() if name.startswith(f"{kind}/")]
        rows.append(_row(f"{kind} accuracy, last round", by_round[-1]))
        rows.append(_row(f"{kind} accuracy, all rounds", [p for pairs in by_round for p in pairs]))
    return {"rows": rows}


def _row(name: str, pairs: list[tuple[Estimate, float]]) -> dict[str, Any]:
    value, low, high = (
        np.asarray([getattr(estimate, field) for estimate, _ in pairs])
        for field in ("value", "low", "high")
    )
    truth = np.asarray([truth for _, truth in pairs])
    held = (low - 1e-12 <= truth) & (truth <= high + 1e-12)
    share = float(held.mean())
    return {
        "estimate": name,
        "intervals": len(pairs),
        "coverage": round(share, 4),
        "monte_carlo_se": round(float(np.sqrt(share * (1 - share) / len(pairs))), 4),
        "truth_below": round(float((truth < low - 1e-12).mean()), 4),
        "truth_above": round(float((truth > high + 1e-12).mean()), 4),
        "bias": round(float((value - truth).mean()), 4),
        "bias_se": round(float((value - truth).std(ddof=1) / np.sqrt(len(pairs))), 4),
        "mean_width": round(float((high - low).mean()), 4),
        "mean_truth": round(float(truth.mean()), 4),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gain.json"))
    options = parser.parse_args()
    began, setting = time.monotonic(), Setting()
    result = measure(setting, options.campaigns)
    document = {
        "schema": "svp.bench.gain/1",
        "created": now(),
        "campaigns": options.campaigns,
        "setting": dataclasses.asdict(setting),
        **result,
        "seconds": round(time.monotonic() - began, 1),
        "versions": versions(),
        "hardware": hardware(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in result["rows"]:
        print(
            f"{row['estimate']:32} {row['coverage']:.3f} ±{row['monte_carlo_se']:.3f}  "
            f"below {row['truth_below']:.3f} above {row['truth_above']:.3f}  "
            f"bias {row['bias']:+.4f} ±{row['bias_se']:.4f}  width {row['mean_width']:.3f}  "
            f"truth {row['mean_truth']:.3f}"
        )
    print(f"{document['seconds']} s")


if __name__ == "__main__":
    main()
