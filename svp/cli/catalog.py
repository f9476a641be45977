"""`svp strategies` and `svp encoders`: what there is to choose from."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from svp.cli.options import JsonOption, ResultFileOption
from svp.cli.output import emit, plain, table
from svp.errors import InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.embed.card import EncoderCard

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
        list_strategies(as_json, result_file)


@strategies_app.command("list")
def list_strategies(as_json: JsonOption = False, result_file: ResultFileOption = None) -> None:
    """List every strategy: family, what it needs, exactness.

    Example:

      svp strategies list
    """
    from svp.strategies.catalog import describe

    found = describe()
    rows = [
        [one.name, one.family, ", ".join(one.needs) or "nothing", one.exactness, one.summary]
        for one in found
    ]
    emit(
        "svp.strategies/1",
        {"strategies": found},
        table(["name", "family", "needs", "exactness", "what it does"], rows),
        as_json=as_json,
        result_file=result_file,
    )


@strategies_app.command("show")
def show_strategy(
    name: Annotated[str, typer.Argument(help="The strategy.")],
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Explain one strategy: source, needs, parameters.

    Example:

      svp strategies show margin
    """
    from svp.strategies.catalog import build_strategy, describe

    build_strategy(name)  # refuses unknown names with near ones
    one = next(found for found in describe() if found.name == name)
    params = "\n".join(f"  {key} = {value!r}" for key, value in one.params.items()) or "  none"
    emit(
        "svp.strategies.show/1",
        {"strategy": one},
        f"{one.name} ({one.family}): {one.summary}\nSource: {one.source}\n"
        f"Needs: {', '.join(one.needs) or 'nothing'}\nExactness: {one.exactness}\n"
        f"Reads labels inside a batch: {'yes' if one.uses_oracle else 'no'}\n"
        f"Parameters, under [strategy.params]:\n{params}",
        as_json=as_json,
        result_file=result_file,
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
