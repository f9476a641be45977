"""What a campaign's own labels say of it: the model's accuracy, labels saved, when to stop.

Rests on the items that were drawn at random (`strategy.random_share`, or rounds of the strategy
`random`). Such an item is out of sample for the proxy of the very round that drew it: that proxy
was trained before its label came, and its prediction is in `selection.csv`. So every round has an
unbiased estimate of its own proxy's accuracy, and the rounds together are a learning curve.

Shapes: R = rounds with random items that have a label, L = labelled.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from svp.errors import InputError
from svp.metrics.campaign import (
    REACH,
    Advice,
    LabelsSaved,
    advise,
    forecast,
    labels_saved,
    pool_shares,
    progressive_counts,
    whole_error,
)
from svp.metrics.learning_curve import LearningCurve, fit_learning_curve
from svp.metrics.sampled import Estimate, sampled_share
from svp.progress import Progress
from svp.seed import derive_seed, numpy_generator
from svp.study.features import Features, read_features, split_rows, standardiser_of
from svp.study.labels import read_labels
from svp.study.learner import Learner, fit_learner, predict
from svp.study.moment import Moment, recall
from svp.study.record import Pick, RoundResult, read_rounds
from svp.study.study import Study

if TYPE_CHECKING:
    from feature_store.pool import Pool

Int64Array = npt.NDArray[np.int64]

DEFAULT_LEAST_GAIN: Final = 0.005
_ORDERS: Final = 8
_FEW: Final = 30


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundGain:
    """What the random part of one round says of that round's proxy.

    Attributes:
        round: The round.
        labels: Labels that its proxy was trained on.
        random: Its random picks.
        answered: Of them, with a label.
        wrong: Of those, predicted wrongly.
        candidates: Accuracy on all items that could be chosen then.
        hybrid: Accuracy on the whole pool if people's labels replace predictions.
    """

    round: int
    labels: int
    random: int
    answered: int
    wrong: int
    candidates: Estimate
    hybrid: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A campaign judged by its own labels. Accuracies are shares.

    Attributes:
        labels: Labels now.
        random: Labelled items that were drawn at random.
        rounds: Per round with random items that were answered and predicted.
        round: The newest of them, whose proxy is judged.
        pool: Accuracy of that proxy on the whole pool, labelled items included.
        now: Accuracy expected of a model on all labels, by the curve through all rounds.
        saved: What the labels are worth in random ones; None where that cannot be measured.
        more: Further labels that the forecast is about.
        forecast: What they add.
        least: Gain below which they are not worth it.
        advice: `stop`, `continue` or `undecided`.
        notes: What limits all this, for people.
    """

    labels: int
    random: int
    rounds: tuple[RoundGain, ...]
    round: int
    pool: Estimate
    now: Estimate
    saved: LabelsSaved | None
    more: int
    forecast: Estimate
    least: float
    advice: Advice
    notes: tuple[str, ...]


