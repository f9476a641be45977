"""Label a round on a page of this machine: the round's items in, one journal of answers out."""

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from feature_store.atomic import make_directory
from svp.errors import InputError
from svp.label.answer import Label
from svp.label.server import LabelServer, PictureError
from svp.label.session import Session
from svp.provenance import now
from svp.study.label_export import class_names, round_tasks
from svp.study.label_store import Journal
from svp.study.labels import read_labels
from svp.study.record import read_rounds
from svp.study.study import Study

if TYPE_CHECKING:
    from svp.data import Source


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelResult:
    """What people did on the page.

    Attributes:
        round: The round.
        answers: Answers given, changed ones counted again.
        labelled: Items of the round with a label now.
        waiting: Items of the round without one.
        finished: Whether the page said so; else it was idle for too long.
        file: The journal in `labels/`; None without an answer.
    """

    round: int
    answers: int
    labelled: int
    waiting: int
    finished: bool
    file: str | None


def label_round(
    study: Study,
    *,
    number: int | None = None,
    classes: Collection[str] = (),
    annotator: str = "",
    port: int = 0,
    idle_s: float | None = None,
    opened: Callable[[str], None] = lambda url: None,
) -> LabelResult:
    """Serve the page until it is finished; every answer is saved when it is given.

    Args:
        study: The study.
        number: The round; default: the newest.
        classes: Classes to offer besides the known ones.
        annotator: Who answers.
        port: Port on 127.0.0.1; 0 takes a free one.
        idle_s: Stop after so many seconds without a request; None: never.
        opened: Told the page's address, which holds its token.

    Raises:
        InputError: There is no such round, the images cannot be opened, or the port is taken.
    """
    done = read_rounds(study)
    labels = read_labels(study)
    number = done[-1].number if number is None and done else number
    tasks = round_tasks(study, done, labels, number)
    journal = Journal(study)
    skips = _Skips(study.labels_dir / "skipped" / f"{number or 0:03d}.csv")

    def save(name: str, label: str) -> None:
        row = Label(id=name, label=label, annotator=annotator, labeled_at=now())
        journal.add(row)

    session = Session(
        tasks,
        class_names(done, labels, tuple(classes)),
        save=save,
        skipped=skips.read(),
        save_skip=skips.add,
        title=f"{study.config.name}: round {number}",
    )
    source = study.source()
    uris = [task.uri for task in tasks]
    try:
        server = LabelServer(
            session, lambda place, edge: _picture(source, uris[place], edge), port=port
        )
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--port must be free. Got {port}: {error}. Use another, or 0 for a free one."
        ) from error
    opened(server.url)
    finished = server.serve(idle_s=idle_s)
    state = session.state()
    return LabelResult(
        round=number or 0,
        answers=session.answers,
        labelled=state["labelled"],
        waiting=state["total"] - state["labelled"],
        finished=finished,
        file=None if journal.path is None else journal.path.name,
    )


class _Skips:
    """Which items were skipped: a line each, appended; the last one of an item counts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[str]:
        try:
            whole = self._path.read_text(encoding="utf-8").rpartition("\n")[0]
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self._path} must be as svp wrote it. Got {error}. Delete it: it only says what "
                "was skipped."
            ) from error
        last = {row[0]: row[1] for row in csv.reader(io.StringIO(whole)) if len(row) == 2}
        return [name for name, skipped in last.items() if skipped == "1"]

    def add(self, name: str, skipped: bool) -> None:
        make_directory(self._path.parent)
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([name, int(skipped)])
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line.getvalue().encode())
            os.fsync(handle)
        finally:
            os.close(handle)


def _picture(source: "Source", uri: str, edge: int) -> tuple[str, bytes]:
    from svp.data import DecodeError, decode_image
    from svp.report.thumbnail import make_thumbnail

    def needed(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, edge / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    try:
        made = make_thumbnail(decode_image(source.read(uri), needed=needed), edge=edge)
    except (OSError, DecodeError, InputError) as error:
        said = error.reason if isinstance(error, DecodeError) else "its file cannot be read"
        raise PictureError(f"{said}.") from error
    return made.mime, made.data
