"""LogME, PED and the criterion: worked examples, identities, and the authors' own numbers."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from svp.alignment import (
    PED,
    ClassStatistics,
    Criterion,
    CriterionConfig,
    LogME,
    PEDConfig,
    class_statistics,
    logme,
    ped,
)
from svp.errors import InputError

Array = npt.NDArray[np.float64]


def _waves(n: int, d: int, c: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """Features that any program can make again: sines only, no random numbers."""
    i, j = np.arange(n)[:, None], np.arange(d)[None, :]
    x = np.sin(0.7 * i * (j + 1) + j * j * 0.3) + np.cos((i % c) * (j + 2) * 0.9) * 1.5
    return x, np.arange(n) % c


def _clumps(
    n: int, d: int, c: int, seed: int = 0, spread: float = 1.0
) -> tuple[Array, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    return rng.normal(size=(c, d))[y] + spread * rng.normal(size=(n, d)), y


def test_two_separated_pairs() -> None:
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = logme(x, np.array([0, 0, 1, 1]))
    assert found.score == pytest.approx(1.882580, abs=1e-6)
    assert found.sweeps_K.tolist() == [6, 6]


def test_a_class_that_converges_and_one_that_reaches_the_cap() -> None:
    x = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    found = logme(x, np.array([1, 1, 0, 1]), mode="official")
    assert found.score == pytest.approx(-0.813206, abs=1e-6)
    np.testing.assert_allclose(found.evidence_K, [-0.727556, -0.898855], atol=1e-6)
    assert found.alpha_K[1] == pytest.approx(4.8427, abs=1e-4)
    assert found.beta_K[1] == pytest.approx(6.6345, abs=1e-4)
    assert found.sweeps_K.tolist() == [11, 4]


# Printed by the authors' LogME.py (thuml/LogME at 56551ca) on `_waves`.
@pytest.mark.parametrize(
    ("shape", "score"),
    [
        ((300, 24, 5), 0.2616241539811905),
        ((40, 64, 4), 3.4000709251751084),
        ((64, 64, 3), 2.0181105538108692),
    ],
)
def test_official_scores_are_the_authors(shape: tuple[int, int, int], score: float) -> None:
    x, y = _waves(*shape)
    assert logme(x, y, mode="official").score == pytest.approx(score, rel=1e-9)
    assert LogME(mode="official").fit(x, y).score_ == pytest.approx(score, rel=1e-9)


# Printed by the authors' metrics.py (lixiaotong97/PED at e5af6e7): LogME after PED, n_sigma 0.6,
# the features themselves as the general set.
@pytest.mark.parametrize(
    ("shape", "ratios", "score"),
    [
        ((300, 24, 5), (1.0, 0.99, 0.9801, 0.970299, 0.96059601, 0.95099005), 0.27442985147573645),
        (
            (400, 16, 37),
            (1.0, 0.97897737, 0.95888118, 0.93921783, 0.92010476, 0.90146185),
            0.44361651950598835,
        ),
    ],
)
def test_ped_moves_as_the_authors_code(
    shape: tuple[int, int, int], ratios: tuple[float, ...], score: float
) -> None:
    x, y = _waves(*shape)
    moved = PED().fit(x, y)
    assert moved.steps_ == 6
    np.testing.assert_allclose(moved.result_.ratio, ratios, rtol=1e-7)
    after = logme(statistics=moved.result_.statistics, mode="official").score
    assert after == pytest.approx(score, rel=1e-10)
    assert logme(moved.transform(x, y), y, mode="official").score == pytest.approx(score, rel=1e-10)


@pytest.mark.parametrize("shape", [(60, 8, 3), (9, 20, 3)])
def test_evidence_is_the_log_density_of_the_labels(shape: tuple[int, int, int]) -> None:
    x, y = _clumps(*shape)
    found = logme(x, y)
    for place, label in enumerate(found.classes_K):
        target = (y == label).astype(float)
        covariance = np.eye(len(x)) / found.beta_K[place] + x @ x.T / found.alpha_K[place]
        sign, logdet = np.linalg.slogdet(covariance)
        assert sign == 1
        density = -0.5 * (
            logdet + target @ np.linalg.solve(covariance, target) + len(x) * np.log(2.0 * np.pi)
        )
        assert found.evidence_K[place] * len(x) == pytest.approx(density, abs=1e-8)


def test_sums_score_like_features() -> None:
    x, y = _clumps(500, 40, 7)
    rng = np.random.default_rng(1)
    shift = rng.normal(size=(7, 40)) * 0.3
    direct = class_statistics(x + shift[y], y)
    moved = class_statistics(x, y).moved(shift)
    for field in ("sum_KD", "square_KD", "gram_DD"):
        np.testing.assert_allclose(getattr(moved, field), getattr(direct, field), atol=1e-10)
    assert logme(statistics=moved).score == pytest.approx(logme(x + shift[y], y).score, abs=1e-12)
    first, second = class_statistics(x[:123], y[:123]), class_statistics(x[123:], y[123:])
    joined = first.joined(second)
    assert logme(statistics=joined).score == pytest.approx(logme(x, y).score, abs=1e-12)
    np.testing.assert_array_equal(joined.count_K, direct.count_K)


def test_joining_brings_new_classes() -> None:
    x, y = _clumps(90, 6, 3)
    only = [class_statistics(x[y == label], y[y == label]) for label in (2, 0)]
    both = only[0].joined(only[1])
    assert both.classes_K.tolist() == [0, 2]
    expected = class_statistics(x[y != 1], y[y != 1])
    np.testing.assert_allclose(both.sum_KD, expected.sum_KD)


def test_scale_moves_only_the_official_score() -> None:
    # Thirty directions in many dimensions: few enough that the fixed point has a maximum to find.
    low, y = _clumps(400, 30, 10, spread=2.0)
    x = low @ np.random.default_rng(5).normal(size=(30, 900)) / 300
    change = logme(10 * x, y).score - logme(x, y).score
    assert abs(change) < 2e-4
    moved = logme(10 * x, y, mode="official").score - logme(x, y, mode="official").score
    assert abs(moved) == pytest.approx((900 - 400) / 400 * np.log(10), rel=0.02)


def test_few_labels_inflate_only_the_official_score() -> None:
    x, y = _clumps(400, 256, 10, spread=3.0)
    few, many = slice(0, 60), slice(0, 400)
    official = [logme(x[part], y[part], mode="official").score for part in (few, many)]
    corrected = [logme(x[part], y[part]).score for part in (few, many)]
    assert official[0] > official[1] + 1
    assert abs(corrected[0] - corrected[1]) < 1


def test_rank_is_counted_above_rounding() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 40)) @ rng.normal(size=(40, 64))
    y = np.arange(300) % 3
    found = logme(x, y)
    assert found.rank == 40
    basis = np.linalg.svd(x, full_matrices=False)
    same = logme(basis.U[:, :40] * basis.S[:40], y)
    assert found.score == pytest.approx(same.score, abs=1e-9)


def test_an_absent_class_lifts_only_the_official_mean() -> None:
    x, y = _clumps(200, 8, 4)
    kept = y != 1
    corrected = logme(x[kept], y[kept], n_classes=4)
    assert corrected.absent == 1
    assert corrected.score == pytest.approx(corrected.evidence_K.mean())
    official = logme(x[kept], y[kept], mode="official", n_classes=4)
    assert official.score > official.evidence_K.mean() + 1


def test_two_overlapping_classes() -> None:
    """Means at +-0.5 on one axis and radii of the square root of 2."""
    statistics = ClassStatistics(
        classes_K=np.array([0, 1]),
        count_K=np.array([2, 2]),
        sum_KD=np.array([[1.0, 0.0], [-1.0, 0.0]]),
        square_KD=np.array([[2.5, 2.0], [2.5, 2.0]]),
        gram_DD=np.diag([5.0, 4.0]),
    )
    general = {"general_mean_D": np.zeros(2), "general_std_D": np.ones(2)}
    once = ped(statistics, **general, config=PEDConfig(max_steps=1))
    np.testing.assert_allclose(once.shift_KD, [[0.0034853, 0], [-0.0034853, 0]], atol=1e-7)
    apart = once.statistics.mean_KD
    assert apart[0, 0] - apart[1, 0] == pytest.approx(1.006971, abs=1e-6)
    full = ped(statistics, **general)
    assert full.steps == 6
    assert full.ratio[1] == pytest.approx(0.990, abs=1e-6)
    assert full.overlapping == 1


def test_repulsion_is_mutual_and_never_pulls() -> None:
    x, y = _clumps(400, 12, 9)
    before = class_statistics(x, y)
    once = ped(
        before, general_mean_D=x.mean(0), general_std_D=x.std(0), config=PEDConfig(max_steps=1)
    )
    np.testing.assert_allclose((once.shift_KD / x.std(0)).sum(axis=0), 0.0, atol=1e-12)
    pair, labels = _clumps(200, 5, 2)
    moved = PED().fit(pair, labels)
    gap = [np.linalg.norm(np.subtract(*s.mean_KD)) for s in
           (class_statistics(pair, labels), moved.result_.statistics)]  # fmt: skip
    assert gap[1] >= gap[0]


def test_classes_far_apart_stay_and_take_no_step() -> None:
    x, y = _clumps(100, 6, 3, spread=1e-3)
    moved = PED().fit(x, y)
    assert moved.steps_ == 0
    np.testing.assert_array_equal(moved.transform(x, y), x)


@pytest.mark.parametrize(("classes", "steps"), [(10, 6), (100, 1)])
def test_the_count_of_steps_depends_on_the_classes(classes: int, steps: int) -> None:
    """Equal balls at equal distances: each step leaves (1 - 0.005 C) of the movement."""
    means = np.eye(classes, classes + 1) * 0.1
    spread = np.full((classes, classes + 1), 1.0)
    statistics = ClassStatistics(
        classes_K=np.arange(classes),
        count_K=np.full(classes, 10),
        sum_KD=10 * means,
        square_KD=10 * (spread + means**2),
        gram_DD=np.eye(classes + 1),
    )
    found = ped(
        statistics,
        general_mean_D=np.zeros(classes + 1),
        general_std_D=np.ones(classes + 1),
    )
    assert found.steps == steps
    assert found.ratio[1] == pytest.approx(1 - 0.005 * classes, abs=0.01)


def test_labels_may_have_gaps() -> None:
    x, y = _clumps(120, 6, 3)
    gapped = np.array([0, 5, 9])[y]
    assert PED().fit(x, gapped).steps_ == PED().fit(x, y).steps_
    assert logme(x, gapped).score == logme(x, y).score
    assert logme(x, gapped).absent == 7


def _criterion(x: Array, config: CriterionConfig | None = None) -> Criterion:
    return Criterion(
        config or CriterionConfig(), general_mean_D=x.mean(axis=0), general_std_D=x.std(axis=0)
    )


def test_the_criterion_waits_for_two_scores_and_then_for_rest() -> None:
    x, y = _clumps(4000, 16, 5, spread=2.0)
    criterion = _criterion(x)
    verdicts = [criterion.judge(class_statistics(x[:n], y[:n])) for n in (50, 100, 2000, 4000)]
    assert verdicts[0].reason == "first score"
    assert verdicts[1].previous == verdicts[0].score
    assert verdicts[3].stale
    assert verdicts[3].reason == "score settled"
    assert verdicts[3].change is not None
    assert verdicts[3].change < verdicts[3].threshold == 0.05
    assert criterion.scores == tuple(v.score for v in verdicts)


def test_a_verdict_does_not_depend_on_when_it_was_computed() -> None:
    x, y = _clumps(1000, 16, 5, spread=2.0)
    whole = _criterion(x)
    whole.judge(class_statistics(x[:300], y[:300]))
    later = Criterion(
        CriterionConfig(),
        general_mean_D=x.mean(axis=0),
        general_std_D=x.std(axis=0),
        scores=whole.scores,
    )
    statistics = class_statistics(x[:600], y[:600])
    assert whole.judge(statistics) == later.judge(statistics)


def test_separated_classes_are_never_stale_and_break_the_pair() -> None:
    x, y = _clumps(300, 6, 3, spread=1e-3)
    rough, _ = _clumps(300, 6, 3, spread=3.0)
    criterion = _criterion(x)
    assert criterion.judge(class_statistics(rough, y)).reason == "first score"
    verdict = criterion.judge(class_statistics(x, y))
    assert (verdict.stale, verdict.reason, verdict.score) == (False, "classes separate", None)
    assert criterion.judge(class_statistics(rough, y)).reason == "first score"


def test_few_labels_and_one_class_never_refresh() -> None:
    x, y = _clumps(40, 6, 10, spread=3.0)
    criterion = _criterion(x, CriterionConfig(threshold=1e6))
    criterion.judge(class_statistics(x[:20], y[:20]))
    assert criterion.judge(class_statistics(x, y)).reason == "few labels per class"
    one = criterion.judge(class_statistics(x, np.zeros(40, dtype=np.int64)), n_classes=10)
    assert (one.reason, one.absent) == ("one class", 9)


def test_the_papers_threshold_is_absolute_and_goes_with_the_official_score() -> None:
    config = CriterionConfig(score="official")
    assert config.limit == 1.0
    x, y = _clumps(300, 100, 5, spread=2.0)
    criterion = _criterion(x, config)
    first, second = (criterion.judge(class_statistics(x[:n], y[:n])) for n in (60, 300))
    assert first.score is not None
    assert second.score is not None
    assert second.change == pytest.approx(abs(second.score - first.score))
    assert second.stale == (second.change < 1.0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 2)), np.zeros(2, dtype=np.int64), "one label each"),
        (np.ones((0, 2)), np.zeros(0, dtype=np.int64), "one label each"),
        (np.ones((2, 2)), np.zeros(2), "must be integers"),
        (np.ones((2, 2), dtype=np.int64), np.zeros(2, dtype=np.int64), "floating point"),
        (np.full((2, 2), np.nan), np.zeros(2, dtype=np.int64), "must be finite"),
        (np.ones((2, 2)), np.array([-1, 0]), "must be 0 or more"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    x: Array, y: npt.NDArray[np.generic], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        logme(x, y)


def test_settings_out_of_range_are_refused() -> None:
    for config, change in (
        (PEDConfig(), {"time_step": 0.0}),
        (PEDConfig(), {"exit_ratio": 1.0}),
        (PEDConfig(), {"max_steps": 0}),
        (CriterionConfig(), {"threshold": 0.0}),
        (CriterionConfig(), {"score": "other"}),
        (CriterionConfig(), {"separated_steps": -1}),
    ):
        with pytest.raises(InputError):
            dataclasses.replace(config, **change)