def estimate_gain(
    study: Study,
    *,
    more: int | None = None,
    least: float = DEFAULT_LEAST_GAIN,
    confidence: float = 0.9,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Gain:
    """Judge a campaign by its random labels.

    Args:
        study: The study.
        more: Labels to look ahead; None: as many as the newest round had.
        least: Gain of these labels, as a share, below which they are not worth it.
        confidence: Nominal coverage of every interval.
        device: Where models are fitted.
        progress: Where to report.

    Raises:
        InputError: No random item of a round with a proxy has a label.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be in (0, 1). Got {confidence}. Write 0.9.")
    labels, rounds = read_labels(study), read_rounds(study)
    measured = [
        (found, one)
        for found in rounds
        if (one := _round_gain(found, labels, confidence)) is not None
    ]
    if not measured:
        raise InputError(
            "A campaign must have labelled random items of a round with a model to be judged by. "
            "Got none. Set strategy.random_share, such as 0.1, in study.toml, select and label."
        )
    more = int(rounds[-1].receipt["budget"]) if more is None else more
    if more < 1:
        raise InputError(f"Labels to look ahead must be at least 1. Got {more}. Correct it.")
    newest, last = measured[-1]
    pool = study.scan(progress=progress).pool
    moment = recall(
        study,
        newest,
        rounds,
        pool,
        read_labels(study, newest.receipt["labels"]["files"]),
        device=device,
        progress=progress,
    )
    curve = fit_learning_curve(
        [one.labels for _, one in measured],
        [_whole_wrong(found, one, rounds, labels) for found, one in measured],
        [one.answered for _, one in measured],
    )
    seed = derive_seed(study.config.seed, "gain")
    rng = numpy_generator(seed, "draws")
    ahead = forecast(curve, len(labels), more, rng, confidence=confidence)
    random = [pick.id for found in rounds for pick in random_picks(found) if pick.id in labels]
    saved = _saved(study, pool, moment, curve, labels, random, seed, confidence)
    return Gain(
        labels=len(labels),
        random=len(random),
        rounds=tuple(one for _, one in measured),
        round=newest.number,
        pool=_pool_accuracy(moment, labels, last),
        now=curve.accuracy(len(labels), confidence),
        saved=saved,
        more=more,
        forecast=ahead,
        least=least,
        advice=advise(ahead, least),
        notes=tuple(_notes(rounds, measured, labels, saved, random)),
    )


def random_picks(found: RoundResult) -> list[Pick]:
    """Return the picks of a round that were drawn at random, each with its chance."""
    strategy = found.receipt["strategy"]
    # A random share of a random batch is a random batch; other wrappers narrow the candidates.
    if strategy["name"] != "random" or {*strategy.get("wrapping", {})} - {"random_share"}:
        return [pick for pick in found.picks if pick.probability is not None]
    chance = len(found.picks) / int(found.receipt["pool"]["candidates"])
    return [dataclasses.replace(pick, probability=chance) for pick in found.picks]


def _round_gain(
    found: RoundResult, labels: Mapping[str, str], confidence: float
) -> RoundGain | None:
    random = [pick for pick in random_picks(found) if pick.predicted is not None]
    answered = [pick for pick in random if pick.id in labels]
    if not answered:
        return None
    right = [pick.predicted == labels[pick.id] for pick in answered]
    candidates, used = int(found.receipt["pool"]["candidates"]), found.receipt["labels"]["used"]
    estimate = sampled_share(
        right, [pick.probability or 1.0 for pick in answered], candidates, confidence=confidence
    )
    whole = candidates + int(used)
    return RoundGain(
        round=found.number,
        labels=int(used),
        random=len(random),
        answered=len(answered),
        wrong=len(right) - sum(right),
        candidates=estimate,
        hybrid=estimate.scaled(candidates / whole, int(used) / whole),
    )


def _whole_wrong(
    found: RoundResult, one: RoundGain, rounds: Sequence[RoundResult], labels: Mapping[str, str]
) -> float:
    """Return how many of the round's tested items were wrong, had they stood for the whole pool."""
    earlier = [done for done in rounds if done.number < found.number]
    drawn = {pick.id for done in earlier for pick in random_picks(done) if pick.id in labels}
    taken = [
        pick.predicted != labels[pick.id]
        for done in earlier
        for pick in done.picks
        if pick.id in labels and pick.id not in drawn and pick.predicted is not None
    ]
    candidates = int(found.receipt["pool"]["candidates"])
    error = whole_error(1.0 - one.candidates.value, candidates, taken, len(drawn))
    return error * one.answered


def _pool_accuracy(moment: Moment, labels: Mapping[str, str], one: RoundGain) -> Estimate:
    """Return the accuracy of a round's proxy on the labelled items and the candidates."""
    from svp.proxies import load_proxy

    features, receipt = moment.features, moment.found.receipt
    rows = np.asarray([row for row, key in enumerate(features.ids) if key in moment.labels])
    known = features.take(rows) if isinstance(features, Features) else features.features(rows)
    learner = Learner(
        classes=tuple(receipt["proxy"]["classes"]),
        proxy=load_proxy(moment.found.folder / "proxy.safetensors"),
        train_s=0.0,
    )
    found = predict(learner, known.x_Md, "cpu").class_M
    right = [
        learner.classes[code] == labels.get(key, moment.labels[key])
        for code, key in zip(found.tolist(), known.ids, strict=True)
    ]
    shift, factor = pool_shares(right, len(right), int(receipt["pool"]["candidates"]))
    return one.candidates.scaled(factor, shift)


def _saved(
    study: Study,
    pool: "Pool",
    moment: Moment,
    curve: LearningCurve,
    labels: Mapping[str, str],
    random: Sequence[str],
    seed: int,
    confidence: float,
) -> LabelsSaved | None:
    """Learn from random labels alone, and ask how many of them do what all labels do."""
    store, encoder_id = study.open_store(), str(moment.found.receipt["encoder"]["id"])
    features = read_features(study, store, pool, encoder_id, split_rows(pool)["train"])
    rng = numpy_generator(seed, "random-curve")
    picked = sorted({*labels} & {pick.id for done in moment.rounds for pick in done.picks}
                    - {*random})  # fmt: skip
    # What a random sample would hold of the items that the strategy took.
    left = max(len(features.ids) - len(picked), 1)
    extra = min(round(len(random) * len(picked) / left), len(picked))
    names = [*random, *(picked[at] for at in rng.permutation(len(picked))[:extra].tolist())]
    row_of = {key: row for row, key in enumerate(features.ids)}
    names = [key for key in names if key in row_of]
    rows_n = np.asarray([row_of[key] for key in names], dtype=np.int64)
    standardiser = standardiser_of(features.x_Md)

    def fit(trained: Int64Array, asked: Int64Array) -> npt.NDArray[np.bool_] | None:
        learner = fit_learner(
            features.x_Md,
            rows_n[trained],
            [labels[names[at]] for at in trained.tolist()],
            moment.plan.proxy_config,
            standardiser=standardiser,
            seed=derive_seed(seed, "proxy", len(trained)),
            device=moment.device,
            views=moment.views,
        )
        if learner.proxy is None:
            return None
        found = predict(learner, features.take(rows_n[asked]).x_Md, moment.device).class_M
        return np.asarray(
            [
                learner.classes[code] == labels[names[at]]
                for code, at in zip(found.tolist(), asked.tolist(), strict=True)
            ]
        )

    counts = progressive_counts(len(names), fit, rng, orders=_ORDERS)
    if not counts.labels:
        return None
    by_chance = fit_learning_curve(counts.labels, counts.wrong, counts.tested)
    reach = min(REACH * max(len(names), len(labels)), float(len(features.ids)))
    return labels_saved(
        curve,
        by_chance,
        len(labels),
        rng,
        reach=reach,
        least=min(counts.labels[0], reach),
        confidence=confidence,
    )


def _notes(
    rounds: Sequence[RoundResult],
    measured: Sequence[tuple[RoundResult, RoundGain]],
    labels: Mapping[str, str],
    saved: LabelsSaved | None,
    random: Sequence[str],
) -> list[str]:
    notes: list[str] = []
    last = measured[-1][1]
    missing = sum(one.random - one.answered for _, one in measured)
    if missing:
        notes.append(
            f"{missing} random items have no label. If people skip hard images, every accuracy "
            "here is too high."
        )
    if last.answered < _FEW:
        notes.append(
            f"The accuracy of round {last.round} rests on {last.answered} random items; a larger "
            "random_share narrows it."
        )
    picked = {pick.id for done in rounds for pick in done.picks}
    if others := len(labels.keys() - picked):
        notes.append(
            f"{others} labels came outside of rounds; how they were chosen is not known. They are "
            "part of what the model learned from, not of what it is judged by."
        )
    if len({str(done.receipt["encoder"]["id"]) for done, _ in measured}) > 1:
        notes.append(
            "Features were refreshed in between, so one curve through all rounds is rough."
        )
    if saved is not None and saved.bound:
        notes.append(
            f"{len(random)} random labels cannot tell how many random ones would do the same: up "
            "to the largest number looked at, or more."
        )
    return notes
