"""One label from the votes of several people.

The last vote of each person counts, with the person's weight. The label of most weight wins. A tie
goes to the newest vote among the tied labels, then to the first name in the alphabet: so the
outcome depends on the votes alone, never on the order in which files came.
"""

import dataclasses
import math
from collections.abc import Iterable

from svp.label.answer import Label, moment, older


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Dispute:
    """An item on which people disagree.

    Attributes:
        id: The item.
        votes: Annotator and label, by annotator.
        kept: The label that counts.
        tie: Whether no label had most weight, so that the newest vote decided.
    """

    id: str
    votes: tuple[tuple[str, str], ...]
    kept: str
    tie: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What people decided on one item.

    Attributes:
        label: The label that counts, as a row; empty label if every vote was withdrawn.
        dispute: Who said what, None where all agree.
    """

    label: Label
    dispute: Dispute | None


def last_votes(votes: Iterable[Label]) -> dict[str, Label]:
    """Return the last vote of each person, by annotator; a withdrawn one has an empty label.

    Args:
        votes: Votes on one item, in the order in which they came. Times decide where both have
            one.
    """
    last: dict[str, Label] = {}
    for vote in votes:
        if vote.annotator not in last or not older(vote, last[vote.annotator]):
            last[vote.annotator] = vote
    return dict(sorted(last.items()))


def resolve(votes: Iterable[Label]) -> Verdict:
    """Decide on one item.

    Args:
        votes: At least one vote on it, in the order in which they came.
    """
    last = last_votes(votes)
    # The decision is as new as the newest thing anyone said, so it outlives older decisions.
    newest = max(last.values(), key=lambda vote: moment(vote.labeled_at))
    valid = [vote for vote in last.values() if vote.label]
    if not valid:
        return Verdict(label=dataclasses.replace(newest, label=""), dispute=None)
    if len(last) == 1:
        return Verdict(label=valid[0], dispute=None)
    weights: dict[str, list[float]] = {}
    for vote in valid:
        weights.setdefault(vote.label, []).append(float(vote.weight or 1))
    total = {label: math.fsum(parts) for label, parts in weights.items()}
    most = max(total.values())
    tied = sorted(label for label, weight in total.items() if math.isclose(weight, most))
    kept = tied[0]
    if len(tied) > 1:
        time = {
            label: max(moment(vote.labeled_at) for vote in valid if vote.label == label)
            for label in tied
        }
        kept = min(label for label in tied if time[label] == max(time.values()))
    said = tuple((vote.annotator, vote.label) for vote in valid)
    return Verdict(
        label=Label(
            id=newest.id,
            label=kept,
            annotator="+".join(name for name, label in said if label == kept),
            labeled_at=newest.labeled_at,
        ),
        dispute=Dispute(id=newest.id, votes=said, kept=kept, tie=len(tied) > 1)
        if len(total) > 1
        else None,
    )
