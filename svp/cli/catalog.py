"""`svp strategies` and `svp encoders`: what there is to choose from."""

from typing import Annotated

import typer

from svp.cli.options import JsonOption, ResultFileOption
from svp.cli.output import emit, table

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
