"""Bars and tints for tables: class balance, recall, confusion, time.

Widths are in percent of the widest bar. Tints are levels from 0 to 10, not styles, so that the
page needs no inline style and can forbid it.
"""

import dataclasses
from collections.abc import Sequence

from svp.report.content import Balance, Report, TargetModel
from svp.report.quantity import duration, number, percent

# More rows than this are cut to both ends: the reader wants the extremes, files hold the rest.
ROWS: int = 24
CONFUSION_CLASSES: int = 20
CONFUSED_PAIRS: int = 15


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A piece of a bar: where it starts, how wide it is, its tint."""

    x: str
    width: str
    level: int
    title: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A row of a table with a bar; `is_gap` stands for rows left out."""

    name: str
    value: str
    note: str = ""
    segments: tuple[Segment, ...] = ()
    is_gap: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A count in the confusion matrix and its tint."""

    text: str
    level: int
    is_diagonal: bool
    title: str


def balance_bars(balance: Balance) -> tuple[Bar, ...]:
    """Return one bar a class, its segments the sources in order, the largest class first."""
    totals = [sum(column) for column in zip(*balance.counts, strict=True)]
    widest = max(totals, default=0) or 1
    everything = sum(totals) or 1
    order = sorted(range(len(totals)), key=lambda c: (-totals[c], balance.classes[c]))
    bars = []
    for index in order:
        start, segments = 0, []
        for source, row in enumerate(balance.counts):
            if not row[index]:
                continue
            segments.append(
                Segment(
                    x=_wide(start, widest),
                    width=_wide(row[index], widest),
                    level=source_level(source, len(balance.sources)),
                    title=f"{balance.sources[source]}: {number(row[index])}",
                )
            )
            start += row[index]
        bars.append(
            Bar(
                name=balance.classes[index],
                value=number(totals[index]),
                note=percent(totals[index] / everything),
                segments=tuple(segments),
            )
        )
    return cut(bars)


def source_level(source: int, sources: int) -> int:
    """Return the tint of a round: light for the first, dark for the last."""
    return 10 if sources < 2 else 3 + round(7 * source / (sources - 1))


def imbalance(balance: Balance) -> tuple[str, int]:
    """Return largest / smallest class as text, and how many classes have no label.

    With an unseen class the ratio is against 1, and marked as a bound.
    """
    totals = [sum(column) for column in zip(*balance.counts, strict=True)]
    unseen = sum(1 for total in totals if total == 0)
    largest, smallest = max(totals, default=0), max(min(totals, default=0), 1)
    return f"{'≥ ' if unseen else ''}{number(largest / smallest, 1)}", unseen


def recall_bars(model: TargetModel) -> tuple[Bar, ...]:
    """Return recall of each class that was tested, the worst first."""
    rows = [
        (model.confusion[c][c] / sum(model.confusion[c]), c)
        for c in range(len(model.confusion))
        if sum(model.confusion[c])
    ]
    bars = []
    for recall, index in sorted(rows, key=lambda row: (row[0], model.classes[row[1]])):
        tested = sum(model.confusion[index])
        segment = Segment(x="0", width=_wide(recall, 1.0), level=7, title="")
        note = f"{number(model.confusion[index][index])} of {number(tested)}"
        name = model.classes[index]
        bars.append(Bar(name=name, value=percent(recall), note=note, segments=(segment,)))
    return cut(bars)


def confusion_cells(model: TargetModel) -> tuple[tuple[Cell, ...], ...]:
    """Return the confusion matrix with tints by share of the true class; empty when too large."""
    if len(model.classes) > CONFUSION_CLASSES:
        return ()
    return tuple(
        tuple(
            Cell(
                text=number(count) if count else "·",
                # Any confusion at all is visible: the first level is kept for zero.
                level=max(1, round(10 * count / sum(row))) if count else 0,
                is_diagonal=true == predicted,
                title=f"{model.classes[true]} taken for {model.classes[predicted]}: {count}",
            )
            for predicted, count in enumerate(row)
        )
        for true, row in enumerate(model.confusion)
    )


def confused_pairs(model: TargetModel) -> tuple[tuple[str, str, str], ...]:
    """Return (true class, predicted class, count) of the most frequent confusions."""
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(model.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return tuple(
        (model.classes[true], model.classes[predicted], number(count))
        for count, true, predicted in sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))
    )[:CONFUSED_PAIRS]


def stage_bars(report: Report) -> tuple[Bar, ...]:
    """Return wall time of each stage, in the order given."""
    longest = max((stage.seconds for stage in report.stages), default=0.0) or 1.0
    return tuple(
        Bar(
            name=stage.name,
            value=duration(stage.seconds),
            note=stage.note,
            segments=(Segment(x="0", width=_wide(stage.seconds, longest), level=7, title=""),),
        )
        for stage in report.stages
    )


def cut(bars: Sequence[Bar], rows: int = ROWS) -> tuple[Bar, ...]:
    """Return all bars, or both ends with a gap that says how many are left out."""
    if len(bars) <= rows:
        return tuple(bars)
    head, tail = rows - rows // 2, rows // 2
    gap = Bar(name=f"{number(len(bars) - rows)} more", value="", is_gap=True)
    return (*bars[:head], gap, *bars[-tail:])


def _wide(part: float, whole: float) -> str:
    return f"{100.0 * part / whole:.2f}"
