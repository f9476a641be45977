"""Whether people are done with a round: read from its files alone, so it may be asked often."""

import dataclasses

from svp.errors import InputError
from svp.study.labels import labels_digest, read_labels
from svp.study.record import read_round, round_folders
from svp.study.study import Study


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelStatus:
    """How far the labels of a round are.

    Attributes:
        round: The round.
        selected: Items it chose.
        labelled: Those of them that have a label.
        waiting: Those that have none.
        complete: Whether none is waiting.
        labels: Labels of the whole study.
        digest: Of all of them, the same whatever their order.
    """

    round: int
    selected: int
    labelled: int
    waiting: int
    complete: bool
    labels: int
    digest: str


def label_status(study: Study, number: int | None = None) -> LabelStatus:
    """Count the labels of a round; neither images nor embeddings are touched.

    Args:
        study: The study.
        number: The round; default: the newest.

    Raises:
        InputError: There is no such round.
    """
    folders = {int(folder.name): folder for folder in round_folders(study)}
    if not folders:
        raise InputError(
            f"A round must be selected first. Got none. Run: svp select {study.path} --budget N"
        )
    number = max(folders) if number is None else number
    if number not in folders:
        known = ", ".join(map(str, sorted(folders)))
        raise InputError(f"A round must be one of: {known}. Got {number}. Name one of them.")
    labels = read_labels(study)
    picks = read_round(folders[number]).picks
    waiting = sum(pick.id not in labels for pick in picks)
    return LabelStatus(
        round=number,
        selected=len(picks),
        labelled=len(picks) - waiting,
        waiting=waiting,
        complete=waiting == 0,
        labels=len(labels),
        digest=labels_digest(labels),
    )
