"""`svp simulate`: strategies on known labels, as a grid of one's own or a published protocol."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from svp.cli.options import (
    DaskOption,
    DeviceOption,
    JsonOption,
    MemoryOption,
    ResultFileOption,
    SetOption,
    parse_memory,
    parse_settings,
    resolve_device,
)
from svp.cli.output import emit, table
from svp.errors import InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.cluster.executor import Executor
    from svp.study.cells import SimulationConfig
    from svp.study.protocol import Protocol
    from svp.study.simulate import SimulationResult
    from svp.study.study import Study


def simulate(
    study: Annotated[
        Path | None,
        typer.Argument(help="The study's folder; with --protocol by default the protocol's name."),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option("--budget", "-n", min=1, help="Labels per round; may be repeated."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=0, help="Selections after the initial batch; default: 5."),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", help="May be repeated; random always takes part."),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option("--proxy", help="linear, mlp or a published recipe; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Runs of each, seeds 0, 1, …; default: 5.")
    ] = None,
    initial: Annotated[
        int | None, typer.Option("--initial", min=1, help="Initial batch; default: the budget.")
    ] = None,
    first: Annotated[
        Literal["random", "kmeans", "labelbench"] | None,
        typer.Option("--first", help="How that batch is chosen; default: random."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", help="A published study to repeat; `svp protocols` lists them."),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="With --protocol: the images.")
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", help="Encoder spec, not the study's own; may be repeated."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="SVP_STORE", help="With --protocol: where embeddings go."),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", min=0, help="Runs at once; 0 = as many as cores and memory carry."),
    ] = 1,
    dask: DaskOption = None,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", help="tensorboard, mlflow or wandb too; may be repeated."),
    ] = None,
    device: DeviceOption = "auto",
    memory: MemoryOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Replay labelling with known labels: what would each strategy have bought? Resumable.

    Example:

      svp simulate mystudy --budget 50 --rounds 5 --strategy margin --strategy badge --seeds 3

      svp simulate --protocol asvp-cifar10 --source cifar10 --encoder ./encoder --store store
    """
    from svp.study.grid import simulate_grid
    from svp.study.study import Study

    given: dict[str, Any] = {
        "strategies": list(strategy) if strategy else None,
        "proxies": list(proxy) if proxy else None,
        "seeds": list(range(seeds)) if seeds else None,
        "rounds": rounds,
        "initial": initial,
        "first": first,
    }
    given = {key: value for key, value in given.items() if value is not None}
    place = resolve_device(device)
    if protocol is not None:
        opened, configs = _of_protocol(
            protocol, study, source, encoder, store, given, budget, place
        )
        specs: list[str] = []
    else:
        if study is None or not budget:
            raise InputError(
                "A simulation must have a study and a budget, or a protocol. Got "
                f"{'no study' if study is None else 'no budget'}. Write: svp simulate STUDY "
                "--budget 100, or --protocol NAME."
            )
        if source:
            raise InputError("--source must come with --protocol. Got it alone. Leave it out.")
        overrides = {"store.url": _absolute(store)} if store else {}
        opened = Study.open(study, {**overrides, **parse_settings(settings)})
        configs, specs = _own(opened, budget, given), list(encoder or [])
    with _executor(opened, jobs, dask) as executor:
        grid = simulate_grid(
            opened,
            configs,
            encoders=specs,
            device=place,
            memory_bytes=parse_memory(memory),
            executor=executor,
            trackers=track or (),
            progress=automatic(),
        )
    texts = []
    for part in grid.parts:
        name = f"Encoder {part.encoder}, budget {part.batch}:\n" if len(grid.parts) > 1 else ""
        texts.append(f"{name}{simulation_text(part.result)}")
    body = "\n\n".join(texts)
    emit(
        "svp.simulate/1",
        {"result": grid.parts[0].result, "parts": grid.parts, "table": grid.table},
        f"{body}\nCurves: {grid.table}. Next: svp report {opened.path}",
        as_json=as_json,
        result_file=result_file,
    )


def _own(study: "Study", budgets: list[int], given: dict[str, Any]) -> "list[SimulationConfig]":
    from svp.study.cells import SimulationConfig
    from svp.study.tables import from_table

    defaults = {
        "strategies": [study.config.strategy.name],
        "proxies": [study.config.proxy.kind],
        "rounds": 5,
    }
    return [from_table(SimulationConfig, {**defaults, **given, "batch": each}) for each in budgets]


