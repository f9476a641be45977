"""What a report shows, as plain data; every section is optional.

Whoever gathers a study fills these; nothing here reads a file. Accuracies and ratios are fractions
in [0, 1] (ratios of saved labels may be negative); the page turns them into percent.
"""

import dataclasses
import math
from typing import Literal

from svp.errors import InputError
from svp.report.evidence import Copies, EmbeddingMap, Money, RefreshHistory
from svp.report.thumbnail import Thumbnail

Bound = Literal["measured", "at least", "at most"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A named value of the configuration, the versions or the identities."""

    name: str
    value: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """Accuracy over the seeds at one number of labels.

    Attributes:
        labels: Labelled items when it was measured.
        mean: Mean accuracy over seeds.
        sd: Sample standard deviation (n - 1) over seeds; None for one seed.
        seeds: How many seeds.
    """

    labels: int
    mean: float
    sd: float | None
    seeds: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and (self.sd is None or math.isfinite(self.sd))):
            raise InputError(
                "A point of a learning curve must be a finite number. Got "
                f"mean {self.mean}, SD {self.sd} at {self.labels} labels. "
                "Leave the point out where nothing was measured."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A learning curve of one strategy under one proxy.

    Attributes:
        strategy: The strategy's name.
        proxy: The proxy's name; curves of one proxy share a chart.
        points: In ascending order of labels.
        is_random: Whether this is the baseline that savings are measured against.
        reads_labels: Whether the strategy reads labels inside a batch; marked wherever it shows.
    """

    strategy: str
    points: tuple[CurvePoint, ...]
    proxy: str = ""
    is_random: bool = False
    reads_labels: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """Labels saved against random on the same seeds.

    Random is measured with no more labels than the strategy, so at the strategy's last round its
    saving is often only a bound. At the highest accuracy that both reached it is measured.

    Attributes:
        strategy: The strategy's name.
        proxy: The proxy's name.
        accuracy: The highest accuracy that both mean curves reached.
        labels: N1, with which the strategy reached it, by interpolation.
        random_labels: N2, with which random reached it.
        bound: Whether (N2 - N1) / N2 is measured, or a bound because the strategy (`at least`) or
            random (`at most`) was above that accuracy with its first labels already.
        exceeds: Whether the strategy went on to accuracies that random never reached.
        mean_ratio: (N2 - N1) / N2 at the strategy's own accuracies, averaged over rounds, censored
            rounds at their bound; None when unknown.
        sd_ratio: Sample standard deviation of that average over seeds; None when unknown.
        mean_measured: The average over the rounds that are not censored; None without any.
        rounds: Rounds in the average.
        censored: How many of them are bounds.
        final_accuracy: Mean accuracy at the last round.
        gain: The same minus random's, paired by seed; None when unknown.
        gain_half_width: Half its 95% interval; None for one seed.
    """

    strategy: str
    proxy: str = ""
    accuracy: float
    labels: float
    random_labels: float
    bound: Bound = "measured"
    exceeds: bool = False
    mean_ratio: float | None = None
    sd_ratio: float | None = None
    mean_measured: float | None = None
    rounds: int = 1
    censored: int = 0
    final_accuracy: float
    gain: float | None = None
    gain_half_width: float | None = None

    @property
    def ratio(self) -> float:
        """(N2 - N1) / N2 at the highest accuracy both reached, in (-inf, 1)."""
        return 1.0 - self.labels / self.random_labels


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A simulation: strategies on known labels.

    Attributes:
        name: The simulation's name.
        metric: What the curves show.
        curves: One for each strategy and proxy, random among them.
        savings: Against random, best first.
        note: One sentence about the setting, such as the data and the seeds.
    """

    name: str
    curves: tuple[Curve, ...]
    metric: str = "test accuracy"
    savings: tuple[Saving, ...] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round of the study.

    Attributes:
        number: From 0.
        strategy: What chose the items.
        selected: How many items it chose.
        labels: Labels the proxy was trained on; 0 in a cold start.
        accuracy: Of the proxy on `split`; None when not measured.
        split: Where the accuracy was measured.
        refresh: Verdict of the refresh criterion; empty when it was not asked.
        seconds: Wall time; None when unknown.
    """

    number: int
    strategy: str
    selected: int
    labels: int
    accuracy: float | None = None
    split: str = "validation"
    refresh: str = ""
    seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """Labels of each class, by the round that asked for them.

    Attributes:
        classes: Class names.
        sources: Names of the columns, in order: the rounds, and labels that came from elsewhere.
        counts: For each source, labels of each class.
    """

    classes: tuple[str, ...]
    sources: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.counts}
        if len(self.counts) != len(self.sources) or widths - {len(self.classes)}:
            raise InputError(
                f"Label counts must be {len(self.sources)} rows of {len(self.classes)} classes. "
                f"Got {len(self.counts)} rows of {sorted(widths)}. Count each round separately."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GalleryItem:
    """One selected item.

    Attributes:
        id: The item's id, shown as it is.
        rank: Place in the order to label, from 1.
        utility: Of the strategy when it picked the item; None without one.
        reason: Why it was chosen.
        predicted: The proxy's class; empty without a proxy.
        confidence: Of that class; None without a proxy.
        label: What people answered; empty until then.
        thumbnail: None when the picture could not be read or the page is full.
    """

    id: str
    rank: int
    utility: float | None = None
    reason: str = ""
    predicted: str = ""
    confidence: float | None = None
    label: str = ""
    thumbnail: Thumbnail | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The selection of one round, or its first part.

    Attributes:
        round: Number of the round.
        strategy: What chose the items.
        items: In the order to label.
        total: Items in the selection, of which `items` may be the first.
    """

    round: int
    strategy: str
    items: tuple[GalleryItem, ...]
    total: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TargetModel:
    """The fine-tuned network.

    Attributes:
        accuracy: Top-1 on `split`; None when no labels were held out.
        split: Where it was measured.
        method: How it was trained, in words.
        classes: Class names.
        confusion: Row = true class, column = predicted class, counts; empty when not measured.
        metrics: Further numbers to list.
    """

    accuracy: float | None
    split: str = "test"
    method: str = ""
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    metrics: tuple[Fact, ...] = ()

    def __post_init__(self) -> None:
        size = len(self.classes)
        if self.confusion and (
            len(self.confusion) != size or any(len(row) != size for row in self.confusion)
        ):
            raise InputError(
                f"A confusion matrix must have {size} rows and columns, one a class. Got "
                f"{len(self.confusion)} rows. Pass the classes it was counted with."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Wall time of one stage of the work, in seconds."""

    name: str
    seconds: float
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything on the page.

    Attributes:
        name: The study's name.
        generated: When, as text; given, so that the page is a function of its content.
        study: The study as a command line would name it, for the commands the page suggests.
        strategy: The strategy the study uses; the headline quotes its saving where simulated.
        pool_size: Items in the pool; None before it was scanned.
        labels: Labelled items so far.
        comparisons: Simulations, the one the headline quotes last.
        rounds: In order.
        balance: Labels of each class.
        embedding_map: The pool in two dimensions, with the rounds' picks.
        gallery: The last selection.
        earlier: The selections before it, newest first; their first items.
        copies: Copies in the pool.
        copies_skipped: Why copies were not looked for; empty where they were.
        refreshes: Whether the features still fitted.
        model: The fine-tuned network.
        stages: Wall time by stage.
        money: What it cost; None where the study states no prices.
        configuration: The study's settings.
        identities: Pool, encoder, store.
        versions: Of svp and the packages that can move a number.
    """

    name: str
    generated: str = ""
    study: str = "STUDY"
    strategy: str = ""
    pool_size: int | None = None
    labels: int = 0
    comparisons: tuple[Comparison, ...] = ()
    rounds: tuple[Round, ...] = ()
    balance: Balance | None = None
    embedding_map: EmbeddingMap | None = None
    gallery: Gallery | None = None
    earlier: tuple[Gallery, ...] = ()
    copies: Copies | None = None
    copies_skipped: str = ""
    refreshes: RefreshHistory | None = None
    model: TargetModel | None = None
    stages: tuple[Stage, ...] = ()
    money: Money | None = None
    configuration: tuple[Fact, ...] = ()
    identities: tuple[Fact, ...] = ()
    versions: tuple[Fact, ...] = ()
