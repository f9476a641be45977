"""A study's labels: imported from files, kept append-only, read back as one answer per item.

Every import that says something new becomes one more CSV in `labels/`; nothing is ever edited.
For an item with several labels the newest wins: by `labeled_at` where both have one, else by the
order of import. Where answers have an annotator, the votes of all annotators decide together
(`svp.label.vote`), whatever files they came in. Importing the same content again changes nothing,
so a retried job is harmless.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from feature_store.atomic import write_bytes
from feature_store.digest import canonical_json, sha256_hex
from svp.errors import InputError
from svp.label.agreement import Agreement, agreement
from svp.label.answer import COLUMNS, Label, older
from svp.label.names import Names
from svp.label.vote import Dispute, Verdict, last_votes, resolve
from svp.progress import Progress
from svp.study.label_import import Format, read_answers, vote_weights
from svp.study.label_store import (
    append_labels,
    append_votes,
    cells_of,
    csv_bytes,
    current_labels,
    label_files,
    rows_digest,
    votes_of,
)
from svp.study.study import Study

__all__ = [
    "Conflict",
    "ImportResult",
    "export_labels",
    "import_labels",
    "import_source_labels",
    "label_files",
    "labels_digest",
    "read_labels",
]

_NAMED: Final = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Two answers for one item; `kept` is the one that counts from now on."""

    id: str
    old: str
    new: str
    kept: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """What an import did.

    Attributes:
        file: The file it added to `labels/`, or None when it changed no label.
        new: Items that had no label.
        unchanged: Items that had this label.
        changed: Items whose label it replaced.
        outdated: Items whose present label is newer than the imported one, by `labeled_at`.
        blank: Rows without a label.
        skipped: Answers that a person cancelled or skipped.
        votes: Votes that were not known before.
        unknown: Ids that are no item of the study, where they were to be left out.
        new_classes: Classes that no label of the study had before; none in the first import. One
            of a single item is often a typing error.
        conflicts: Every item with two different answers, old and new.
        disputes: Items of the file on which annotators disagree.
        agreement: How far annotators agree on the items of the file; None without two answers.
        labelled: Labels of the study now.
    """

    file: str | None
    new: int
    unchanged: int
    changed: int
    outdated: int
    blank: int
    skipped: int
    votes: int
    unknown: tuple[str, ...]
    new_classes: tuple[str, ...]
    conflicts: tuple[Conflict, ...]
    disputes: tuple[Dispute, ...]
    agreement: Agreement | None
    labelled: int


def import_labels(
    study: Study,
    file: str | Path,
    progress: Progress | None = None,
    *,
    format: Format = "auto",
    annotator: str = "",
    weights: str | Path | Mapping[str, float] | None = None,
    field: str | None = None,
    skip_unknown: bool = False,
) -> ImportResult:
    """Import answers: a CSV or Parquet file, or what a labelling tool exports.

    A table has columns id and label, and optionally annotator, weight, labeled_at (ISO 8601).
    Other columns are ignored, so that a `selection.csv` with a label column added can be imported
    as it is.

    Args:
        study: The study.
        file: The answers.
        progress: Where to report.
        format: `table`, `label-studio`, `fiftyone` or `cvat`; `auto` looks at the file.
        annotator: Who answered, where the file does not say.
        weights: Weight of each annotator's vote, or a CSV with columns annotator and weight;
            default 1.
        field: The field with the answers, where samples of FiftyOne have several.
        skip_unknown: Leave unknown ids out and list them, instead of refusing the file.

    Raises:
        InputError: A column is missing, an id is unknown or ambiguous, or a value is malformed;
            nothing was written then.
    """
    path = Path(file)
    scan = study.scan(progress=progress)
    pool = scan.pool
    names = Names(
        [*pool.ids, *(failure.id for failure in scan.failures)],
        lambda: {key: raw.tobytes().hex() for key, raw in zip(pool.ids, pool.digests, strict=True)},
    )
    answers = read_answers(path, names, format=format, field=field)
    factors = vote_weights(weights)
    rows = [
        row if row.annotator else dataclasses.replace(row, annotator=annotator)
        for row in answers.labels
    ]
    unknown = sorted({row.id for row in rows if row.id not in names})
    if unknown and not skip_unknown:
        named = ", ".join(unknown[:_NAMED]) + (", …" if len(unknown) > _NAMED else "")
        raise InputError(
            f"Every id must be an item of the study. Got {len(unknown)} unknown in {path}: "
            f"{named}. Use the id column of selection.csv, or leave them out with --skip-unknown; "
            "nothing was imported."
        )
    wanted = [row for row in rows if row.id in names]
    done = _import(study, wanted, origin=path.stem, factors=factors)
    return dataclasses.replace(
        done, blank=answers.blank, skipped=answers.skipped, unknown=tuple(unknown)
    )


