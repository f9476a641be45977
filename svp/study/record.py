"""A finished round on disk: its selection and its receipt, read and written."""

import csv
import dataclasses
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from feature_store.atomic import write_bytes, write_json
from feature_store.digest import canonical_json, sha256_hex
from svp.errors import InputError
from svp.study.study import Study

ROUND_SCHEMA: Final = "svp.round/1"
STATE_SCHEMA: Final = "svp.state/1"
STATE_FILE: Final = "state.json"
SELECTION_COLUMNS: Final = (
    "round",
    "rank",
    "id",
    "uri",
    "utility",
    "reason",
    "strategy",
    "predicted",
    "confidence",
    "probability",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """One selected item.

    Attributes:
        rank: Place in the order to label, from 1.
        id: The item.
        uri: What the source reads it by.
        utility: Utility when it was chosen; higher = sooner.
        reason: Why, for people.
        predicted: The proxy's class; None in a round without proxy.
        confidence: The proxy's probability of it.
        probability: Chance with which it was drawn at random; None where a strategy chose it.
    """

    rank: int
    id: str
    uri: str
    utility: float
    reason: str
    predicted: str | None
    confidence: float | None
    probability: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundResult:
    """A round on disk.

    Attributes:
        number: Its number, from 0.
        folder: Its folder.
        picks: The selected items, in the order to label.
        receipt: What `round.json` says.
        reopened: Whether it was there before: nothing new was labelled since.
    """

    number: int
    folder: Path
    picks: tuple[Pick, ...]
    receipt: Mapping[str, Any]
    reopened: bool


def round_folders(study: Study) -> list[Path]:
    """Return the folders of finished rounds, oldest first."""
    if not study.rounds_dir.is_dir():
        return []
    return sorted(
        folder
        for folder in study.rounds_dir.iterdir()
        if folder.name.isdigit() and (folder / "round.json").is_file()
    )


def read_round(folder: Path, *, reopened: bool = True) -> RoundResult:
    """Read a finished round.

    Raises:
        InputError: Its files are not those that `svp select` wrote.
    """
    try:
        return _read_round(folder, reopened)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"A round must be as `svp select` wrote it. Got {folder} "
            f"({type(error).__name__}: {reason}). Restore its files, or delete the folder."
        ) from error


def _read_round(folder: Path, reopened: bool) -> RoundResult:
    receipt: dict[str, Any] = json.loads((folder / "round.json").read_text(encoding="utf-8"))
    if receipt["schema"] != ROUND_SCHEMA:
        raise ValueError(f"schema {receipt['schema']!r}, not {ROUND_SCHEMA!r}")
    with (folder / "selection.csv").open(encoding="utf-8", newline="") as stream:
        picks = tuple(
            Pick(
                rank=int(row["rank"]),
                id=row["id"],
                uri=row["uri"],
                utility=float(row["utility"]),
                reason=row["reason"],
                predicted=row["predicted"] if row["confidence"] else None,
                confidence=float(row["confidence"]) if row["confidence"] else None,
                # Rounds of earlier versions have no such column.
                probability=float(row["probability"]) if row.get("probability") else None,
            )
            for row in csv.DictReader(stream)
        )
    return RoundResult(
        number=int(folder.name), folder=folder, picks=picks, receipt=receipt, reopened=reopened
    )


def write_state(folder: Path, strategy: str, state: Mapping[str, Any]) -> None:
    """Write what a strategy wants back in its next round, if anything; before `round.json`."""
    if state:
        write_json(
            folder / STATE_FILE,
            {"schema": STATE_SCHEMA, "strategy": strategy, "state": dict(state)},
        )


def state_before(rounds: Sequence[RoundResult], strategy: str, number: int) -> Mapping[str, Any]:
    """Return what a strategy kept when it chose last before round `number`; empty: nothing.

    Raises:
        InputError: The file of that round is not as `svp select` wrote it.
    """
    own = [
        done
        for done in rounds
        if done.number < number and done.receipt["strategy"]["name"] == strategy
    ]
    if not own or own[-1].receipt["strategy"].get("state") is None:
        return {}
    path = own[-1].folder / STATE_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        state: dict[str, Any] = stored["state"]
        if state_digest(state) != own[-1].receipt["strategy"]["state"]:
            raise ValueError("another digest than the round's receipt says")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The state of a strategy must be as `svp select` wrote it. Got {path} "
            f"({type(error).__name__}: {error}). Restore it."
        ) from error
    return state


def state_digest(state: Mapping[str, Any]) -> str | None:
    """Return a digest of a strategy's state; None if it keeps none."""
    return sha256_hex(canonical_json(dict(state))) if state else None


def read_rounds(study: Study) -> list[RoundResult]:
    """Read every finished round, oldest first."""
    return [read_round(folder) for folder in round_folders(study)]


def pending_ids(rounds: Collection[RoundResult], labels: Mapping[str, str]) -> set[str]:
    """Return the ids that were selected in `rounds` and have no label yet."""
    return {pick.id for done in rounds for pick in done.picks} - labels.keys()


def selection_digest(picks: tuple[Pick, ...]) -> str:
    """Return a digest of the selected ids in their order."""
    return sha256_hex(canonical_json([pick.id for pick in picks]))


def write_selection(folder: Path, number: int, strategy: str, picks: tuple[Pick, ...]) -> None:
    """Write the picks as CSV and as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "round": number,
            "rank": pick.rank,
            "id": pick.id,
            "uri": pick.uri,
            "utility": pick.utility,
            "reason": pick.reason,
            "strategy": strategy,
            "predicted": pick.predicted,
            "confidence": pick.confidence,
            "probability": pick.probability,
        }
        for pick in picks
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, SELECTION_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / "selection.csv", text.getvalue().encode())
    schema = pa.schema(
        [
            ("round", pa.int64()),
            ("rank", pa.int64()),
            ("id", pa.string()),
            ("uri", pa.string()),
            ("utility", pa.float64()),
            ("reason", pa.string()),
            ("strategy", pa.string()),
            ("predicted", pa.string()),
            ("confidence", pa.float64()),
            ("probability", pa.float64()),
        ]
    )
    raw = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), raw)
    write_bytes(folder / "selection.parquet", raw.getvalue())
