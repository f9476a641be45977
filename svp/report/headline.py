"""The page's first sentence and its four numbers, derived from the content alone."""

import dataclasses

from svp.report.comparison import signed_saving
from svp.report.content import Report, Saving
from svp.report.quantity import duration, number, percent, plural


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A number large enough to quote, with what qualifies it."""

    name: str
    value: str
    note: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """What a reader with ten seconds sees.

    Attributes:
        sentence: The result, in one sentence.
        caveat: What limits it; empty when nothing does.
        tiles: Labels, accuracy, saving, compute.
    """

    sentence: str
    caveat: str
    tiles: tuple[Tile, ...]


def best_saving(report: Report) -> Saving | None:
    """Return the saving the page quotes: the best of the last simulation, or None.

    Strategies that read labels inside a batch are passed over while another is there: nobody can
    run them on unlabelled data.
    """
    if not report.comparisons or not report.comparisons[-1].savings:
        return None
    last = report.comparisons[-1]
    peeking = {curve.strategy for curve in last.curves if curve.reads_labels}
    honest = [saving for saving in last.savings if saving.strategy not in peeking]
    return max(honest or last.savings, key=lambda saving: (saving.ratio, saving.accuracy))


def headline(report: Report) -> Headline:
    """Sum the report up."""
    saving = best_saving(report)
    sentence, caveat = _verdict(report, saving)
    return Headline(
        sentence=sentence,
        caveat=caveat,
        tiles=(_labels(report), _accuracy(report), _saving(report, saving), _compute(report)),
    )


def _verdict(report: Report, saving: Saving | None) -> tuple[str, str]:
    if saving is None:
        if report.labels == 0:
            return "This study has no labels yet.", "Select a first round, label it, import it."
        asked = plural(len(report.rounds), "round")
        return (
            f"{plural(report.labels, 'label')} so far, asked for in {asked}.",
            "What they save against random labelling has not been measured.",
        )
    proxy = f" ({saving.proxy})" if saving.proxy else ""
    reached = f"reaches {percent(saving.accuracy)} with {plural(saving.labels, 'label')}"
    needed = number(saving.random_labels)
    who = f"In simulation, {saving.strategy}{proxy} {reached}"
    if saving.bound == "at least":
        return (
            f"{who}; random labelling did not get there with {needed}.",
            f"The saving of {percent(saving.ratio, 0)} is therefore a lower bound: random was "
            "measured no further.",
        )
    if saving.bound == "at most":
        return (
            f"{who}, which random labelling exceeds with {needed}.",
            "The saving is therefore an upper bound: random was measured with no fewer labels.",
        )
    if saving.ratio <= 0:
        return (
            f"{who}; random labelling needs {needed}. It saves nothing on these data.",
            "Label at random, or try other strategies in a simulation.",
        )
    return (
        f"{who}; random labelling needs {needed}, so {percent(saving.ratio, 0)} are saved.",
        "",
    )


def _labels(report: Report) -> Tile:
    if report.pool_size:
        share = percent(report.labels / report.pool_size)
        note = f"of {plural(report.pool_size, 'item')} in the pool ({share})"
    else:
        note = "the pool has not been read yet"
    return Tile(name="Labels so far", value=number(report.labels), note=note)


def _accuracy(report: Report) -> Tile:
    name = "Accuracy now"
    if report.model is not None and report.model.accuracy is not None:
        note = f"target model, {report.model.split}"
        return Tile(name=name, value=percent(report.model.accuracy), note=note)
    measured = [done for done in report.rounds if done.accuracy is not None]
    if measured:
        last = measured[-1]
        note = f"proxy, {last.split}, round {last.number}"
        return Tile(name=name, value=percent(last.accuracy), note=note)
    return Tile(name=name, value="–", note="not measured yet")


def _saving(report: Report, saving: Saving | None) -> Tile:
    name = "Saved against random"
    if saving is None:
        return Tile(name=name, value="–", note=f"svp simulate {report.study} measures it")
    note = f"{saving.strategy} at {plural(saving.labels, 'label')}, simulated"
    if saving.bound != "measured":
        note += "; censored at random's range"
    return Tile(name=name, value=signed_saving(saving), note=note)


def _compute(report: Report) -> Tile:
    name = "Computing time"
    if not report.stages:
        return Tile(name=name, value="–", note="nothing has run yet")
    total = sum(stage.seconds for stage in report.stages)
    longest = max(report.stages, key=lambda stage: stage.seconds)
    return Tile(name=name, value=duration(total), note=f"wall time; most of it {longest.name}")
