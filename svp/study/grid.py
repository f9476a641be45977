"""Several simulations of one study side by side: encoders x budgets, and one table of them all."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from feature_store.atomic import write_bytes
from svp.cluster.executor import Executor
from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.study.cells import SimulationConfig
from svp.study.curves import RESULT_COLUMNS
from svp.study.simulate import SimulationResult, simulate
from svp.study.study import Study, absolute_spec

GRID_COLUMNS: Final = ("encoder", "batch", *RESULT_COLUMNS)
_BYTES: Final = 4  # bytes of a float32
# What a worker process needs beside its embeddings, and how often it holds them at its peak.
_PROCESS_BYTES: Final = 700 * 2**20
_COPIES: Final = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GridPart:
    """One simulation of a grid.

    Attributes:
        encoder: Spec of the encoder.
        batch: Labels per round; None where they follow a schedule.
        result: The simulation.
    """

    encoder: str
    batch: int | None
    result: SimulationResult


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Finished simulations.

    Attributes:
        parts: In the order of encoders, then budgets.
        table: A file of all their results, with the columns `encoder` and `batch` in front.
    """

    parts: tuple[GridPart, ...]
    table: Path


def simulate_grid(
    study: Study,
    configs: Sequence[SimulationConfig],
    *,
    encoders: Sequence[str] = (),
    device: str = "cpu",
    memory_bytes: int | None = None,
    executor: Executor | None = None,
    trackers: Sequence[str] = (),
    progress: Progress | None = None,
) -> Grid:
    """Run simulations of several budgets on embeddings of several encoders.

    Args:
        study: The study; its store must hold embeddings of every encoder.
        configs: One per budget.
        encoders: Specs; empty = the study's own.
        device: See `svp.study.simulate.simulate`, as for the others.
        memory_bytes: Most that embeddings and a strategy may hold.
        executor: Whose workers run cells.
        trackers: Where numbers go beside `metrics.jsonl`.
        progress: Where to report.
    """
    progress = progress if progress is not None else Silent()
    parts: list[GridPart] = []
    for spec in encoders or (study.config.encoder.spec,):
        own = with_encoder(study, spec)
        for config in configs:
            if len(configs) > 1 or len(encoders) > 1:
                progress.say(f"Encoder {own.config.encoder.spec}, budget {config.batch}")
            result = simulate(
                own,
                config,
                device=device,
                memory_bytes=memory_bytes,
                executor=executor,
                trackers=trackers,
                progress=progress,
            )
            parts.append(
                GridPart(encoder=own.config.encoder.spec, batch=config.batch, result=result)
            )
    table = study.simulation_dir / "grid.csv"
    if len(parts) > 1:
        _write_table(table, parts)
    else:
        table = parts[0].result.folder / "results.csv"
    return Grid(parts=tuple(parts), table=table)


def with_encoder(study: Study, spec: str) -> Study:
    """Return the study as it would be with another encoder."""
    if spec == study.config.encoder.spec:
        return study
    section = dataclasses.replace(study.config.encoder, spec=absolute_spec(spec))
    return dataclasses.replace(study, config=dataclasses.replace(study.config, encoder=section))


def automatic_jobs(rows: int, dim: int, *, cores: int, free_bytes: int) -> int:
    """Return how many cells to run at once: one per core, as far as memory carries.

    Args:
        rows: Items with an embedding.
        dim: Its length.
        cores: Of this machine.
        free_bytes: Memory that is free.
    """
    if rows < 0 or dim < 0:
        raise InputError(f"Embeddings must have a size. Got {rows} x {dim}. Embed first.")
    each = _PROCESS_BYTES + _COPIES * rows * dim * _BYTES
    return max(1, min(cores, free_bytes // each))


def available_memory() -> int:
    """Return the bytes that new processes may use here without swapping; a guess where unknown."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 2**30


def _write_table(path: Path, parts: Sequence[GridPart]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, GRID_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for part in parts:
        with (part.result.folder / "results.csv").open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                writer.writerow({"encoder": part.encoder, "batch": part.batch or "", **row})
    write_bytes(path, text.getvalue().encode())
