"""Simulate labelling with known labels: strategies x proxies x seeds, from cached embeddings.

All strategies of one seed start from the same batch, and random always takes part, so that every
gain is a paired difference. A cell (strategy, proxy, seed) is one file, written when it is
finished; a stopped simulation continues at the next cell.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_store.atomic import write_bytes, write_json
from feature_store.digest import canonical_json, sha256_hex
from svp.cluster.executor import Executor
from svp.errors import InputError
from svp.progress import Progress, Silent, Task
from svp.provenance import hardware, now, versions
from svp.study.cell_job import CellJob, CellKey, cell_params, cell_strategy
from svp.study.cells import SimulationConfig, Stage, cell_path, prepare, read_cell, run_cell
from svp.study.curves import (
    RESULT_COLUMNS,
    Cell,
    CurvePoint,
    CurveTotal,
    curve_points,
    curve_totals,
    penalties,
    result_rows,
)
from svp.study.options import build_proxy_config, build_wrapping, proxy_section
from svp.study.study import Study
from svp.study.tables import to_table
from svp.study.tracking import Tracking, open_tracking

if TYPE_CHECKING:
    from svp.proxies import ProxyConfig
    from svp.strategies.base import Strategy


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SimulationResult:
    """A finished simulation.

    Attributes:
        folder: Where `cells/`, `results.csv` and `summary.json` are.
        points: One per strategy, proxy and number of labels.
        totals: One per strategy and proxy.
        evaluation: On what it was evaluated: `split` (`test` or `held-out`), `items`, `share`.
        cells: How many runs there are.
        reused: How many of them an earlier call had finished.
    """

    folder: Path
    points: tuple[CurvePoint, ...]
    totals: tuple[CurveTotal, ...]
    evaluation: Mapping[str, Any]
    cells: int
    reused: int


def simulate(
    study: Study,
    config: SimulationConfig,
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    executor: Executor | None = None,
    trackers: Sequence[str] = (),
    progress: Progress | None = None,
) -> SimulationResult:
    """Run every cell that is not on disk yet, and summarise all of them.

    What `[strategy]` puts around a strategy is around all of them but random, the yardstick.
    `memory_bytes` caps what embeddings and a strategy hold together, and changes no result.

    Args:
        study: The study.
        config: What to simulate.
        device: Where to compute, also on workers.
        memory_bytes: See above.
        executor: Whose workers run cells; None = this process, one cell after the other.
        trackers: Beside `metrics.jsonl`; see `svp.study.tracking`.
        progress: Where to report.

    Raises:
        InputError: The source has no labels, embeddings are missing, a strategy is unknown, or
            the pool is smaller than the last round needs.
    """
    progress = progress if progress is not None else Silent()
    names = tuple(dict.fromkeys(("random", *config.strategies)))
    wrapping = build_wrapping(study.config.strategy)
    strategies = {name: cell_strategy(study, config, name) for name in names}
    proxies = {
        kind: build_proxy_config(proxy_section(study.config, kind)) for kind in config.proxies
    }
    stage = prepare(study, config, device, progress, memory_bytes)
    document = {
        "simulation": to_table(config),
        "strategies": {name: dict(cell_params(study, config, name)) for name in names},
        "proxies": {kind: dataclasses.asdict(proxy) for kind, proxy in proxies.items()},
        **stage.identity,
    }
    if wrapping.table():
        document["wrapping"] = wrapping.table()
    folder = study.simulation_dir / sha256_hex(canonical_json(document))[:12]
    wanted = [(n, k, s) for s in config.seeds for k in config.proxies for n in names]
    found = {key: read_cell(cell_path(folder, *key)) for key in wanted}
    missing = [key for key, cell in found.items() if cell is None]
    if trackers and len(missing) < len(wanted):
        progress.say(
            f"{len(wanted) - len(missing)} runs were finished before: their numbers are in "
            f"{folder / 'results.csv'} and do not go to a tracker again."
        )
    with (
        open_tracking(folder, trackers if missing else ()) as tracking,
        progress.task("Simulating", len(wanted), "runs") as task,
    ):
        task.advance(len(wanted) - len(missing))
        for key, done in _run_missing(
            stage, study, config, missing, strategies, proxies, executor, task, memory_bytes
        ):
            write_json(
                cell_path(folder, *key), {"schema": "svp.cell/1", **dataclasses.asdict(done)}
            )
            found[key] = done
            _track(tracking, done)
    ordered = [
        cell
        for kind in config.proxies
        for name in names
        for seed in config.seeds
        if (cell := found[name, kind, seed]) is not None
    ]
    points = curve_points(ordered)
    totals = curve_totals(ordered, points)
    _write_results(folder, ordered)
    write_json(
        folder / "summary.json",
        _finite(
            {
                "schema": "svp.simulation/1",
                "created": now(),
                **document,
                "evaluation": dict(stage.evaluation),
                "points": [dataclasses.asdict(point) for point in points],
                "totals": [dataclasses.asdict(total) for total in totals],
                "penalties": penalties(ordered),
                "device": device,
                "versions": versions(),
                "hardware": hardware(),
            }
        ),
    )
    return SimulationResult(
        folder=folder,
        points=tuple(points),
        totals=tuple(totals),
        evaluation=stage.evaluation,
        cells=len(wanted),
        reused=len(wanted) - len(missing),
    )


def _run_missing(
    stage: Stage,
    study: Study,
    config: SimulationConfig,
    missing: Sequence[CellKey],
    strategies: Mapping[str, "Strategy"],
    proxies: Mapping[str, "ProxyConfig"],
    executor: Executor | None,
    task: Task,
    memory_bytes: int | None,
) -> Iterator[tuple[CellKey, Cell]]:
    """Yield cells as they end."""
    if executor is None:
        for name, kind, seed in missing:
            cell = run_cell(stage, config, name, strategies[name], kind, proxies[kind], seed)
            task.advance(1, note=f"{name}, {kind}, seed {seed}")
            yield (name, kind, seed), cell
        return
    # Workers elsewhere know no working directory of ours.
    study = dataclasses.replace(study, path=study.path.resolve())
    job = CellJob(study=study, config=config, device=stage.device, memory_bytes=memory_bytes)
    for number, cell in executor.run(job, missing, task) if missing else ():
        yield missing[number], cell


def _track(tracking: Tracking, cell: Cell) -> None:
    run = f"{cell.strategy}-{cell.proxy}-{cell.seed}"
    for numbers in cell.rounds:
        metrics = {name: float(value) for name, value in numbers.items() if name != "num_labeled"}
        tracking.log(run, int(numbers["num_labeled"]), metrics)


def simulation_labels(
    study: Study,
    strategy: str,
    proxy: str,
    seed: int,
    *,
    num_labeled: int | None = None,
    folder: Path | None = None,
) -> dict[str, str]:
    """Return the labels that a simulated run had bought, by id, so that it can be fine-tuned.

    Args:
        study: The study.
        strategy: Strategy of the run.
        proxy: Kind of its proxy.
        seed: Its seed.
        num_labeled: After how many labels; None = all.
        folder: Which simulation; None = the newest that has the run.

    Raises:
        InputError: There is no such run.
    """
    folders = [folder] if folder is not None else sorted(study.simulation_dir.glob("*"))
    found = [
        path for parent in folders if (path := cell_path(parent, strategy, proxy, seed)).is_file()
    ]
    if not found:
        raise InputError(
            f"A simulated run must exist. Got none of {strategy} with {proxy}, seed {seed}. "
            f"Run: svp simulate {study.path} --strategy {strategy} --proxy {proxy}"
        )
    cell = read_cell(max(found, key=lambda path: path.stat().st_mtime_ns))
    assert cell is not None
    chosen = [identifier for batch in cell.selected for identifier in batch]
    sizes = [int(numbers["num_labeled"]) for numbers in cell.rounds]
    if num_labeled is not None and num_labeled not in sizes:
        raise InputError(
            f"The number of labels must be one of the run's: {', '.join(map(str, sizes))}. "
            f"Got {num_labeled}. Choose one of them."
        )
    pool = study.scan().pool
    truth = dict(zip(pool.ids, pool.labels or (None,) * len(pool), strict=True))
    labels: dict[str, str] = {}
    for identifier in chosen[: num_labeled if num_labeled is not None else len(chosen)]:
        label = truth.get(identifier)
        if label is None:
            raise InputError(
                f"The simulated items must still be labelled in the source. Got {identifier} "
                "without a label. Simulate again."
            )
        labels[identifier] = label
    return labels


def _write_results(folder: Path, cells: list[Cell]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, RESULT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result_rows(cells))
    write_bytes(folder / "results.csv", text.getvalue().encode())


def _finite(value: Any) -> Any:
    """Return JSON types with null where a number is not one (one seed has no deviation)."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
