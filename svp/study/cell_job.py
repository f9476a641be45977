"""Cells of a simulation as parts of a job, for worker processes and clusters."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from svp.cluster.executor import Advance
from svp.progress import Silent
from svp.study.cells import SimulationConfig, Stage, prepare, run_cell
from svp.study.curves import Cell
from svp.study.options import (
    build_named_strategy,
    build_proxy_config,
    build_wrapping,
    proxy_section,
)
from svp.study.study import Study

if TYPE_CHECKING:
    from svp.strategies.base import Strategy

# A cell by the names of its strategy and proxy, and its seed.
CellKey = tuple[str, str, int]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CellJob:
    """Runs cells; every worker reads the embeddings once.

    Attributes:
        study: Its folder and store must be within a worker's reach.
        config: What is simulated.
        device: Where workers compute.
        memory_bytes: See `svp.study.simulate.simulate`.
    """

    study: Study
    config: SimulationConfig
    device: str = "cpu"
    memory_bytes: int | None = None

    def open(self) -> Stage:
        """Load embeddings and known labels."""
        return prepare(self.study, self.config, self.device, Silent(), self.memory_bytes)

    def run(self, state: Stage, part: CellKey, advance: Advance) -> Cell:
        """Run one cell."""
        name, kind, seed = part
        proxy = build_proxy_config(proxy_section(self.study.config, kind))
        strategy = cell_strategy(self.study, self.config, name)
        cell = run_cell(state, self.config, name, strategy, kind, proxy, seed)
        advance(1)
        return cell


def cell_params(study: Study, config: SimulationConfig, name: str) -> Mapping[str, Any]:
    """Return the parameters of a strategy: the simulation's, or the study's own."""
    if name in config.params:
        return config.params[name]
    section = study.config.strategy
    return section.params if name == section.name else {}


def cell_strategy(study: Study, config: SimulationConfig, name: str) -> "Strategy":
    """Return a strategy as a simulation runs it; what wraps the others never wraps random."""
    wrapping = None if name == "random" else build_wrapping(study.config.strategy)
    return build_named_strategy(name, cell_params(study, config, name), wrapping)
