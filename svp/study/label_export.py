"""Write what people are to label, in the order to label, in the form their tool reads."""

import dataclasses
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

from feature_store.atomic import write_bytes, write_text
from svp.errors import InputError
from svp.label import cvat, fiftyone, labelstudio
from svp.label.answer import Task
from svp.study.label_store import csv_bytes
from svp.study.labels import read_labels
from svp.study.record import RoundResult, read_rounds
from svp.study.study import Study

if TYPE_CHECKING:
    import pyarrow as pa

ExportFormat = Literal["csv", "parquet", "label-studio", "fiftyone", "cvat"]
COLUMNS: Final = ("id", "uri", "label", "round", "rank", "utility", "predicted", "confidence")
# Where Label Studio serves files of its own machine.
_LOCAL_FILES: Final = "/data/local-files/?d="


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        files: The files, the main one first.
        rows: Items in it.
        classes: Classes that it names.
        document_root: The folder that Label Studio has to serve; None in other cases.
    """

    files: tuple[Path, ...]
    rows: int
    classes: tuple[str, ...]
    document_root: Path | None = None


def export_items(
    study: Study,
    output: str | Path,
    *,
    format: ExportFormat = "csv",
    number: int | None = None,
    classes: tuple[str, ...] = (),
    images: str | None = None,
    guesses: bool = True,
) -> ExportResult:
    """Write selected items for people to label.

    Tables have the columns id, uri, label (to be filled in) and what the selection says. They can
    be imported again when they are filled.

    Args:
        study: The study.
        output: The file; for FiftyOne a folder. Beside tasks of Label Studio the labelling
            configuration is written, as `NAME.config.xml`.
        format: What to write.
        number: All items of this round, labelled or not (Label Studio: without a label only);
            default: the items of every round that wait for a label.
        classes: Classes to offer besides the known ones.
        images: Label Studio only: the folder it serves (its local files document root), or the
            address before each uri; default: the folder above the source.
        guesses: Whether the proxy's guesses come along.

    Raises:
        InputError: No such round has been selected, or the pictures cannot be addressed.
    """
    path = Path(output)
    done = read_rounds(study)
    labels = read_labels(study)
    tasks = round_tasks(study, done, labels, number)
    if format == "label-studio":
        tasks = [task for task in tasks if not task.label]
    if not guesses:
        tasks = [dataclasses.replace(task, predicted=None, confidence=None) for task in tasks]
    named = class_names(done, labels, classes)
    files: tuple[Path, ...] = (path,)
    root: Path | None = None
    if format == "csv":
        write_bytes(path, csv_bytes(COLUMNS, map(_cells, tasks)))
    elif format == "parquet":
        write_bytes(path, parquet_bytes(_table(tasks)))
    elif format == "label-studio":
        address, root = _addresses(study, images)
        digests = _digests(study)
        tasks = [
            dataclasses.replace(task, image=address(task.uri), digest=digests.get(task.id, ""))
            for task in tasks
        ]
        config = path.with_suffix(".config.xml")
        write_text(config, labelstudio.labelling_config(named))
        write_text(path, labelstudio.tasks_json(tasks, version=_version(done, number)))
        files = (path, config)
    elif format == "fiftyone":
        folders = _roots(study)
        tasks = [dataclasses.replace(task, image=_located(folders, task.uri)) for task in tasks]
        written = fiftyone.dataset_files(tasks, named)
        files = tuple(path / name for name in written)
        for name, text in written.items():
            write_text(path / name, text)
    else:
        size = _sizes(study)
        tasks = [dataclasses.replace(task, size=size(task.uri)) for task in tasks]
        write_text(path, cvat.annotations_xml(tasks, named))
    return ExportResult(files=files, rows=len(tasks), classes=named, document_root=root)


def class_names(
    done: list[RoundResult], labels: Mapping[str, str], more: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return every class that labels, proxies or the caller know, sorted."""
    known = {*labels.values(), *more}
    for one in done:
        known.update(one.receipt.get("proxy", {}).get("classes", ()))
    return tuple(sorted(known))