def import_source_labels(study: Study, progress: Progress | None = None) -> ImportResult:
    """Import the labels that the source itself has (class folders, a manifest's column).

    Items of the test split are left out: their labels are for evaluation only.

    Raises:
        InputError: The source has no labels.
    """
    pool = study.scan(progress=progress).pool
    labels = pool.labels or (None,) * len(pool)
    splits = pool.splits or (None,) * len(pool)
    rows = [
        Label(id=identifier, label=label)
        for identifier, label, split in zip(pool.ids, labels, splits, strict=True)
        if label is not None and split != "test"
    ]
    if not rows:
        raise InputError(
            "The source must have labels: class folders, or a label column in its manifest. "
            "Got none outside the test split. Import a file: svp labels import STUDY FILE"
        )
    return _import(study, rows, origin="source")


def read_labels(study: Study, files: Collection[str] | None = None) -> dict[str, str]:
    """Return the label of every labelled item, by id.

    Args:
        study: The study.
        files: Names of the imports to read, as a round's receipt lists them; default: all.
    """
    return {identifier: row.label for identifier, row in current_labels(study, files).items()}


def labels_digest(labels: Mapping[str, str]) -> str:
    """Return a digest of labels that does not depend on when or in which order they came."""
    return sha256_hex(canonical_json(sorted(labels.items())))


def export_labels(study: Study, output: str | Path) -> int:
    """Write the current labels as CSV, or as Parquet if so named; return their number."""
    rows = current_labels(study)
    cells = [cells_of(rows[key]) for key in sorted(rows)]
    if Path(output).suffix.lower() == ".parquet":
        import pyarrow as pa

        from svp.study.label_export import parquet_bytes

        columns = {name: [row[at] for row in cells] for at, name in enumerate(COLUMNS)}
        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        write_bytes(Path(output), parquet_bytes(pa.table(columns, schema=schema)))
    else:
        write_bytes(Path(output), csv_bytes(COLUMNS, cells))
    return len(rows)


class _Counts:
    """What an import finds, row by row."""

    def __init__(self) -> None:
        self.number = dict.fromkeys(("new", "unchanged", "changed", "outdated"), 0)
        self.conflicts: list[Conflict] = []
        self.added: list[Label] = []

    def conflict(self, name: str, *, old: str, new: str, kept: str) -> None:
        self.conflicts.append(Conflict(id=name, old=old, new=new, kept=kept))

    def compare(self, row: Label, old: Label | None, *, known: bool) -> None:
        """Compare a row with the label that counts; `known`: it was imported before."""
        if old is None:
            if row.label:  # else its only voter took the answer back on the page
                self.number["new"] += 1
                self.added.append(row)
        elif old.label == row.label:
            self.number["unchanged"] += 1
            if older(old, row):
                self.added.append(row)  # the same answer, confirmed later: outlives older changes
        elif known or not row.label or older(row, old):
            self.number["outdated"] += 1
            self.conflict(row.id, old=old.label, new=row.label, kept=old.label)
        else:
            self.number["changed"] += 1
            self.conflict(row.id, old=old.label, new=row.label, kept=row.label)
            self.added.append(row)


