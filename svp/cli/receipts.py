"""`svp replay` and `svp why`: was it so, and why was it so."""

from typing import TYPE_CHECKING, Annotated

import typer

from svp.cli.options import (
    DeviceOption,
    JsonOption,
    ResultFileOption,
    StudyArgument,
    resolve_device,
)
from svp.cli.output import emit
from svp.errors import InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.study.replay import Change, ReplayResult
    from svp.study.why import Neighbour, Why

_SHOWN = 10


def replay(
    study: StudyArgument,
    number: Annotated[int | None, typer.Option("--round", min=0, help="The round.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every round.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Compute a round again: prove it identical, or name what has changed (exit code 4).

    Example:

      svp replay mystudy --round 3

      svp replay mystudy --all
    """
    from svp.study.record import read_rounds
    from svp.study.replay import replay as replay_round
    from svp.study.study import Study

    if (number is None) is not every:
        raise InputError(
            "svp replay must be given --round or --all. Got "
            f"{'both' if every else 'neither'}. Give one of them."
        )
    opened, own_device = Study.open(study), resolve_device(device)
    numbers = [done.number for done in read_rounds(opened)] if number is None else [number]
    progress = automatic()
    done = [replay_round(opened, one, device=own_device, progress=progress) for one in numbers]
    identical = all(result.identical for result in done)
    emit(
        "svp.replay/1",
        {"identical": identical, "rounds": done},
        "\n".join(map(_replay_text, done)) or "No rounds.",
        as_json=as_json,
        result_file=result_file,
    )
    if not identical:
        raise typer.Exit(4)


def _replay_text(result: "ReplayResult") -> str:
    if result.identical:
        said = [f"Round {result.number}: identical, bit for bit."]
    elif result.recomputed and not result.differing:
        said = [f"Round {result.number}: the same choice, but not as it was left:"]
    elif result.recomputed:
        said = [f"Round {result.number}: differs at {len(result.differing):,} ranks. Changed:"]
    else:
        said = [f"Round {result.number}: cannot be computed again. Changed:"]
    said += _some([f"  {_change_text(change)}" for change in result.changes])
    if result.notes:
        said.append("  Different now, without effect on it:")
        said += _some([f"    {_change_text(change)}" for change in result.notes])
    return "\n".join(said)


def _some(lines: list[str]) -> list[str]:
    more = [f"  … and {len(lines) - _SHOWN:,} more, see --json"] if len(lines) > _SHOWN else []
    return [*lines[:_SHOWN], *more]


def _change_text(change: "Change") -> str:
    before = "nothing" if change.before is None else change.before
    after = "nothing" if change.after is None else change.after
    if change.what == "receipt":
        return f"receipt: {change.name} was edited, now {after}"
    if change.what == "replay":
        return after
    return f"{change.what} {change.name}: {before} -> {after}"


def why(
    study: StudyArgument,
    item: Annotated[str, typer.Argument(metavar="ID", help="The image, as in selection.csv.")],
    number: Annotated[
        int | None,
        typer.Option("--round", min=0, help="The round; default the one that picked it."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Explain what a round did with one image: rank, the model's view, neighbours, what else.

    Example:

      svp why mystudy train/cat/0012.png
    """
    from svp.study.study import Study
    from svp.study.why import why as explain

    done = explain(
        Study.open(study),
        item,
        number=number,
        device=resolve_device(device),
        progress=automatic(),
    )
    emit(
        "svp.why/1",
        {"why": done},
        _why_text(done),
        as_json=as_json,
        result_file=result_file,
    )


def _why_text(done: "Why") -> str:
    said = [f"{done.id}: {done.answer}"]
    if done.reason:
        said.append(f"Reason: {done.reason}")
    if done.label is not None:
        said.append(f"Label now: {done.label}")
    if done.classes:
        seen = ", ".join(f"{one.name} {one.probability:.1%}" for one in done.classes)
        said.append(f"The model of round {done.round} saw: {seen}")
    if done.labelled:
        said += ["Nearest with a label then:", *map(_neighbour_text, done.labelled)]
    if done.duplicates:
        said += ["Almost the same image:", *map(_neighbour_text, done.duplicates)]
    if done.density is not None:
        said.append(
            f"Its neighbourhood: mean cosine {done.density.mean_cosine:.3f} to the nearest ten; "
            f"{done.density.share_denser:.0%} of the pool lie in denser places."
        )
    if done.instead:
        also = ", and other picks would change" if done.also_changed else ""
        said.append(f"Without it, this would have been picked: {', '.join(done.instead)}{also}.")
    return "\n".join(said)


def _neighbour_text(other: "Neighbour") -> str:
    label = f" ({other.label})" if other.label is not None else ""
    return f"  {other.cosine:.4f}  {other.id}{label}"
