"""Gather a study for `svp.report`: every part is optional, what is missing is left out."""

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from feature_store.atomic import write_bytes, write_text
from feature_store.errors import FeatureStoreError
from svp import provenance
from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.report.content import (
    Balance,
    Fact,
    Report,
    Round,
    TargetModel,
)
from svp.report.export import draw_figures, write_tables
from svp.report.page import render
from svp.report.quantity import percent, plural
from svp.report.raster import rasterise, require_png
from svp.study.comparison import read_comparisons, read_json
from svp.study.labels import read_labels
from svp.study.record import RoundResult, read_rounds
from svp.study.refreshes import read_refreshes
from svp.study.report_map import read_map
from svp.study.report_pictures import Pictures, read_copies, read_earlier, read_gallery
from svp.study.report_time import read_history, read_money, read_stages, verdict_phrase
from svp.study.study import Study
from svp.study.tables import to_table

_SPLITS: Final = {"val": "validation", "test": "test"}


def write_report(
    study: Study,
    output: str | Path | None = None,
    *,
    generated: str | None = None,
    export: str | Path | None = None,
    png: bool = False,
    quick: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the study's report and return where it is.

    Args:
        study: The study.
        output: The file; default: `report.html` in the study's folder.
        generated: The moment shown on the page, ISO 8601; default: now.
        export: A folder for the same as figures (SVG) and tables (CSV); default: none.
        png: Export every figure as PNG too; needs the extra `png`.
        quick: Leave out what takes seconds: t-SNE and the search for copies.
        progress: Where to report.

    Raises:
        InputError: A file of the study is damaged, or the extra for PNG is not installed.
    """
    if png:
        require_png()
    path = study.path / "report.html" if output is None else Path(output)
    moment = provenance.now() if generated is None else generated
    path.parent.mkdir(parents=True, exist_ok=True)
    report = gather_report(study, generated=moment, quick=quick, progress=progress)
    write_text(path, render(report))
    if export is not None:
        folder = Path(export)
        folder.mkdir(parents=True, exist_ok=True)
        figures = draw_figures(report)
        for name, text in {**figures, **write_tables(report)}.items():
            write_text(folder / name, text)
        for name, text in figures.items() if png else ():
            write_bytes((folder / name).with_suffix(".png"), rasterise(text))
    return path


def gather_report(
    study: Study, *, generated: str = "", quick: bool = False, progress: Progress | None = None
) -> Report:
    """Read everything a report of the study shows.

    Args:
        study: The study.
        generated: The moment shown on the page, ISO 8601.
        quick: Leave out what takes seconds: t-SNE and the search for copies.
        progress: Where to report.

    Raises:
        InputError: A file of the study is damaged.
    """
    progress = progress if progress is not None else Silent()
    labels = read_labels(study)
    done = read_rounds(study)
    embedded = read_json(study.path / "encoder.json")
    metrics = read_json(study.model_dir / "metrics.json")
    refreshes, pictures = read_refreshes(study), Pictures.of(study)
    size = _pool_size(embedded, done)
    copies, skipped = read_copies(study, size, pictures, progress, quick=quick)
    stages = read_stages(embedded, done, refreshes, metrics)
    return Report(
        name=study.config.name,
        generated=_moment(generated),
        study=str(study.path),
        strategy=study.config.strategy.name,
        pool_size=size,
        labels=len(labels),
        comparisons=read_comparisons(study.simulation_dir),
        rounds=_rounds(done),
        balance=_balance(labels, done),
        embedding_map=read_map(study, done, labels, quick=quick, progress=progress),
        gallery=read_gallery(done[-1], labels, pictures, progress) if done else None,
        earlier=read_earlier(done, labels, pictures, progress),
        copies=copies,
        copies_skipped=skipped,
        refreshes=read_history(study.config.refresh.mode, done, refreshes),
        model=_model(study.model_dir, metrics),
        stages=stages,
        money=read_money(study.config.prices, len(labels), stages, _stored_bytes(study, embedded)),
        configuration=tuple(_flatten(to_table(study.config))),
        identities=_identities(study, embedded, done),
        versions=tuple(Fact(name=k, value=v) for k, v in provenance.versions().items()),
    )


def _moment(text: str) -> str:
    """Return an ISO 8601 moment as people write it."""
    if not text:
        return ""
    moment = datetime.datetime.fromisoformat(text)
    zone = " UTC" if moment.utcoffset() == datetime.timedelta(0) else f" {moment:%z}".rstrip()
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


def _pool_size(embedded: Mapping[str, Any], done: Sequence[RoundResult]) -> int | None:
    size = done[-1].receipt.get("pool", {}).get("items") if done else embedded.get("items")
    return None if size is None else int(size)


def _stored_bytes(study: Study, embedded: Mapping[str, Any]) -> int | None:
    """Return the size of the embeddings that `svp embed` made last; None where not to be had."""
    if study.config.prices is None or "encoder_id" not in embedded:
        return None
    try:
        table = study.open_store().table(str(embedded["encoder_id"]))
        row_bytes = (table.dim or 0) * np.dtype(str(table.dtype)).itemsize
    except (InputError, FeatureStoreError):
        return None
    return row_bytes * int(embedded.get("items", 0))


def _rounds(done: Sequence[RoundResult]) -> tuple[Round, ...]:
    # One split for all rounds, or their accuracies would not make a curve. Validation goes first:
    # a test split that is looked at every round is no test split.
    split = next(
        (s for s in _SPLITS if any(s in r.receipt.get("metrics", {}) for r in done)), "val"
    )
    return tuple(
        Round(
            number=one.number,
            strategy=one.receipt["strategy"]["name"],
            selected=len(one.picks),
            labels=int(one.receipt["labels"]["used"]),
            accuracy=one.receipt.get("metrics", {}).get(split, {}).get("accuracy"),
            split=_SPLITS[split],
            refresh=verdict_phrase(one.receipt.get("refresh")),
            seconds=sum(one.receipt.get("timings_s", {}).values()) or None,
        )
        for one in done
    )


def _balance(labels: Mapping[str, str], done: Sequence[RoundResult]) -> Balance | None:
    if not labels:
        return None
    classes = tuple(sorted(set(labels.values())))
    asked = {pick.id: one.number for one in done for pick in one.picks}
    counted: dict[int | None, Counter[str]] = {}
    for identifier, label in labels.items():
        counted.setdefault(asked.get(identifier), Counter())[label] += 1
    # Labels nobody was asked for come first: they were there before the rounds built on them.
    order = [source for source in (None, *(one.number for one in done)) if source in counted]
    return Balance(
        classes=classes,
        sources=tuple("imported" if s is None else f"round {s}" for s in order),
        counts=tuple(tuple(counted[s][name] for name in classes) for s in order),
    )


def _model(folder: Path, metrics: Mapping[str, Any]) -> TargetModel | None:
    if not metrics:
        return None
    made = read_json(folder / "config.json")
    settings, scores = made.get("config", {}), metrics.get("evaluation") or {}
    pool = metrics.get("pool") or {}
    listed = (
        ("Balanced accuracy", scores.get("balanced_accuracy")),
        ("Macro F1", scores.get("macro_f1")),
        ("Pool accuracy, model alone", pool.get("accuracy_model")),
        ("Pool accuracy, people's labels kept", pool.get("accuracy_hybrid")),
    )
    method = [settings[key] for key in ("mode", "method") if key in settings]
    if "labelled" in made:
        method.append(f"trained with {plural(made['labelled'], 'label')}")
    tested = f"{plural(scores['examples'], 'held-out item')}" if "examples" in scores else "test"
    return TargetModel(
        accuracy=scores.get("accuracy"),
        split=tested,
        method=", ".join(method),
        classes=tuple(made.get("class_names", ())) if scores else (),
        confusion=tuple(tuple(row) for row in scores.get("confusion", ())),
        metrics=tuple(Fact(name=k, value=percent(v, 2)) for k, v in listed if v is not None),
    )


def _identities(
    study: Study, embedded: Mapping[str, Any], done: Sequence[RoundResult]
) -> tuple[Fact, ...]:
    receipt = done[-1].receipt if done else {}
    found = {
        "study": str(study.path),
        "pool": receipt.get("pool", {}).get("id") or embedded.get("pool_id"),
        "encoder": receipt.get("encoder", {}).get("id") or embedded.get("encoder_id"),
        "view": receipt.get("encoder", {}).get("view"),
        "labels": receipt.get("labels", {}).get("digest"),
        "selection": receipt.get("selection", {}).get("digest"),
        **{f"hardware.{key}": value for key, value in receipt.get("hardware", {}).items()},
    }
    return tuple(Fact(name=k, value=str(v)) for k, v in found.items() if v is not None)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[Fact]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield Fact(name=f"{prefix}{key}", value=text)
