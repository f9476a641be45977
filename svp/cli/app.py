"""The commands of svp, one module a group; this one only gathers them."""

from typing import Annotated

import typer

from svp import __version__
from svp.cli import (
    answering,
    catalog,
    curves,
    embedding,
    judging,
    labelling,
    models,
    plan,
    pool,
    probing,
    protocols,
    reading,
    receipts,
    refresh,
    simulation,
    training,
    upkeep,
    waiting,
)

app = typer.Typer(
    name="svp",
    help=(
        "Which images to label next.\n\n"
        "Start with `svp demo`, or on your own images:\n\n"
        "  svp init mystudy --source photos/ --encoder open_clip:ViT-B-32/openai --store store\n\n"
        "  svp embed mystudy\n\n"
        "  svp select mystudy --budget 200"
    ),
    no_args_is_help=True,
    add_completion=False,
    # Plain text help and errors: rich would cost start-up time and spread a message over a box.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"svp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


# In the order in which a person meets them.
app.command("demo")(training.demo)
app.command("init")(embedding.init)
app.command("plan")(plan.plan)
app.command("embed")(embedding.embed)
app.add_typer(pool.pool_app, name="pool")
app.command("select")(labelling.select)
app.command("label")(answering.label)
app.add_typer(waiting.labels_app, name="labels")
app.command("replay")(receipts.replay)
app.command("why")(receipts.why)
app.command("refresh")(refresh.refresh)
app.command("finetune")(training.finetune)
app.command("predict")(models.predict)
app.command("export")(models.export)
app.command("simulate")(simulation.simulate)
app.command("gain")(judging.gain)
app.command("backtest")(judging.backtest)
app.command("curves")(curves.curves)
app.add_typer(protocols.protocols_app, name="protocols")
app.command("report")(reading.report)
app.command("pretrain")(training.pretrain)
app.add_typer(upkeep.store_app, name="store")
app.add_typer(catalog.strategies_app, name="strategies")
catalog.encoders_app.command("probe")(probing.probe)
app.add_typer(catalog.encoders_app, name="encoders")
app.command("doctor")(reading.doctor)