def _import(
    study: Study, rows: list[Label], *, origin: str, factors: Mapping[str, float] | None = None
) -> ImportResult:
    counts = _Counts()
    last: dict[str, Label] = {}
    # Two answers of one person to one item: the newest of them.
    of_person: dict[tuple[str, str], Label] = {}
    for row in rows:
        key = (row.id, row.annotator)
        earlier = of_person.get(key)
        keep = row if earlier is None or not older(row, earlier) else earlier
        if earlier is not None and earlier.label != row.label:
            counts.conflict(row.id, old=earlier.label, new=row.label, kept=keep.label)
        of_person[key] = keep
        before = last.get(row.id)
        last[row.id] = row if before is None or not older(row, before) else before
    people = {row.id for row in rows if row.annotator}
    by_item: dict[str, list[Label]] = {}
    for row in of_person.values():
        by_item.setdefault(row.id, []).append(row)
    current = current_labels(study)
    plain = [row for row in last.values() if row.id not in people]
    # The same content again, perhaps by a retried job after a newer import: old news.
    digest = rows_digest(last.values())
    again = any(name.endswith(f"-{digest}.csv") for name in label_files(study))
    for row in plain:
        counts.compare(row, current.get(row.id), known=again)
    votes = votes_of(study) if people else {}
    added_votes: list[Label] = []
    disputes: list[Dispute] = []
    said: list[Mapping[str, str]] = []
    for name in (name for name in last if name in people):
        stored = votes.get(name, [])
        own = [_vote(row, factors or {}) for row in by_item[name]]
        fresh = [vote for vote in own if vote not in stored]
        added_votes += fresh
        # Stored votes keep their place: a file that comes again must not count as newer.
        every = [*stored, *fresh]
        verdict = resolve(every)
        _compare_votes(counts, verdict, last[name], current.get(name), known=not fresh)
        if verdict.dispute is not None:
            disputes.append(verdict.dispute)
        said.append({who: vote.label for who, vote in last_votes(every).items() if vote.label})
    # Votes last: a kill in between leaves them unknown, so the same import completes them.
    file = append_labels(study, counts.added, origin, digest) if counts.added else None
    if added_votes:
        append_votes(study, added_votes, origin)
    return ImportResult(
        file=file,
        blank=0,
        skipped=0,
        votes=len(added_votes),
        unknown=(),
        new_classes=_new_classes(current, counts.added),
        # A file may hold the same two answers that the study and the file have.
        conflicts=tuple(dict.fromkeys(counts.conflicts)),
        disputes=tuple(sorted(disputes, key=lambda dispute: dispute.id)),
        agreement=agreement(said),
        labelled=len(current) + counts.number["new"],
        **counts.number,
    )


def _new_classes(current: Mapping[str, Label], added: list[Label]) -> tuple[str, ...]:
    known = {row.label for row in current.values()}
    found = {row.label for row in added if row.label} - known
    return tuple(sorted(found)) if known else ()


def _vote(row: Label, factors: Mapping[str, float]) -> Label:
    # The weight of a row is the label's own; in a vote it is the voter's.
    factor = factors.get(row.annotator, 1.0)
    return dataclasses.replace(row, weight="" if factor == 1.0 else f"{factor:g}")


def _compare_votes(
    counts: _Counts, verdict: Verdict, given: Label, old: Label | None, *, known: bool
) -> None:
    late = old is not None and given.label != old.label and older(given, old)
    if late and old is not None and verdict.label.label == old.label:
        counts.number["outdated"] += 1
        counts.conflict(given.id, old=old.label, new=given.label, kept=old.label)
        return
    decided = verdict.label
    alone = (decided.label, decided.annotator) == (given.label, given.annotator)
    weight = given.weight if alone else ""
    counts.compare(dataclasses.replace(decided, weight=weight), old, known=known)
