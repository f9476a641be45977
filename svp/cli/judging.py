"""`svp gain` and `svp backtest`: what the labels bought, and which strategy suits this pool."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from svp.cli.options import (
    DeviceOption,
    JsonOption,
    ResultFileOption,
    SetOption,
    StudyArgument,
    parse_settings,
    resolve_device,
)
from svp.cli.output import emit, table
from svp.errors import InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.metrics.sampled import Estimate
    from svp.study.backtest import Backtest
    from svp.study.gain import Gain


def gain(
    study: StudyArgument,
    more: Annotated[
        int | None,
        typer.Option("--next", min=1, help="Labels to look ahead; default the last budget."),
    ] = None,
    least: Annotated[
        float, typer.Option("--least", min=0, help="Points that these labels must add, to go on.")
    ] = 0.5,
    price: Annotated[
        float | None, typer.Option("--price", min=0, help="Of one label; with --worth.")
    ] = None,
    worth: Annotated[
        float | None, typer.Option("--worth", min=0, help="Of one point, in the same money.")
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Nominal coverage of the intervals.")
    ] = 0.9,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Judge a campaign by its random labels: accuracy, labels saved, what more would bring.

    Needs strategy.random_share above 0, or rounds of the strategy random.

    Example:

      svp gain mystudy --next 500

      svp gain mystudy --price 0.08 --worth 50
    """
    from svp.metrics.campaign import worthwhile_gain
    from svp.study.gain import estimate_gain
    from svp.study.record import read_rounds
    from svp.study.study import Study

    if (price is None) is not (worth is None):
        raise InputError("--price and --worth must be given together. Got one. Give both.")
    opened = Study.open(study)
    share = least / 100
    if price is not None and worth is not None:
        rounds = read_rounds(opened)
        count = more or (int(rounds[-1].receipt["budget"]) if rounds else 1)
        share = worthwhile_gain(count, price, worth)
    done = estimate_gain(
        opened,
        more=more,
        least=share,
        confidence=confidence,
        device=resolve_device(device),
        progress=automatic(),
    )
    emit(
        "svp.gain/1",
        {"gain": done},
        _gain_text(done),
        as_json=as_json,
        result_file=result_file,
    )


def _percent(one: "Estimate") -> str:
    return f"{100 * one.value:.1f}% ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _gain_text(done: "Gain") -> str:
    rows = [
        [str(one.round), f"{one.labels:,}", f"{one.answered}/{one.random}",
         _percent(one.candidates), _percent(one.hybrid)]
        for one in done.rounds
    ]  # fmt: skip
    header = ["round", "labels", "random", "accuracy on candidates", "pool with people's labels"]
    ahead = done.forecast
    half = 50 * (ahead.high - ahead.low)
    said = [
        table(header, rows),
        "",
        f"Intervals hold the truth in {done.pool.confidence:.0%} of campaigns.",
        f"The model of round {done.round} is right on {_percent(done.pool)} of the pool.",
        f"With all {done.labels:,} labels a model is expected at {_percent(done.now)}.",
    ]
    if done.saved is not None:
        needed, bound = done.saved.random_labels, " or more" if done.saved.bound else ""
        said.append(
            f"Random labels for the same: about {needed.value:,.0f} ({needed.low:,.0f} to "
            f"{needed.high:,.0f}{bound}); saved {_percent(done.saved.share)}."
        )
    said += [
        f"The next {done.more:,} labels: {100 * ahead.value:+.1f} ± {half:.1f} points "
        f"({100 * ahead.low:+.1f} to {100 * ahead.high:+.1f}).",
        f"Advice: {done.advice} (worth it from {100 * done.least:.2f} points on).",
        *(f"Note: {note}" for note in done.notes),
    ]
    return "\n".join(said)


def backtest(
    study: StudyArgument,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", help="May be repeated; default every one of the catalogue."),
    ] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", "-n", min=1, help="Labels per round.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Selections of a run.")] = 5,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Runs of each strategy.")] = 5,
    device: DeviceOption = "auto",
    settings: SetOption = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Replay strategies on the labels that there are, and recommend one for this pool.

    Example:

      svp backtest mystudy --strategy margin --strategy badge
    """
    from svp.study.backtest import backtest as replay_strategies
    from svp.study.study import Study

    done = replay_strategies(
        Study.open(study, parse_settings(settings)),
        strategies=tuple(strategy or ()),
        batch=budget,
        rounds=rounds,
        seeds=seeds,
        device=resolve_device(device),
        progress=automatic(),
    )
    emit(
        "svp.backtest/1",
        {"backtest": done, "biased": done.labelled.biased},
        _backtest_text(done),
        as_json=as_json,
        result_file=result_file,
    )


def _backtest_text(done: "Backtest") -> str:
    rows = [
        [
            row.strategy + (" (reads labels)" if row.reads_labels else ""),
            f"{100 * row.final:.2f} ±{100 * row.final_sd:.2f}",
            f"{100 * row.gain:+.2f} ±{100 * row.gain_sd:.2f}",
            "" if math.isnan(row.p) else f"{row.p:.3f}",
            "yes" if row.better else "",
            "" if math.isnan(row.select_s) else f"{row.select_s:.3f}",
        ]
        for row in done.rows
    ]
    header = ["strategy", "final ±SD", "gain ±SD", "p", "beats random", "select s"]
    said = [
        table(header, rows),
        f"{done.seeds} seeds, {done.sizes[0]:,} to {done.sizes[-1]:,} labels, tested on "
        f"{done.held_out:,} held out by each seed anew. In points; gain: mean over rounds.",
        f"Recommended: {done.verdict}",
        *(f"Note: {note}" for note in done.notes),
        *(f"Left out: {name}: {reason}" for name, reason in done.skipped.items()),
    ]
    return "\n".join(said)
