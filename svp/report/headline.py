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


def quoted_saving(report: Report) -> Saving | None:
    """Return the saving the page quotes, or None: of the last simulation, the study's strategy.

    Where that was not simulated, the best of those that read no labels inside a batch, which
    nobody can run on unlabelled data; the best of several is an optimistic choice.
    """
    if not report.comparisons or not report.comparisons[-1].savings:
        return None
    last = report.comparisons[-1]
    peeking = {curve.strategy for curve in last.curves if curve.reads_labels}
    honest = [saving for saving in last.savings if saving.strategy not in peeking]
    own = [saving for saving in last.savings if saving.strategy == report.strategy]
    return max(own or honest or last.savings, key=lambda saving: (saving.ratio, saving.accuracy))


def headline(report: Report) -> Headline:
    """Sum the report up."""
    saving = quoted_saving(report)
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
    who = f"{saving.strategy} ({saving.proxy})" if saving.proxy else saving.strategy
    took = plural(round(saving.labels), "label")
    said = f"In simulation, {who} reached {percent(saving.accuracy)} with {took}"
    needed = f"random labelling needed {number(saving.random_labels)}"
    if saving.bound == "at most":
        return f"{said}; random labelling was above that with its first.", _caveat(saving)
    if saving.ratio <= 0:
        return f"{said}; {needed}. It saved nothing on these data.", _caveat(saving)
    least = "at least " if saving.bound == "at least" else ""
    return f"{said}; {needed}, so {least}{percent(saving.ratio, 0)} were saved.", _caveat(saving)


def _caveat(saving: Saving) -> str:
    """Say what the number leaves open."""
    said = []
    if saving.gain is not None and saving.gain_half_width is None:
        said.append("One seed says nothing about chance: simulate more.")
    elif saving.gain is not None and saving.gain_half_width is not None:
        points = (
            f"{number(100 * saving.gain, 1)} ± {number(100 * saving.gain_half_width, 1)} points"
        )
        if abs(saving.gain) <= saving.gain_half_width:
            said.append(f"At the end the two differ by {points}: chance is not ruled out.")
    if saving.exceeds:
        some = f"{saving.censored} of {plural(saving.rounds, 'round')}"
        said.append(
            f"Random never went above {percent(saving.accuracy)}, so {some} only bound what "
            f"{saving.strategy} saves."
        )
    return " ".join(said)


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
    note = f"by {saving.strategy}, to reach {percent(saving.accuracy)}, simulated"
    if saving.censored:
        note += f"; {saving.censored} of {plural(saving.rounds, 'round')} censored"
    return Tile(name=name, value=signed_saving(saving), note=note)


def _compute(report: Report) -> Tile:
    name = "Computing time"
    if not report.stages:
        return Tile(name=name, value="–", note="nothing has run yet")
    total = sum(stage.seconds for stage in report.stages)
    longest = max(report.stages, key=lambda stage: stage.seconds)
    return Tile(name=name, value=duration(total), note=f"wall time; longest: {longest.name}")
