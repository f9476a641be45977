"""`svp protocols`: the published studies that one command repeats."""

from typing import Annotated

import typer

from svp.cli.options import JsonOption, ResultFileOption
from svp.cli.output import emit, table

protocols_app = typer.Typer(
    help="Protocols of published studies: list and explain.\n\nExample:\n\n"
    "  svp protocols show asvp-cifar10",
    rich_markup_mode=None,
)


@protocols_app.callback(invoke_without_command=True)
def _protocols(
    context: typer.Context, as_json: JsonOption = False, result_file: ResultFileOption = None
) -> None:
    if context.invoked_subcommand is None:
        list_protocols(as_json, result_file)


@protocols_app.command("list")
def list_protocols(as_json: JsonOption = False, result_file: ResultFileOption = None) -> None:
    """List every protocol: data set, labels, rounds, runs.

    Example:

      svp protocols list
    """
    from svp.study.protocol import protocol_names, read_protocol

    found = [(name, read_protocol(name)) for name in protocol_names()]
    rows = [
        [
            name,
            one.dataset.name,
            f"{one.simulation.sizes[0]:,}",
            f"{one.simulation.sizes[-1]:,}",
            str(len(one.simulation.sizes)),
            str(len(one.simulation.seeds)),
            str(len(one.simulation.strategies)),
        ]
        for name, one in found
    ]
    emit(
        "svp.protocols/1",
        {
            "protocols": [
                {
                    "name": name,
                    "title": one.title,
                    "dataset": one.dataset.name,
                    "first": one.simulation.sizes[0],
                    "last": one.simulation.sizes[-1],
                    "sizes": len(one.simulation.sizes),
                    "seeds": len(one.simulation.seeds),
                    "strategies": one.simulation.strategies,
                    "paper": one.paper,
                }
                for name, one in found
            ]
        },
        table(["name", "data set", "first", "last", "sizes", "runs", "strategies"], rows),
        as_json=as_json,
        result_file=result_file,
    )


@protocols_app.command("show")
def show_protocol(
    name: Annotated[str, typer.Argument(help="A protocol, or a .toml file of your own.")],
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Explain one protocol: source, sizes, recipes, what to download, what differs.

    Example:

      svp protocols show labelbench-cifar10
    """
    from svp.study.protocol import needs, read_protocol

    one = read_protocol(name)
    sizes = one.simulation.sizes
    lines = [
        one.title,
        one.paper,
        "",
        f"labels:     {', '.join(f'{size:,}' for size in sizes)}",
        f"strategies: {', '.join(one.simulation.strategies)}",
        f"proxies:    {', '.join(one.simulation.proxies)}",
        f"seeds:      {', '.join(map(str, one.simulation.seeds))}",
        f"first:      {one.simulation.first}",
        f"finetune:   {', '.join(f'{k} = {v}' for k, v in one.finetune.items()) or 'none'}",
        f"reports:    {', '.join(one.metrics)}",
        "",
        *(f"- {note}" for note in one.notes),
        "",
        needs(one, name),
    ]
    emit(
        "svp.protocols.show/1",
        {"name": name, "sizes": sizes, "needs": needs(one, name), "protocol": one},
        "\n".join(lines),
        as_json=as_json,
        result_file=result_file,
    )
