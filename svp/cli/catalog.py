"""`svp strategies` and `svp encoders`: what there is to choose from."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from svp.cli.options import JsonOption, ResultFileOption
from svp.cli.output import emit, fitted_table, plain, table
from svp.errors import InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.embed.card import EncoderCard
    from svp.strategies.catalog import Description

_ID = re.compile(r"[0-9a-f]{16}")

strategies_app = typer.Typer(
    help="Strategies: list and explain.\n\nExample:\n\n  svp strategies show badge",
    rich_markup_mode=None,
)
encoders_app = typer.Typer(
    help="Encoders: how to name them.\n\nExample:\n\n  svp encoders models timm --match resnet",
    rich_markup_mode=None,
)


@strategies_app.callback(invoke_without_command=True)
def _strategies(
    context: typer.Context, as_json: JsonOption = False, result_file: ResultFileOption = None
) -> None:
    if context.invoked_subcommand is None:
        list_strategies(False, as_json, result_file)


@strategies_app.command("list")
def list_strategies(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table for documents.")] = False,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """List every strategy: family, needs, exactness, cost, source, whether it reads labels.

    A terminal shows what fits; a pipe, --markdown and --json have it all. N is the pool, L the
    labels, C the classes, d and h widths, b the budget.

    Examples:

      svp strategies list

      svp strategies list --markdown
    """
    from svp.strategies.catalog import describe

    found = describe()
    if markdown:
        text = markdown_table(found)
    elif sys.stdout.isatty():
        text = fitted_table(_SHOWN, [_shown(one) for one in found])
    else:
        text = table(_COLUMNS, [_listed(one) for one in found])
    emit(
        "svp.strategies/1",
        {"strategies": found},
        text,
        as_json=as_json,
        result_file=result_file,
    )


@strategies_app.command("show")
def show_strategy(
    name: Annotated[str, typer.Argument(help="The strategy.")],
    pool: Annotated[
        int | None, typer.Option("--pool", min=1, help="Images, to say what it would hold.")
    ] = None,
    dim: Annotated[int, typer.Option("--dim", min=1, help="Width of the embeddings.")] = 512,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes.")] = 10,
    budget: Annotated[int, typer.Option("--budget", "-n", min=1, help="Images to select.")] = 100,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Explain one strategy: source, needs, parameters; with --pool also its memory.

    Examples:

      svp strategies show margin

      svp strategies show badge --pool 1281167 --dim 512 --classes 1000 --budget 10000
    """
    from svp.strategies.catalog import describe_one, estimate

    one = describe_one(name)
    params = "\n".join(
        f"  {key} = {value!r}" + (f"\n      {one.meanings[key]}" if one.meanings[key] else "")
        for key, value in one.params.items()
    )
    cost = None if pool is None else estimate(name, pool, dim, classes, budget)
    instead = f"\nIf it does not fit: {one.instead}" if one.instead else ""
    held = (
        ""
        if cost is None
        else f"\nFor {budget:,} of {pool:,} images, {dim} wide, {classes:,} classes, beyond the "
        f"embeddings: {cost.bytes / 2**20:,.0f} MiB, {cost.flops:.2g} operations, "
        f"{cost.passes:.3g} passes over the pool"
    )
    emit(
        "svp.strategies.show/1",
        {"strategy": one, "cost": cost},
        f"{one.name} ({one.family}): {one.summary}\n\n{one.doc}\n\nSource: {one.source}\n"
        f"Needs: {', '.join(one.needs) or 'nothing'}\nExactness: {one.exactness}\n"
        f"Arithmetic grows as: {one.scaling}{instead}\n"
        f"Reads labels inside a batch: {reads_text(one)}\n"
        f"Parameters, under [strategy.params]:\n{params or '  none'}{held}",
        as_json=as_json,
        result_file=result_file,
    )


_COLUMNS = ["name", "family", "needs", "exactness", "cost", "reads labels", "source", "summary"]


_SHOWN = ["name", "what it does (needs; exactness)"]


def reads_text(one: "Description") -> str:
    """Return whether a strategy reads labels inside a batch, in a word or two."""
    if not one.uses_oracle:
        return "no"
    return "yes, or assumes predictions (pseudo = true)" if one.pseudo else "yes"


def _listed(one: "Description") -> list[str]:
    return [
        one.name,
        one.family,
        ", ".join(one.needs) or "nothing",
        one.exactness,
        one.scaling,
        reads_text(one).partition(" (")[0],
        one.source,
        one.summary,
    ]


def _shown(one: "Description") -> list[str]:
    traits = [", ".join(one.needs) or "nothing", one.exactness]
    if one.uses_oracle and not one.pseudo:
        traits.append("reads labels")
    return [one.name, f"{one.summary} ({'; '.join(traits)})"]


