"""What goes to people and what comes back, whatever tool they use."""

import dataclasses
import datetime
from typing import Final

COLUMNS: Final = ("id", "label", "annotator", "weight", "labeled_at")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One answer for one item; optional columns are empty text where nothing was given."""

    id: str
    label: str
    annotator: str = ""
    weight: str = ""
    labeled_at: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a file of answers says.

    Attributes:
        labels: The answers, in the order of the file. Their ids may be unknown to the study.
        blank: Items without an answer yet.
        skipped: Answers that a person cancelled or skipped.
    """

    labels: tuple[Label, ...]
    blank: int = 0
    skipped: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One item for people to label.

    Attributes:
        id: The item.
        uri: What the source reads it by.
        image: Where a labelling tool finds the picture: an address, or a path of this machine.
        digest: SHA-256 of its encoded bytes, empty if unknown.
        size: Width and height in pixels, None if unknown.
        round: The round that chose it.
        rank: Its place in the order to label, from 1.
        utility: The strategy's number for it; higher comes sooner.
        reason: Why it was chosen.
        strategy: Who chose it.
        predicted: The proxy's guess, None without one.
        confidence: The proxy's probability of it.
        label: The answer it has already, empty without one.
    """

    id: str
    uri: str
    image: str
    digest: str = ""
    size: tuple[int, int] | None = None
    round: int
    rank: int
    utility: float
    reason: str
    strategy: str
    predicted: str | None = None
    confidence: float | None = None
    label: str = ""


def moment(text: str) -> datetime.datetime:
    """Return a time in ISO 8601; without a zone it is UTC, and empty text is before all others.

    Raises:
        ValueError: It is no such time.
    """
    if not text:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)
    parsed = datetime.datetime.fromisoformat(text)
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=datetime.UTC)


def older(row: Label, than: Label) -> bool:
    """Return whether `row` was given before `than`; False if one of them has no time."""
    if not (row.labeled_at and than.labeled_at):
        return False
    return moment(row.labeled_at) < moment(than.labeled_at)
