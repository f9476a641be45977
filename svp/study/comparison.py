"""Simulations on disk as a report compares them: `simulation/*/summary.json` and `results.csv`."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from svp.errors import InputError
from svp.metrics import RandomCurve, mean_saving, mean_sd
from svp.report.content import Comparison, Curve, CurvePoint, Saving
from svp.report.quantity import plural

RANDOM: Final = "random"
# Accuracy by (strategy, proxy), then by seed, then by number of labels.
Runs = Mapping[tuple[str, str], Mapping[int, Mapping[int, float]]]


def read_comparisons(folder: Path) -> tuple[Comparison, ...]:
    """Read every finished simulation, the newest last."""
    found = []
    for path in sorted(folder.glob("*/summary.json")):
        summary = read_json(path)
        if summary.get("points"):
            found.append((str(summary.get("created", "")), path.parent, summary))
    found.sort(key=lambda entry: entry[:2])
    return tuple(_comparison(place, summary) for _, place, summary in found)


def _comparison(folder: Path, summary: Mapping[str, Any]) -> Comparison:
    points: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for point in summary["points"]:
        points.setdefault((point["strategy"], point["proxy"]), []).append(point)
    totals = {(total["strategy"], total["proxy"]): total for total in summary["totals"]}
    spreads = _saving_spreads(_read_runs(folder / "results.csv"))
    curves = tuple(
        Curve(
            strategy=strategy,
            proxy=proxy,
            points=tuple(
                CurvePoint(
                    labels=point["num_labeled"],
                    mean=point["mean"]["test_acc"],
                    sd=point["sd"]["test_acc"],
                    seeds=point["runs"],
                )
                for point in own
            ),
            is_random=strategy == RANDOM,
            reads_labels=own[0]["uses_oracle"],
        )
        for (strategy, proxy), own in points.items()
    )
    savings = [
        _saving(own, points[RANDOM, key[1]], totals[key], spreads.get(key))
        for key, own in points.items()
        if key[0] != RANDOM
    ]
    return Comparison(
        name=folder.name,
        curves=curves,
        savings=tuple(sorted(savings, key=lambda s: (-s.ratio, -s.accuracy, s.strategy, s.proxy))),
        note=_setting(summary),
    )


def _setting(summary: Mapping[str, Any]) -> str:
    """Say on what the strategies were compared."""
    first = summary["points"][0]
    own = [p for p in summary["points"] if (p["strategy"], p["proxy"]) == _key(first)]
    rounds, seeds = plural(len(own) - 1, "round"), plural(first["runs"], "seed")
    batch = summary.get("simulation", {}).get("batch")
    of = "" if batch is None else f" of {plural(batch, 'label')}"
    said = f"Known labels answered {rounds}{of}, with {seeds}"
    tested = summary.get("evaluation", {})
    if "items" not in tested:
        return f"{said}."
    where = {"test": "the test split"}.get(tested.get("split"), "items held out of the pool")
    return f"{said}; tested on {plural(tested['items'], 'item')}, {where}."


def _saving(
    points: Sequence[Mapping[str, Any]],
    random: Sequence[Mapping[str, Any]],
    total: Mapping[str, Any],
    spread: float | None,
) -> Saving:
    best, best_random = (max(p["mean"]["test_acc"] for p in own) for own in (points, random))
    target = min(best, best_random)
    labels, early = _curve(points).labels_for(target)
    random_labels, random_early = _curve(random).labels_for(target)
    last = points[-1]
    return Saving(
        strategy=last["strategy"],
        proxy=last["proxy"],
        accuracy=target,
        labels=labels,
        random_labels=random_labels,
        bound="at least" if early else "at most" if random_early else "measured",
        exceeds=best > best_random,
        mean_ratio=total["saving"],
        sd_ratio=spread,
        mean_measured=total["saving_uncensored"],
        rounds=len(points) - 1,
        censored=total["censored"],
        final_accuracy=last["mean"]["test_acc"],
        gain=last["gain"]["mean"],
        gain_half_width=last["gain"]["half_width"],
    )


def _curve(points: Sequence[Mapping[str, Any]]) -> RandomCurve:
    """Return a mean curve as a function from accuracy to labels, random's or another's."""
    return RandomCurve(
        [point["num_labeled"] for point in points], [point["mean"]["test_acc"] for point in points]
    )


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row["strategy"]), str(row["proxy"])


def _read_runs(path: Path) -> Runs:
    """Return the test accuracies of `results.csv`; empty without the file."""
    runs: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    if not path.is_file():
        return runs
    with path.open(encoding="utf-8", newline="") as stream:
        for line, row in enumerate(csv.DictReader(stream), start=2):
            try:
                size, seed = int(row["num_labeled"]), int(row["seed"])
                runs.setdefault(_key(row), {}).setdefault(seed, {})[size] = float(row["test_acc"])
            except (KeyError, ValueError, TypeError) as error:
                raise InputError(
                    f"{path} must have strategy, proxy and numbers in num_labeled, seed and "
                    f"test_acc. Got {error} in row {line}. Run the simulation again."
                ) from error
    return runs


def _saving_spreads(runs: Runs) -> dict[tuple[str, str], float]:
    """Return the sample SD over seeds of the mean saving, by strategy and proxy.

    Each seed's accuracies are held against the mean of random over seeds, as the mean saving
    itself is; the initial batch, which all strategies share, is left out.
    """
    spreads: dict[tuple[str, str], float] = {}
    for (strategy, proxy), by_seed in runs.items():
        random = runs.get((RANDOM, proxy))
        if strategy == RANDOM or random is None or len(by_seed) < 2:
            continue
        sizes = sorted(set.intersection(*(set(sizes) for sizes in random.values())))
        baseline = RandomCurve(
            sizes, [mean_sd([of[size] for of in random.values()])[0] for size in sizes]
        )
        means = [
            mean_saving([baseline.saving(size, of[size]) for size in sorted(of)[1:]]).every
            for of in by_seed.values()
        ]
        spreads[strategy, proxy] = mean_sd(means)[1]
    return {key: spread for key, spread in spreads.items() if math.isfinite(spread)}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be JSON. Got: {error}. Run what wrote it again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must be a JSON object. Got {type(found).__name__}. Restore it.")
    return found
