"""A campaign judged by its own labels, and strategies replayed on them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from study_fixtures import config_of, truth_of, write_labels, write_material

from svp.cli import run
from svp.errors import InputError
from svp.metrics.campaign import (
    advise,
    forecast,
    labels_saved,
    pool_shares,
    progressive_counts,
    whole_error,
    worthwhile_gain,
)
from svp.metrics.learning_curve import fit_learning_curve
from svp.metrics.sampled import Estimate, sampled_share
from svp.study.backtest import backtest, compare, recommend
from svp.study.config import StrategySection
from svp.study.curves import Cell
from svp.study.gain import estimate_gain, random_picks
from svp.study.labels import import_labels
from svp.study.record import read_rounds
from svp.study.rounds import select
from svp.study.study import Study


def test_a_share_of_a_sample():
    one = sampled_share([True] * 8 + [False] * 2, [0.1] * 10, 100)
    assert one.value == 0.8
    assert one.low < 0.8 < one.high
    # Unequal chances: an item drawn half as likely stands for twice as many.
    assert sampled_share([True, False], [0.1, 0.2], 20).value == pytest.approx(2 / 3)
    every = sampled_share([True, False], [1.0, 1.0], 2)
    assert (every.low, every.high) == (0.5, 0.5)
    assert sampled_share([True] * 5, [0.1] * 5, 50).high == 1.0
    half = sampled_share([True] * 8 + [False] * 2, [0.5] * 10, 20)
    assert half.high - half.low < one.high - one.low  # half of the population was seen
    for wrong in ([], [0.0], [1.5]):
        with pytest.raises(InputError):
            sampled_share([True] * len(wrong), wrong, 10)


def test_intervals_of_shares_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1500):
        population = rng.random(300) < rng.uniform(0.65, 0.97)
        drawn = rng.permutation(300)[:25]
        one = sampled_share(population[drawn].tolist(), [25 / 300] * 25, 300)
        held.append(one.low <= population.mean() <= one.high)
    assert np.mean(held) == pytest.approx(0.9, abs=0.025)


def test_a_curve_with_much_data_finds_the_truth():
    sizes = [50, 100, 200, 400, 800]
    error = [0.4 * (n / 50) ** -0.5 for n in sizes]
    curve = fit_learning_curve(sizes, [10_000 * e for e in error], [10_000] * 5)
    now = curve.accuracy(400)
    assert now.value == pytest.approx(1 - error[3], abs=0.01)
    assert now.low <= 1 - error[3] <= now.high
    later = curve.accuracy(1600)
    assert later.low <= 1 - 0.4 * 32**-0.5 <= later.high
    few = fit_learning_curve(sizes, [5 * e for e in error], [5] * 5).accuracy(400)
    assert few.high - few.low > 5 * (now.high - now.low)
    rng = np.random.default_rng(0)
    ahead = forecast(curve, 400, 400, rng)
    assert ahead.low <= error[3] - error[4] <= ahead.high
    with pytest.raises(InputError, match="tested items"):
        fit_learning_curve([], [], [])


def test_labels_saved_of_known_curves():
    sizes = [50, 100, 200, 400, 800]
    own = [0.3 * (n / 50) ** -0.5 for n in sizes]
    random = [0.3 * (n / 100) ** -0.5 for n in sizes]  # needs twice as many labels
    curves = [
        fit_learning_curve(sizes, [20_000 * e for e in errors], [20_000] * 5)
        for errors in (own, random)
    ]
    rng = np.random.default_rng(0)
    saved = labels_saved(*curves, 300, rng, reach=5000)
    assert saved.random_labels.low <= 600 <= saved.random_labels.high
    assert saved.share.value == pytest.approx(0.5, abs=0.05)
    assert not saved.bound
    assert labels_saved(*curves, 300, rng, reach=400).bound
    assert labels_saved(*curves, 300, rng, reach=5000, least=800).random_labels.low == 800
    same = labels_saved(curves[0], curves[0], 300, rng, reach=5000)
    assert same.share.low <= 0 <= same.share.high


def test_progressive_counts_test_each_item_once_and_never_one_trained_on():
    seen = []

    def fit(trained, asked):
        assert not set(trained) & set(asked)
        seen.append((len(trained), len(asked)))
        return asked % 4 != 0

    counts = progressive_counts(40, fit, np.random.default_rng(0), orders=3)
    assert counts.labels == (8, 16, 32)
    assert counts.tested == (8, 16, 8)
    assert len(seen) == 9
    assert (
        progressive_counts(40, lambda a, b: None, np.random.default_rng(0), orders=2).labels == ()
    )


def test_advice_and_shares():
    def gain(low, high):
        return Estimate(value=(low + high) / 2, low=low, high=high, confidence=0.9)

    assert advise(gain(-0.01, 0.004), 0.005) == "stop"
    assert advise(gain(0.006, 0.02), 0.005) == "continue"
    assert advise(gain(0.0, 0.02), 0.005) == "undecided"
    assert worthwhile_gain(500, 0.08, 50) == pytest.approx(0.008)
    with pytest.raises(InputError):
        worthwhile_gain(500, 0.08, 0)
    # 3 of 4 labelled ones right, 6 candidates at 0.5: 6 of 10.
    shift, factor = pool_shares([True, True, True, False], 4, 6)
    assert shift + factor * 0.5 == pytest.approx(0.6)
    # 90 like the candidates at 10%, 10 that the strategy took, all wrong then.
    assert whole_error(0.1, 80, [True] * 10, 10) == pytest.approx((9 + 10) / 100)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        write_material(root, train=40)
        section = StrategySection(name="margin", first_round="random", random_share=0.5)
        study = Study.create(root / "study", config_of(root, strategy=section))
        truth = truth_of(study)
        for number in range(4):
            done = select(study, 16)
            answers = {pick.id: truth[pick.id] for pick in done.picks}
            import_labels(study, write_labels(root / f"{number}.csv", answers))
    return study


def test_gain_of_a_campaign(campaign):
    done = estimate_gain(campaign, more=20)
    rounds = read_rounds(campaign)
    assert [one.round for one in done.rounds] == [1, 2, 3]
    assert [one.labels for one in done.rounds] == [16, 32, 48]
    assert done.labels == 64
    assert done.random == 16 + 3 * 8  # all of the first round was random
    truth = truth_of(campaign)
    for one, found in zip(done.rounds, rounds[1:], strict=True):
        drawn = [pick for pick in found.picks if pick.probability is not None]
        assert (one.random, one.answered) == (8, 8)
        right = np.mean([pick.predicted == truth[pick.id] for pick in drawn])
        assert one.candidates.value == pytest.approx(right)
        assert one.hybrid.value > one.candidates.value or right == 1
    assert done.round == 3
    assert done.pool.low <= done.pool.value <= done.pool.high
    assert done.forecast.low <= done.forecast.value <= done.forecast.high
    assert done.saved is not None
    assert any("8 random items" in note for note in done.notes)
    assert estimate_gain(campaign, more=20) == done


def test_gain_needs_random_labels(campaign, tmp_path):
    with pytest.raises(InputError, match="confidence"):
        estimate_gain(campaign, confidence=1.0)
    other = Study.create(tmp_path / "other", config_of(campaign.path.parent))
    with pytest.raises(InputError, match="random_share"):
        estimate_gain(other)


def test_rounds_of_the_strategy_random_are_random(campaign):
    first = read_rounds(campaign)[0]
    assert len(random_picks(first)) == 16
    assert all(pick.probability == pytest.approx(16 / 120) for pick in random_picks(first))


def _cells(name, curves):
    return [
        Cell(
            strategy=name, proxy="linear", seed=seed, uses_oracle=False, selected=(),
            rounds=tuple({"num_labeled": 10 * (at + 1), "test_acc": value, "select_s": 0.0}
                         for at, value in enumerate(curve)),
        )
        for seed, curve in enumerate(curves)
    ]  # fmt: skip


def test_only_what_is_told_apart_from_random_is_recommended():
    random = [[0.5, 0.6 + s / 100] for s in range(5)]
    better = [[0.5, 0.7 + s / 100 + (-1) ** s / 500] for s in range(5)]
    lucky = [[0.5, 0.6 + s / 100 + gain] for s, gain in enumerate((0.2, -0.1, 0.0, 0.1, -0.1))]
    rows = compare(
        {"random": _cells("random", random), "good": _cells("good", better),
         "luck": _cells("luck", lucky)}
    )  # fmt: skip
    assert [row.strategy for row in rows] == ["good", "luck", "random"]
    assert rows[0].gain == pytest.approx(0.1 + 0.002 / 5, abs=1e-9)
    assert (rows[0].better, rows[1].better) == (True, False)
    assert math.isnan(rows[2].p)
    assert recommend(rows)[0] == "good"
    none = compare({"random": _cells("random", random), "luck": _cells("luck", lucky)})
    assert recommend(none)[0] is None
    assert "random" in recommend(none)[1].lower()


def test_backtest_of_a_campaign(campaign):
    done = backtest(campaign, strategies=("margin", "kmeans"), rounds=2, seeds=2)
    assert {row.strategy for row in done.rows} == {"random", "margin", "kmeans"}
    random = next(row for row in done.rows if row.strategy == "random")
    assert random.gain == 0
    assert done.labelled.labelled == 64
    assert done.labelled.random == 40
    assert done.labelled.chosen == 24
    assert done.labelled.biased
    assert any("drawn at random" in note for note in done.notes)
    assert done.sizes == (7, 14, 21)
    assert done.held_out == 19
    with pytest.raises(InputError, match="Label more"):
        backtest(campaign, strategies=("margin",), rounds=40)
    with pytest.raises(InputError, match="at least 2"):
        backtest(campaign, seeds=1)


def test_both_on_the_command_line(campaign, capsys):
    folder = str(campaign.path)
    assert (
        run(["gain", folder, "--price", "1", "--worth", "1", "--next", "10", "--device", "cpu"])
        == 0
    )
    said = capsys.readouterr().out
    assert "The next 10 labels" in said
    assert "worth it from 10.00 points" in said
    assert run(["gain", folder, "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "svp.gain/1"
    assert run(["gain", folder, "--price", "1"]) == 3
    words = ["backtest", folder, "--strategy", "margin", "--rounds", "1", "--seeds", "2"]
    assert run([*words, "--device", "cpu"]) == 0
    assert "Recommended:" in capsys.readouterr().out
    assert run([*words, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "svp.backtest/1"


def test_the_published_coverage_is_at_the_nominal_rate():
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "gain.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["campaigns"] >= 500
    rows = {row["estimate"]: row for row in document["rows"]}
    for name in ("candidates accuracy, last round", "pool accuracy, last round"):
        assert abs(rows[name]["coverage"] - 0.9) <= 3 * rows[name]["monte_carlo_se"]
    assert all(row["coverage"] >= 0.9 - 3 * row["monte_carlo_se"] for row in rows.values())
    text = (Path(__file__).parents[2] / "docs" / "gain.md").read_text(encoding="utf-8")
    assert f"{rows['pool accuracy, last round']['coverage']:.1%}" in text


def test_the_coverage_benchmark_runs():
    from benchmarks.quality.gain import Setting, measure

    rows = measure(Setting(pool=300, test=300, rounds=2, repeats=2, truth_runs=2), 3)["rows"]
    assert all(0 <= row["coverage"] <= 1 for row in rows)
