"""The report's figures as SVG files and its tables as CSV files, for papers and spreadsheets.

CSV holds plain numbers, not those the page rounds: fractions stay fractions, seconds seconds.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Final

from markupsafe import Markup

from svp.report.content import Gallery, Report
from svp.report.figure import Panel, draw_panels
from svp.report.flatten import flatten
from svp.report.page import page_environment, progress_curve, style_sheet
from svp.report.scatter import map_of
from svp.report.scores import score_chart

Row = Sequence[object]
# Legend of a map: entries a row, and where they stand.
_KEYS: Final = 4
_KEY_LEFT: Final = 16
_KEY_WIDTH: Final = 210
_KEY_HEIGHT: Final = 22
# What spreadsheets take for a formula at the start of a cell.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def draw_figures(report: Report) -> dict[str, str]:
    """Return SVG documents by file name: one for each chart that the report's content allows.

    They are on white, for papers and slides, and need no style sheet; see `svp.report.flatten`.
    """
    figures = {}
    for place, comparison in enumerate(report.comparisons, start=1):
        by_proxy: dict[str, list[int]] = {}
        for at, curve in enumerate(comparison.curves):
            if curve.points:
                by_proxy.setdefault(curve.proxy, []).append(at)
        panels = [
            Panel(
                title=f"Proxy: {proxy}" if proxy else "",
                curves=tuple(comparison.curves[at] for at in rows),
            )
            for proxy, rows in by_proxy.items()
        ]
        if panels:
            name = f"curves-{place}.svg" if len(report.comparisons) > 1 else "curves.svg"
            figures[name] = draw_panels(panels, title=comparison.name, metric=comparison.metric)
    own = progress_curve(report)
    if own is not None:
        metric = f"{report.rounds[-1].split} accuracy"
        figures["rounds.svg"] = draw_panels(
            [Panel(title="", curves=(own,))], title="This study", metric=metric
        )
    drawn = map_of(report)
    if drawn is not None:
        classes = [(one.style, one.name) for one in drawn.classes]
        if any(dot.style == "kn" for layer in drawn.layers for dot in layer.dots):
            classes.append(("kn", "no label yet"))
        rounds = [(layer.style, layer.name) for layer in drawn.layers]
        for colour, named in (("round", rounds), ("class", classes)):
            legend = [
                (*one, _KEY_LEFT + _KEY_WIDTH * (place % _KEYS),
                 drawn.height + _KEY_HEIGHT * (1 + place // _KEYS))
                for place, one in enumerate(named)
            ]  # fmt: skip
            figures[f"map-by-{colour}.svg"] = _render(
                map=drawn, scores=None, colour=colour, title=drawn.title,
                legend=legend, width=drawn.width,
                height=drawn.height + _KEY_HEIGHT * (1 + math.ceil(len(named) / _KEYS)),
            )  # fmt: skip
    history = None if report.refreshes is None else score_chart(report.refreshes, key="scores")
    if history is not None:
        figures["refreshes.svg"] = _render(
            map=None, scores=history, colour="", title=history.title,
            width=history.width, height=history.height,
        )  # fmt: skip
    return figures


def _render(**content: object) -> str:
    # Our own style sheet, without `<` and `&`.
    style = Markup(style_sheet())
    return flatten(page_environment().get_template("picture.svg").render(style=style, **content))


def write_tables(report: Report) -> dict[str, str]:
    """Return CSV documents by file name: one for each table that has rows."""
    tables: dict[str, tuple[Row, list[Row]]] = {
        "curves.csv": (
            ("simulation", "strategy", "proxy", "labels", "mean", "sd", "seeds"),
            [
                (one.name, curve.strategy, curve.proxy, at.labels, at.mean, at.sd, at.seeds)
                for one in report.comparisons
                for curve in one.curves
                for at in curve.points
            ],
        ),
        "savings.csv": (
            (
                "simulation", "strategy", "proxy", "final_accuracy", "gain", "gain_half_width",
                "accuracy", "labels", "random_labels", "saving", "bound", "saving_mean",
                "saving_sd", "saving_mean_measured", "rounds", "rounds_censored",
            ),
            [
                (
                    one.name, s.strategy, s.proxy, s.final_accuracy, s.gain, s.gain_half_width,
                    s.accuracy, s.labels, s.random_labels, s.ratio, s.bound, s.mean_ratio,
                    s.sd_ratio, s.mean_measured, s.rounds, s.censored,
                )
                for one in report.comparisons
                for s in one.savings
            ],
        ),
        "rounds.csv": (
            ("round", "strategy", "selected", "labels", "accuracy", "split", "refresh", "seconds"),
            [
                (r.number, r.strategy, r.selected, r.labels, r.accuracy, r.split, r.refresh,
                 r.seconds)
                for r in report.rounds
            ],
        ),
        "selections.csv": (
            ("round", "strategy", "rank", "id", "utility", "reason", "predicted", "confidence",
             "label"),
            [row for one in _galleries(report) for row in _selection(one)],
        ),
        "facts.csv": (
            ("kind", "name", "value"),
            [
                (kind, fact.name, fact.value)
                for kind, facts in (
                    ("identity", report.identities),
                    ("configuration", report.configuration),
                    ("version", report.versions),
                )
                for fact in facts
            ],
        ),
        "time.csv": (
            ("stage", "seconds", "note"),
            [(stage.name, stage.seconds, stage.note) for stage in report.stages],
        ),
        **_pool_tables(report),
        **_model_tables(report),
        **_history_tables(report),
    }  # fmt: skip
    return {name: _csv(header, rows) for name, (header, rows) in tables.items() if rows}


def _galleries(report: Report) -> tuple[Gallery, ...]:
    return (() if report.gallery is None else (report.gallery,)) + report.earlier


def _selection(gallery: Gallery) -> list[Row]:
    return [
        (gallery.round, gallery.strategy, item.rank, item.id, item.utility, item.reason,
         item.predicted, item.confidence, item.label)
        for item in gallery.items
    ]  # fmt: skip


def _pool_tables(report: Report) -> dict[str, tuple[Row, list[Row]]]:
    balance, points, copies = report.balance, report.embedding_map, report.copies
    return {
        "balance.csv": (
            ("class", *(() if balance is None else balance.sources)),
            []
            if balance is None
            else [
                (name, *(row[place] for row in balance.counts))
                for place, name in enumerate(balance.classes)
            ],
        ),
        "map.csv": (
            ("id", "x", "y", "label", "round", "rank"),
            []
            if points is None
            else [(p.id, p.x, p.y, p.label, p.round, p.rank) for p in points.points],
        ),
        "duplicates.csv": (
            ("group", "id", "kind", "cosine", "label", "side"),
            []
            if copies is None
            else [
                (place, item.id, item.kind, item.cosine, item.label, item.side)
                for place, group in enumerate(copies.groups, start=1)
                for item in group.items
            ],
        ),
    }


def _model_tables(report: Report) -> dict[str, tuple[Row, list[Row]]]:
    model, money = report.model, report.money
    return {
        "confusion.csv": (
            ("true", *(() if model is None else model.classes)),
            []
            if model is None
            else [(name, *row) for name, row in zip(model.classes, model.confusion, strict=False)],
        ),
        "money.csv": (
            ("what", "how_much", "amount", "currency", "as_of"),
            []
            if money is None
            else [(c.name, c.quantity, c.amount, money.currency, money.as_of) for c in money.costs],
        ),
    }


def _history_tables(report: Report) -> dict[str, tuple[Row, list[Row]]]:
    history = report.refreshes
    return {
        "judgements.csv": (
            ("round", "labels", "encoder", "stale", "reason", "ped_steps", "score", "previous",
             "change", "threshold", "refresh"),
            []
            if history is None
            else [
                (j.round, j.labels, j.encoder, j.stale, j.reason, j.ped_steps, j.score,
                 j.previous, j.change, j.threshold, j.refresh)
                for j in history.judgements
            ],
        ),
        "refreshes.csv": (
            ("refresh", "created", "labels", "forced", "accuracy", "finetune_s", "embed_s",
             "encoder"),
            []
            if history is None
            else [
                (d.number, d.created, d.labels, d.forced, d.accuracy, d.finetune_s, d.embed_s,
                 d.encoder)
                for d in history.done
            ],
        ),
    }  # fmt: skip


def _csv(header: Row, rows: Iterable[Row]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(value) for value in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    """Return what a spreadsheet shows and never computes; ids and labels come from outside."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