def _of_protocol(
    name: str,
    study: Path | None,
    source: list[str] | None,
    encoder: list[str] | None,
    store: str | None,
    given: dict[str, Any],
    budget: list[int] | None,
    device: str,
) -> "tuple[Study, list[SimulationConfig]]":
    """Return the study of a protocol, embedded, and what to simulate in it."""
    from svp.study.embedding import embed_study
    from svp.study.protocol import open_protocol_study, read_protocol

    chosen = read_protocol(name)
    fixed = [key for key in ("initial", "first") if key in given] + (["budget"] if budget else [])
    if fixed or (encoder and len(encoder) > 1):
        raise InputError(
            "A protocol must keep its sizes and have one encoder. Got --"
            f"{fixed[0] if fixed else 'encoder twice'}. Write a .toml file of your own for others."
        )
    opened = open_protocol_study(
        chosen,
        name,
        study if study is not None else Path(Path(name).stem),
        source=tuple(source or ()),
        encoder=encoder[0] if encoder else None,
        store=store,
    )
    config = _amended(chosen, given)
    embed_study(opened, device=device, progress=automatic())
    return opened, [config]


def _amended(protocol: "Protocol", given: dict[str, Any]) -> "SimulationConfig":
    """Return a protocol's simulation with fewer runs or rounds, or other strategies."""
    config = protocol.simulation
    values: dict[str, Any] = {
        key: tuple(given[key]) for key in ("strategies", "proxies") if key in given
    }
    if "seeds" in given:
        values["seeds"] = config.seeds[: len(given["seeds"])]
    if "rounds" in given:
        sizes = config.sizes[: given["rounds"] + 1]
        steps = tuple((size, size - before) for before, size in itertools.pairwise(sizes))
        values |= (
            {"initial": sizes[0], "schedule": steps, "batch": None, "rounds": None}
            if steps
            else {"initial": sizes[0], "schedule": None, "batch": sizes[0], "rounds": 0}
        )
    return dataclasses.replace(config, **values)


@contextlib.contextmanager
def _executor(study: "Study", jobs: int, dask: str | None) -> "Iterator[Executor | None]":
    """Open what runs the cells: a cluster, processes, or nothing but this process."""
    if dask is not None:
        from svp.cluster import connect

        with connect(dask) as executor:
            yield executor
        return
    count = jobs or _automatic_jobs(study)
    if count == 1:
        yield None
        return
    from svp.cluster.processes import Processes

    yield Processes(count, threads=max(1, (os.cpu_count() or 1) // count))


def _absolute(store: str) -> str:
    return store if "://" in store else str(Path(store).expanduser().resolve())


def _automatic_jobs(study: "Study") -> int:
    from svp.study.grid import automatic_jobs, available_memory

    found = study.open_store().table(study.encoder_id())
    return automatic_jobs(
        found.rows, found.dim or 0, cores=os.cpu_count() or 1, free_bytes=available_memory()
    )


def simulation_text(done: "SimulationResult") -> str:
    """Return a simulation as two tables: accuracy by number of labels, and totals."""
    sizes = sorted({point.num_labeled for point in done.points})
    cells = {(p.strategy, p.proxy, p.num_labeled): p for p in done.points}
    runs = list(dict.fromkeys((p.strategy, p.proxy) for p in done.points))
    rows = []
    for strategy, proxy in runs:
        row = [strategy, proxy]
        for size in sizes:
            point = cells[strategy, proxy, size]
            # One seed has no deviation.
            sd = f" ±{100 * point.sd['test_acc']:.1f}" if point.runs > 1 else ""
            row.append(f"{point.mean['test_acc']:.1%}{sd}")
        rows.append(row)
    curves = table(["strategy", "proxy", *(f"{size:,} labels" for size in sizes)], rows)
    totals = []
    for total in done.totals:
        if total.strategy == "random":
            continue
        bound = f" ({total.censored} bounds)" if total.censored else ""
        totals.append(
            [
                total.strategy,
                total.proxy,
                f"{100 * total.mean_gain:+.2f}",
                f"{total.saving:.0%}{bound}",
                f"{total.select_s:.2f}",
                f"{total.train_s:.2f}",
            ]
        )
    header = ["strategy", "proxy", "gain, points", "labels saved", "select s", "train s"]
    where = done.evaluation
    seeds = max((point.runs for point in done.points), default=0)
    averaged = f"mean ± SD of {seeds} seeds" if seeds > 1 else "one seed"
    return (
        f"Accuracy on {where['items']:,} items ({where['split']}), {averaged}:\n"
        f"{curves}\n\nAgainst random on the same seeds, mean over rounds:\n"
        f"{table(header, totals) if totals else '(only random ran)'}"
    )
