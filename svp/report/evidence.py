"""What the sections on the pool, its copies, the encoder and money show, as plain data.

Like `svp.report.content`, of which it is the second half: nothing here reads a file.
"""

import dataclasses
from typing import Literal

from svp.errors import InputError
from svp.report.thumbnail import Thumbnail


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MapPoint:
    """One item on the map.

    Attributes:
        id: The item.
        x: Across, in any unit.
        y: Up, in the same unit.
        label: What people answered; empty without an answer.
        round: The round that asked for it; None if none did.
        rank: Its place in that round, from 1; None likewise.
    """

    id: str
    x: float
    y: float
    label: str = ""
    round: int | None = None
    rank: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingMap:
    """Embeddings in two dimensions.

    Attributes:
        points: A sample of the pool with the rounds' picks in it.
        method: How it was projected, in words.
        total: Items of the pool.
    """

    points: tuple[MapPoint, ...]
    method: str
    total: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CopyItem:
    """One item of a group of copies.

    Attributes:
        id: The item.
        kind: `kept` for the one to keep, `exact` for equal bytes, else `near`.
        cosine: Of its embedding and that of the one to keep; None where not compared.
        label: What people, or else the source, say of it.
        side: `train`, `val` or `test`.
        thumbnail: None when the picture could not be read or the page is full.
    """

    id: str
    kind: Literal["kept", "exact", "near"]
    cosine: float | None = None
    label: str = ""
    side: str = "train"
    thumbnail: Thumbnail | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CopyGroup:
    """Items that are copies of each other, or the first of them.

    Attributes:
        items: The one to keep first.
        size: Items of the group, of which `items` may be the first.
        labels_differ: Whether two of its items have different labels.
        sides_differ: Whether it has items to train on and items to evaluate on.
    """

    items: tuple[CopyItem, ...]
    size: int
    labels_differ: bool = False
    sides_differ: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """Copies in the pool.

    Attributes:
        threshold: Least cosine of a near pair.
        items: Items of the pool.
        exact: Items whose bytes an earlier item has, too.
        near: Further items that only embeddings show as copies.
        waste: Labels that labelling everything would spend on copies.
        labels_differ: Groups with different labels.
        sides_differ: Groups on more than one side.
        total: Groups found.
        groups: The largest of them.
    """

    threshold: float
    items: int
    exact: int
    near: int
    waste: int
    labels_differ: int = 0
    sides_differ: int = 0
    total: int = 0
    groups: tuple[CopyGroup, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What the refresh criterion said in one round.

    Attributes:
        round: Number of the round.
        labels: Labelled items that it judged.
        encoder: Id of the encoder judged; scores of different encoders do not compare.
        stale: Whether it asked for a refresh.
        reason: Why, or why not.
        ped_steps: Steps until classes stopped overlapping; None if it did not get so far.
        score: LogME of the moved features; None likewise.
        previous: The score before; None without one.
        change: Of the score since; None without one before.
        threshold: What the change was compared with.
        refresh: Number of the refresh made in this round; None without one.
    """

    round: int
    labels: int
    encoder: str
    stale: bool
    reason: str
    ped_steps: int | None = None
    score: float | None = None
    previous: float | None = None
    change: float | None = None
    threshold: float
    refresh: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefreshDone:
    """One refresh that was made.

    Attributes:
        number: From 1.
        created: When, as text.
        labels: Labels it was fine-tuned on.
        forced: Whether a person asked for it and not the criterion.
        accuracy: Of the fine-tuned network on held-out labels; None when not measured.
        finetune_s: Seconds of fine-tuning.
        embed_s: Seconds of embedding the pool again.
        encoder: Id of the encoder it made.
    """

    number: int
    created: str = ""
    labels: int
    forced: bool = False
    accuracy: float | None = None
    finetune_s: float
    embed_s: float
    encoder: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefreshHistory:
    """Whether the cached features still fitted, round by round.

    Attributes:
        mode: What the study does about it: `ask`, `auto`, `never` or `at-labels:N`.
        judgements: In the order of rounds.
        done: In order.
    """

    mode: str
    judgements: tuple[Judgement, ...]
    done: tuple[RefreshDone, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One item of the bill: what, how much of it, the money."""

    name: str
    quantity: str
    amount: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    """What the study cost so far, at prices it states itself.

    Attributes:
        currency: Of all amounts.
        as_of: The day of the prices.
        costs: Labels, then each stage of computing, then storage.
    """

    currency: str
    as_of: str
    costs: tuple[Cost, ...]

    def __post_init__(self) -> None:
        if any(cost.amount < 0 for cost in self.costs):
            raise InputError(
                "A cost must be 0 or more. Got "
                f"{min(cost.amount for cost in self.costs)}. Correct the prices."
            )

    @property
    def total(self) -> float:
        """The sum of all costs."""
        return sum(cost.amount for cost in self.costs)