def round_tasks(
    study: Study, done: list[RoundResult], labels: Mapping[str, str], number: int | None
) -> list[Task]:
    """Return the items of one round with their labels, or those of every round without one.

    Raises:
        InputError: No such round has been selected.
    """
    if not done:
        raise InputError(
            f"A round must be selected first. Got none. Run: svp select {study.path} --budget N"
        )
    chosen = [one for one in done if number in (None, one.number)]
    if not chosen:
        known = ", ".join(str(one.number) for one in done)
        raise InputError(f"A round must be one of: {known}. Got {number}. Name one of them.")
    return [
        Task(
            id=pick.id,
            uri=pick.uri,
            image=pick.uri,
            round=one.number,
            rank=pick.rank,
            utility=pick.utility,
            reason=pick.reason,
            strategy=one.receipt["strategy"]["name"],
            predicted=pick.predicted,
            confidence=pick.confidence,
            label=labels.get(pick.id, ""),
        )
        for one in chosen
        for pick in one.picks
        if number is not None or pick.id not in labels
    ]


def _cells(task: Task) -> tuple[str, ...]:
    guess = "" if task.confidence is None else str(task.confidence)
    return (
        task.id,
        task.uri,
        task.label,
        str(task.round),
        str(task.rank),
        str(task.utility),
        task.predicted or "",
        guess,
    )


def _table(tasks: list[Task]) -> "pa.Table":
    import pyarrow as pa

    types = dict.fromkeys(COLUMNS, pa.string()) | {
        "round": pa.int64(),
        "rank": pa.int64(),
        "utility": pa.float64(),
        "confidence": pa.float64(),
    }
    columns: dict[str, Any] = {
        name: [getattr(task, name) for task in tasks] for name in COLUMNS if name != "label"
    }
    columns["label"] = [task.label or None for task in tasks]
    return pa.table({name: columns[name] for name in COLUMNS}, schema=pa.schema(types.items()))


def parquet_bytes(table: "pa.Table") -> bytes:
    """Return a table as a Parquet file."""
    import pyarrow.parquet as pq

    raw = io.BytesIO()
    pq.write_table(table, raw)
    return raw.getvalue()


def _version(done: list[RoundResult], number: int | None) -> str:
    last = done[-1] if number is None else next(one for one in done if one.number == number)
    kind = last.receipt["proxy"]["kind"]
    return f"svp {kind} proxy, round {last.number}"


def _digests(study: Study) -> dict[str, str]:
    pool = study.scan().pool
    return {name: raw.tobytes().hex() for name, raw in zip(pool.ids, pool.digests, strict=True)}


def _roots(study: Study) -> list[Path]:
    """Return the folders of this machine below which pictures may lie."""
    data = study.config.data
    places = [*([] if data.root is None else [data.root]), *data.source]
    paths = [Path(study.located(text)) for text in places if "://" not in text]
    return [path if path.is_dir() else path.parent for path in paths]


def _located(folders: list[Path], uri: str) -> str:
    if "://" in uri:
        return uri
    path = next((folder / uri for folder in folders if (folder / uri).is_file()), None)
    if path is None:
        raise InputError(
            f"A labelling tool must find the pictures as files. Got {uri}, which is none: it may "
            "lie in an archive or a table. Label in the browser: svp label STUDY"
        )
    return str(path.resolve())


def _addresses(study: Study, images: str | None) -> tuple[Callable[[str], str], Path | None]:
    """Return the address of a uri for Label Studio, and the folder it has to serve."""
    if images is not None and "://" in images:
        before = images if images.endswith(("/", "=")) else f"{images}/"
        return (lambda uri: before + quote(uri)), None
    folders = _roots(study)
    if images is not None:
        root = Path(images).resolve()
        if not root.is_dir():
            raise InputError(
                f"--images must be a folder or an address. Got {images}. Correct the path."
            )
    elif folders:
        # Label Studio refuses the document root itself as a storage, so it is the folder above.
        root = Path(os.path.commonpath([folder.resolve() for folder in folders])).parent
    else:
        return (lambda uri: _located([], uri)), None

    def address(uri: str) -> str:
        located = _located(folders, uri)
        if "://" in located:
            return located
        if not Path(located).is_relative_to(root):
            raise InputError(
                f"--images must be a folder above all pictures. Got {root}, and the picture "
                f"{located}. Name a folder above both."
            )
        return _LOCAL_FILES + quote(Path(located).relative_to(root).as_posix())

    return address, root


def _sizes(study: Study) -> Callable[[str], tuple[int, int] | None]:
    from svp.data import DecodeError, decode_image

    try:
        source = study.source()
    except InputError:
        return lambda uri: None  # the pictures may lie on another machine

    def size(uri: str) -> tuple[int, int] | None:
        try:
            return decode_image(source.read(uri)).size
        except (OSError, DecodeError, InputError):
            return None

    return size
