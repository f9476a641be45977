"""When to refresh: PED says that classes still push each other, LogME that labels stopped helping.

Each round, after labels arrived and before the next selection: PED on the labelled features; if it
ends within one step, the features separate the classes and nothing more is asked. Otherwise LogME
of the moved features is compared with the last scored round; a small change says that more labels
do not make these features fit better, and new features are worth their cost.

Source: Wen, Pilutti et al., "ASVP" (the fifth paper), section 5 and appendix D. It thresholds the
absolute change at 1; that value goes with the authors' scorer, whose score carries an artefact
that falls as 1/N (see `svp.alignment.logme`). With the corrected score the change is below 1 from
the first pair on, so here it is relative and its threshold is svp's own.
Where the paper is silent: after a round without a score the next one waits for a new pair.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from svp.alignment.logme import Mode, logme
from svp.alignment.ped import PEDConfig, ped
from svp.alignment.statistics import ClassStatistics
from svp.errors import InputError

Reason = Literal[
    "one class",
    "few labels per class",
    "classes separate",
    "first score",
    "score still moves",
    "score settled",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CriterionConfig:
    """When features count as stale.

    Attributes:
        score: `corrected` or `official`; see `svp.alignment.logme`.
        threshold: Refresh when the score changes less than this: relative to the score before
            for `corrected`, absolute for `official`. None: 0.05 and 1.
        separated_steps: PED that ends within this many steps says that the classes separate.
        labels_per_class: Mean labels per class before the criterion may ask for anything.
        ped: Settings of PED.
    """

    score: Mode = "corrected"
    threshold: float | None = None
    separated_steps: int = 1
    labels_per_class: float = 5.0
    ped: PEDConfig = dataclasses.field(default_factory=PEDConfig)

    def __post_init__(self) -> None:
        if self.score not in ("corrected", "official"):
            raise InputError(
                f"score must be corrected or official. Got {self.score!r}. Choose one of them."
            )
        if self.threshold is not None and not self.threshold > 0:
            raise InputError(
                f"threshold must be above 0. Got {self.threshold}. Leave it out for the default."
            )
        if self.separated_steps < 0:
            raise InputError(
                f"separated_steps must be at least 0. Got {self.separated_steps}. The paper uses 1."
            )
        if not self.labels_per_class >= 0:
            raise InputError(
                f"labels_per_class must be at least 0. Got {self.labels_per_class}. Raise it."
            )

    @property
    def limit(self) -> float:
        """The threshold in force."""
        if self.threshold is not None:
            return self.threshold
        return 0.05 if self.score == "corrected" else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the criterion says about one round, with everything that led to it.

    Attributes:
        stale: Whether to refresh.
        reason: Why, or why not.
        labels: Labelled items.
        classes: Classes with a label.
        absent: Classes known without one.
        ped_steps: Steps PED accepted.
        ped_ratios: Movement of each step relative to the first.
        overlapping: Pairs of classes that overlapped.
        score: LogME of the moved features; None if it was not asked.
        previous: The last scored round's, if the change is counted from it.
        change: |score - previous|, relative for `corrected`.
        mode: Which LogME.
        threshold: What the change was compared with.
    """

    stale: bool
    reason: Reason
    labels: int
    classes: int
    absent: int
    ped_steps: int | None = None
    ped_ratios: tuple[float, ...] = ()
    overlapping: int | None = None
    score: float | None = None
    previous: float | None = None
    change: float | None = None
    mode: Mode
    threshold: float


class Criterion:
    """The criterion of one campaign under one encoder; a refresh starts a new one.

    Args:
        config: When features count as stale.
        general_mean_D: Mean of the pool's features under this encoder.
        general_std_D: Their standard deviations.
        scores: Scores of the rounds before, oldest first, None where a round had none.
    """

    def __init__(
        self,
        config: CriterionConfig,
        *,
        general_mean_D: npt.ArrayLike,
        general_std_D: npt.ArrayLike,
        scores: Sequence[float | None] = (),
    ) -> None:
        self.config = config
        self._mean_D = np.asarray(general_mean_D, dtype=np.float64)
        self._std_D = np.asarray(general_std_D, dtype=np.float64)
        self._scores = list(scores)

    @property
    def scores(self) -> tuple[float | None, ...]:
        """Scores so far, one a round."""
        return tuple(self._scores)

    def judge(self, statistics: ClassStatistics, *, n_classes: int | None = None) -> Verdict:
        """Judge one round and remember its score.

        Args:
            statistics: Of the labelled features of this round.
            n_classes: How many classes there are; None: those with labels.
        """
        classes = len(statistics.classes_K)
        verdict = Verdict(
            stale=False,
            reason="one class",
            labels=statistics.items,
            classes=classes,
            absent=(classes if n_classes is None else n_classes) - classes,
            mode=self.config.score,
            threshold=self.config.limit,
        )
        if classes < 2:
            return self._unscored(verdict)
        pushed = ped(
            statistics,
            general_mean_D=self._mean_D,
            general_std_D=self._std_D,
            config=self.config.ped,
        )
        verdict = dataclasses.replace(
            verdict,
            reason="classes separate",
            ped_steps=pushed.steps,
            ped_ratios=pushed.ratio,
            overlapping=pushed.overlapping,
        )
        if pushed.steps <= self.config.separated_steps:
            return self._unscored(verdict)
        score = logme(statistics=pushed.statistics, mode=self.config.score).score
        previous = self._scores[-1] if self._scores else None
        self._scores.append(score)
        verdict = dataclasses.replace(verdict, reason="first score", score=score)
        if previous is None:
            return verdict
        change = abs(score - previous)
        if self.config.score == "corrected":
            # A score near 0 has no relative change worth the name.
            change /= max(abs(previous), 1e-6)
        settled = change < self.config.limit
        reason: Reason = "score settled" if settled else "score still moves"
        if statistics.items < self.config.labels_per_class * classes:
            settled, reason = False, "few labels per class"
        return dataclasses.replace(
            verdict, stale=settled, reason=reason, previous=previous, change=change
        )

    def _unscored(self, verdict: Verdict) -> Verdict:
        self._scores.append(None)
        return verdict
