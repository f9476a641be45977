"""What learning curves say against a baseline: savings, gains, efficiency, who beats whom.

The same measures for a simulation of svp, a paper's table or another tool's log. Accuracies stay in
the unit of the file. Standard deviations are of the sample (ddof 1).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from svp.errors import InputError
from svp.metrics import (
    Efficiency,
    Penalties,
    RandomCurve,
    Saving,
    Smoothing,
    average_improvement,
    labelling_efficiency,
    mean_saving,
    mean_sd,
    paired_difference,
    penalties,
    standard_error,
)
from svp.study.curve_file import CurveFile, CurveGroup, Runs

# Rounds of two curves are the same round if their sizes differ by less than this share: some
# strategies ask for a label more than they were told to.
_SAME_ROUND: Final = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredPoint:
    """A strategy at one number of labels.

    Attributes:
        num_labeled: Labels.
        mean: Mean over seeds, as measured.
        sd: Sample standard deviation over seeds; NaN for one seed.
        baseline_labels: N2, labels with which the baseline reaches `mean`; NaN without baseline.
        saving: (N2 - N1) / N2.
        censored: `right` (at least), `left` (at most) or None.
    """

    num_labeled: float
    mean: float
    sd: float
    baseline_labels: float
    saving: float
    censored: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurveRow:
    """A strategy in a group, over all its rounds; NaN where a number cannot be said.

    Attributes:
        strategy: Its name.
        is_baseline: Whether the others are measured against it.
        seeds: Runs.
        rounds: Recorded sizes in the averages of savings.
        rounds_censored: Of these, how many are bounds.
        rounds_at_least: Of these, where the baseline never got as far.
        rounds_at_most: Of these, where the baseline was there with its first labels.
        saving_mean: Mean saving, bounds taken as they are.
        saving_mean_uncensored: Mean over the rounds that are no bounds.
        saving_sd: Sample standard deviation over seeds of a seed's mean saving.
        final_labels: Labels at the last round.
        final_mean: Mean there.
        final_sd: Standard deviation over seeds there.
        final_se: Standard error of that mean.
        best_mean: Running maximum of the means.
        api: Mean gain over the baseline at equal rounds, the first one included.
        api_rounds: How many rounds are in it.
        gain_final: Gain at the last equal round, paired by seed.
        gain_half_width: Half its 95% interval.
        wins: Share of equal rounds at which it is significantly better than the baseline.
        losses: The same, worse.
        unseen_variance: Rounds among both whose differences are one number over all seeds.
        efficiency: Labelling efficiency N2 / N1 at the highest accuracy that both reached.
        efficiency_recorded: The same at recorded sizes.
        efficiency_bound: `measured`, `at least`, `at most` or `unknown`.
        efficiency_target: That accuracy.
        points: Its curve.
    """

    strategy: str
    is_baseline: bool
    seeds: int
    rounds: int
    rounds_censored: int
    rounds_at_least: int
    rounds_at_most: int
    saving_mean: float
    saving_mean_uncensored: float
    saving_sd: float
    final_labels: float
    final_mean: float
    final_sd: float
    final_se: float
    best_mean: float
    api: float
    api_rounds: int
    gain_final: float
    gain_half_width: float
    wins: float
    losses: float
    unseen_variance: int
    efficiency: float
    efficiency_recorded: float
    efficiency_bound: str
    efficiency_target: float
    points: tuple[MeasuredPoint, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredGroup:
    """Strategies that are compared with each other.

    Attributes:
        key: Values of the group columns.
        baseline: The baseline's name here; None if it has none.
        rows: The baseline first, the others by their saving.
        penalties: Everybody against everybody, where all have the same seeds and rounds.
    """

    key: Mapping[str, str]
    baseline: str | None
    rows: tuple[CurveRow, ...]
    penalties: Penalties | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Curve:
    """A strategy over its seeds at the sizes all of them recorded.

    Shapes: S seeds, R rounds.
    """

    seeds: tuple[int | str, ...]
    sizes_R: tuple[float, ...]
    values_SR: tuple[tuple[float, ...], ...]

    @property
    def means_R(self) -> list[float]:
        return [mean_sd(column)[0] for column in zip(*self.values_SR, strict=True)]


def measure_curves(
    curves: CurveFile, baseline: str, *, smoothing: Smoothing = "max", skip: int = 0
) -> tuple[MeasuredGroup, ...]:
    """Measure every strategy of every group against the group's baseline.

    Args:
        curves: See `svp.study.curve_file.read_curves`.
        baseline: Name of the strategy to measure against; `random` also finds `random_sampling`
            in a group that has no `random`.
        smoothing: Of the baseline inside the inverse; see `svp.metrics.RandomCurve`.
        skip: Recorded sizes to leave out of the savings at the start, such as a shared first batch.

    Raises:
        InputError: No group has the baseline, or a strategy's seeds share no recorded size.
    """
    found = tuple(_measure(group, curves, baseline, smoothing, skip) for group in curves.groups)
    if all(group.baseline is None for group in found):
        names = dict.fromkeys(name for group in curves.groups for name in group.runs)
        raise InputError(
            f"The baseline must be one of the strategies: {', '.join(names)}. Got {baseline!r}. "
            "Name another with --baseline."
        )
    return found


def find_baseline(names: Sequence[str], baseline: str) -> str | None:
    """Return the strategy that `baseline` means, by its name or without `_sampling`."""
    if baseline in names:
        return baseline

    def plain(name: str) -> str:
        return name.lower().removesuffix("sampling").rstrip("_- ")

    near = [name for name in names if plain(name) == plain(baseline)]
    return near[0] if len(near) == 1 else None


def _measure(
    group: CurveGroup, curves: CurveFile, baseline: str, smoothing: Smoothing, skip: int
) -> MeasuredGroup:
    key = dict(zip(curves.columns, group.key, strict=True))
    by_name = {name: _curve(name, runs) for name, runs in group.runs.items()}
    chosen = find_baseline(tuple(by_name), baseline)
    base = by_name[chosen] if chosen is not None else None
    rows = [
        _row(name, curve, base, name == chosen, smoothing, skip) for name, curve in by_name.items()
    ]
    return MeasuredGroup(
        key=key,
        baseline=chosen,
        rows=tuple(
            sorted(rows, key=lambda row: (not row.is_baseline, -_or(row.saving_mean, -math.inf)))
        ),
        penalties=_everybody(by_name),
    )


def _or(value: float, other: float) -> float:
    return value if math.isfinite(value) else other


def _curve(name: str, runs: Runs) -> _Curve:
    seeds = tuple(runs)
    shared = sorted(set.intersection(*(set(run) for run in runs.values())))
    if shared:
        values = tuple(tuple(runs[seed][size] for size in shared) for seed in seeds)
        return _Curve(seeds=seeds, sizes_R=tuple(map(float, shared)), values_SR=values)
    counts = {len(run) for run in runs.values()}
    if len(counts) > 1:
        raise InputError(
            f"Seeds of {name} must share recorded numbers of labels, or have equally many rounds. "
            f"Got {', '.join(map(str, sorted(counts)))} rounds without a common size. "
            "Leave out the runs that do not belong together."
        )
    # As many rounds at slightly other sizes: round by round, at the mean size.
    ordered = [sorted(run.items()) for run in runs.values()]
    return _Curve(
        seeds=seeds,
        sizes_R=tuple(mean_sd([size for size, _ in at])[0] for at in zip(*ordered, strict=True)),
        values_SR=tuple(tuple(value for _, value in run) for run in ordered),
    )


def _row(
    name: str,
    curve: _Curve,
    base: _Curve | None,
    is_baseline: bool,
    smoothing: Smoothing,
    skip: int,
) -> CurveRow:
    means_R = curve.means_R
    savings: list[Saving | None] = [None] * len(means_R)
    efficiency = recorded = None
    per_seed: list[float] = []
    if base is not None:
        inverse = RandomCurve(base.sizes_R, base.means_R, smoothing=smoothing)
        savings = [inverse.saving(n, a) for n, a in zip(curve.sizes_R, means_R, strict=True)]
        for values_R in curve.values_SR:
            own = [inverse.saving(n, a) for n, a in zip(curve.sizes_R, values_R, strict=True)]
            per_seed.append(mean_saving(own[skip:]).every)
        efficiency, recorded = _efficiencies(curve, base)
    counted = [saving for saving in savings[skip:] if saving is not None]
    mean = mean_saving(counted)
    finals = [values_R[-1] for values_R in curve.values_SR]
    final_mean, final_sd = mean_sd(finals)
    return CurveRow(
        strategy=name,
        is_baseline=is_baseline,
        seeds=len(curve.seeds),
        rounds=len(means_R[skip:]),
        rounds_censored=mean.censored,
        rounds_at_least=sum(saving.censored == "right" for saving in counted),
        rounds_at_most=sum(saving.censored == "left" for saving in counted),
        saving_mean=mean.every,
        saving_mean_uncensored=mean.uncensored,
        saving_sd=mean_sd(per_seed)[1] if len(per_seed) > 1 else math.nan,
        final_labels=curve.sizes_R[-1],
        final_mean=final_mean,
        final_sd=final_sd,
        final_se=standard_error(finals),
        best_mean=max(means_R),
        **_against(curve, base),
        efficiency=math.nan if efficiency is None else efficiency.ratio,
        efficiency_recorded=math.nan if recorded is None else recorded.ratio,
        efficiency_bound="unknown" if efficiency is None else efficiency.bound,
        efficiency_target=math.nan if efficiency is None else efficiency.target,
        points=tuple(
            MeasuredPoint(
                num_labeled=size,
                mean=value,
                sd=mean_sd(column)[1],
                baseline_labels=math.nan if saving is None else saving.random_labels,
                saving=math.nan if saving is None else saving.ratio,
                censored=None if saving is None else saving.censored,
            )
            for size, value, column, saving in zip(
                curve.sizes_R, means_R, zip(*curve.values_SR, strict=True), savings, strict=True
            )
        ),
    )


def _efficiencies(curve: _Curve, base: _Curve) -> tuple[Efficiency, Efficiency]:
    target = min(max(curve.means_R), max(base.means_R))
    sides = (curve.sizes_R, curve.means_R, base.sizes_R, base.means_R)
    return (
        labelling_efficiency(*sides, target),
        labelling_efficiency(*sides, target, reading="recorded"),
    )


def _equal_rounds(one: _Curve, other: _Curve) -> list[tuple[int, int]]:
    """Return positions of equal rounds: equal sizes, or place by place where sizes are close."""
    if len(one.sizes_R) == len(other.sizes_R) and all(
        abs(a - b) <= _SAME_ROUND * b for a, b in zip(one.sizes_R, other.sizes_R, strict=True)
    ):
        return [(place, place) for place in range(len(one.sizes_R))]
    at = {size: place for place, size in enumerate(other.sizes_R)}
    return [(place, at[size]) for place, size in enumerate(one.sizes_R) if size in at]


def _against(curve: _Curve, base: _Curve | None) -> dict[str, Any]:
    """Return what compares a curve with the baseline at equal rounds."""
    nothing = {
        "api": math.nan,
        "api_rounds": 0,
        "gain_final": math.nan,
        "gain_half_width": math.nan,
        "wins": math.nan,
        "losses": math.nan,
        "unseen_variance": 0,
    }
    rounds = [] if base is None else _equal_rounds(curve, base)
    if base is None or not rounds:
        return nothing
    own_R, base_R = curve.means_R, base.means_R
    found = {
        **nothing,
        "api": average_improvement([own_R[i] for i, _ in rounds], [base_R[j] for _, j in rounds]),
        "api_rounds": len(rounds),
    }
    seeds = [seed for seed in curve.seeds if seed in base.seeds]
    if seeds:
        own_SR = [
            [curve.values_SR[curve.seeds.index(seed)][i] for i, _ in rounds] for seed in seeds
        ]
        base_SR = [[base.values_SR[base.seeds.index(seed)][j] for _, j in rounds] for seed in seeds]
        last = paired_difference([run[-1] for run in own_SR], [run[-1] for run in base_SR])
        found |= {"gain_final": last.mean, "gain_half_width": last.half_width}
        if len(seeds) > 1:
            both = penalties({"own": own_SR, "baseline": base_SR})
            found |= {
                "wins": float(both.share_KK[0, 1]),
                "losses": float(both.share_KK[1, 0]),
                "unseen_variance": int(both.constant_KK.sum()),
            }
    return found


def _everybody(by_name: Mapping[str, _Curve]) -> Penalties | None:
    """Return the penalty matrix, if all have the same seeds, at least two, and equal rounds."""
    first = next(iter(by_name.values()))
    whole = [(place, place) for place in range(len(first.sizes_R))]
    same = all(
        set(curve.seeds) == set(first.seeds) and _equal_rounds(curve, first) == whole
        for curve in by_name.values()
    )
    if len(first.seeds) < 2 or not same:
        return None
    return penalties(
        {
            name: [curve.values_SR[curve.seeds.index(seed)] for seed in first.seeds]
            for name, curve in by_name.items()
        }
    )
