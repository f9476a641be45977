"""How far people agree: the share of agreeing pairs, and Krippendorff's alpha.

Alpha for nominal data (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability") takes any
number of people, and items that only some of them saw: 1 - observed / expected disagreement. 1 is
perfect agreement, 0 what chance gives.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Annotator:
    """One person.

    Attributes:
        name: The person.
        votes: Items the person answered that others answered too.
        agreement: Share of the others' answers that were the same.
    """

    name: str
    votes: int
    agreement: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far people agree on the items that several of them answered.

    Attributes:
        items: Those items.
        pairwise: Share of the pairs of answers to one item that are the same.
        alpha: Krippendorff's alpha, NaN where only one class was ever used.
        annotators: The people, by name.
    """

    items: int
    pairwise: float
    alpha: float
    annotators: tuple[Annotator, ...]


def agreement(votes: Iterable[Mapping[str, str]]) -> Agreement | None:
    """Measure agreement.

    Args:
        votes: For each item, the label by annotator.

    Returns:
        None if no item has two answers.
    """
    shared = [item for item in votes if len(item) > 1]
    if not shared:
        return None
    pairs = same = 0
    count: Counter[str] = Counter()
    others: Counter[str] = Counter()
    agreeing: Counter[str] = Counter()
    of_class: Counter[str] = Counter()
    observed: list[float] = []
    for item in shared:
        labels = Counter(item.values())
        many = len(item)
        alike = sum(n * (n - 1) for n in labels.values())
        pairs += many * (many - 1) // 2
        same += alike // 2
        of_class.update(labels)
        observed.append((many * (many - 1) - alike) / (many - 1))
        for name, label in item.items():
            count[name] += 1
            others[name] += many - 1
            agreeing[name] += labels[label] - 1
    values = sum(of_class.values())
    expected = values * values - sum(n * n for n in of_class.values())
    alpha = 1 - (values - 1) * math.fsum(observed) / expected if expected else math.nan
    return Agreement(
        items=len(shared),
        pairwise=same / pairs,
        alpha=alpha,
        annotators=tuple(
            Annotator(name=name, votes=count[name], agreement=agreeing[name] / others[name])
            for name in sorted(count)
        ),
    )