def markdown_table(found: "Sequence[Description]") -> str:
    """Return the strategies as a table in Markdown, as docs/strategies.md shows it."""
    rows = [_COLUMNS, ["---"] * len(_COLUMNS), *(_listed(one) for one in found)]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )


@encoders_app.callback(invoke_without_command=True)
def _encoders(
    context: typer.Context, as_json: JsonOption = False, result_file: ResultFileOption = None
) -> None:
    if context.invoked_subcommand is None:
        list_encoders(as_json, result_file)


@encoders_app.command("list")
def list_encoders(as_json: JsonOption = False, result_file: ResultFileOption = None) -> None:
    """List the families of encoders and how to write one.

    Example:

      svp encoders list
    """
    from svp.encoders.catalog import families

    found = families()
    lines = []
    for family in found:
        lines += [f"{family.name}: {family.syntax}", f"  {family.summary}"]
        lines += [f"    {example}" for example in family.examples]
    emit(
        "svp.encoders/1",
        {"families": found},
        "\n".join(lines),
        as_json=as_json,
        result_file=result_file,
    )


@encoders_app.command("models")
def list_models(
    family: Annotated[str, typer.Argument(help="open_clip, timm or byol.")],
    match: Annotated[str, typer.Option("--match", help="Only names that contain this.")] = "",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """List the models of a family.

    Example:

      svp encoders models open_clip --match coca
    """
    from svp.encoders.catalog import models

    found = [name for name in models(family) if match.lower() in name.lower()]
    emit(
        "svp.encoders.models/1",
        {"family": family, "models": found},
        "\n".join(found) or f"No model of {family} contains {match!r}.",
        as_json=as_json,
        result_file=result_file,
    )


@encoders_app.command("show")
def show_encoder(
    encoder: Annotated[str, typer.Argument(help="Encoder spec, or an id in the store.")],
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="SVP_STORE", help="Also say what this store holds of it."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option("--precision", help="With a spec: numeric mode, part of the identity."),
    ] = "fp32",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Print all that identifies an encoder: id, weights, preprocessing, licence, self-test, tables.

    Examples:

      svp encoders show ./encoder --store store

      svp encoders show 0123456789abcdef --store store
    """
    from feature_store import open_store
    from svp.embed.card import card_of_encoder, card_of_stored
    from svp.encoders.encoder import open_encoder

    opened = None if store is None else open_store(store)
    if _ID.fullmatch(encoder) and not Path(encoder).exists():
        if opened is None:
            raise InputError(
                f"An encoder id must come with the store it is in. Got {encoder} without --store. "
                "Add it, or name the encoder by its spec."
            )
        card = card_of_stored(opened, encoder)
    else:
        loaded = open_encoder(encoder, precision=precision, progress=automatic())
        card = card_of_encoder(loaded, opened)
    emit(
        "svp.encoders.show/1",
        {"encoder": card},
        _card_text(card),
        as_json=as_json,
        result_file=result_file,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += _flat(value, f"{prefix}{key}.")
        else:
            lines.append(f"  {prefix}{key} = {value}")
    return lines


def _card_text(card: "EncoderCard") -> str:
    lines = [
        f"Encoder {card.id}, {card.dim or 'unknown'} dimensions, {card.identity.get('storage')}",
        f"Licence: {card.licence}",
    ]
    if card.parent is not None:
        lines.append(f"Refreshed from: {card.parent.id} (licence: {card.parent.licence})")
    lines += ["Identity:", *_flat(plain(card.identity))]
    lines += ["Provenance:", *(_flat(plain(card.provenance)) or ["  none"])]
    if card.store is None:
        return "\n".join([*lines, "Store: none given; --store URL says what one holds."])
    if not card.stored:
        return "\n".join([*lines, f"Store: {card.store} does not hold this encoder."])
    lines.append(f"Self-test: {_golden_text(card)}")
    rows = [
        [one.view, str(one.rows), str(one.dtype), str(one.segments), str(one.failed),
         "" if one.made is None else f"{one.made.get('policy')} seed {one.made.get('seed')}"]
        for one in card.tables
    ]  # fmt: skip
    header = ["view", "rows", "dtype", "segments", "failed", "made by"]
    return "\n".join([*lines, f"Tables in {card.store}:", table(header, rows)])


def _golden_text(card: "EncoderCard") -> str:
    golden = card.golden
    if golden is None:
        return "none stored"
    made = f"stored {golden.recorded_at} by torch {golden.versions.get('torch')}, {golden.device}"
    check = golden.check
    if check is None:
        return f"{made}; name the encoder by its spec to run it here"
    word = {"accepted": "moved beyond the hard band"}.get(check.status, check.status)
    return (
        f"{made}; here: {word}, relative error {check.relative_error:.1e}, "
        f"cosine distance {check.cosine_distance:.1e}"
    )
