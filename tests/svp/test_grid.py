import csv
import dataclasses
import os
import signal

import distributed
import pytest
from cluster_material import cluster
from study_fixtures import config_of, write_encoder, write_material

from svp.cluster.dask import DaskExecutor
from svp.cluster.executor import InProcess
from svp.cluster.processes import Processes
from svp.errors import InputError
from svp.progress import Silent
from svp.study.cells import SimulationConfig
from svp.study.curve_file import read_curves
from svp.study.grid import automatic_jobs, available_memory, simulate_grid, with_encoder
from svp.study.simulate import simulate
from svp.study.study import Study

CONFIG = SimulationConfig(strategies=("margin",), seeds=(0, 1), batch=6, rounds=1)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        write_material(root)
    return root


@pytest.fixture
def study(material, tmp_path):
    return Study.create(tmp_path / "study", config_of(material))


def _scores(folder):
    with (folder / "results.csv").open(newline="") as stream:
        return [
            {k: v for k, v in row.items() if not k.endswith("_s")} for row in csv.DictReader(stream)
        ]


def test_cells_are_the_same_whoever_runs_them(study):
    here = simulate(study, CONFIG)
    expected = _scores(here.folder)
    for executor in (InProcess(), Processes(2)):
        for path in (here.folder / "cells").iterdir():
            path.unlink()
        there = simulate(study, CONFIG, executor=executor)
        assert there.folder == here.folder
        assert (there.cells, there.reused) == (4, 0)
        assert _scores(there.folder) == expected
    again = simulate(study, CONFIG, executor=Processes(2))
    assert again.reused == 4  # no process is started for nothing


class _Failing:
    def open(self):
        return None

    def run(self, state, part, advance):
        del state, advance
        if part == 2:
            raise InputError("Part 2 must fail. Got it. Fine.")
        return part


def test_what_a_part_raises_arrives_as_it_is():
    with (
        pytest.raises(InputError, match="Part 2 must fail"),
        Silent().task("x", 3, "parts") as task,
    ):
        list(Processes(1).run(_Failing(), range(3), task))


def test_a_grid_over_budgets_is_one_table(study):
    configs = [
        SimulationConfig(strategies=("margin",), seeds=(0,), batch=batch, rounds=1)
        for batch in (5, 8)
    ]
    grid = simulate_grid(study, configs)
    assert [part.batch for part in grid.parts] == [5, 8]
    read = read_curves(grid.table)
    assert read.columns == ("encoder", "batch", "proxy")
    assert {group.key[1] for group in read.groups} == {"5", "8"}


def test_a_grid_over_encoders_needs_their_embeddings(study, tmp_path):
    from svp.study.embedding import embed_study

    write_encoder(tmp_path / "second", seed=1)
    other = with_encoder(study, str(tmp_path / "second"))
    embed_study(other)
    config = SimulationConfig(strategies=("margin",), seeds=(0,), batch=6, rounds=1)
    grid = simulate_grid(
        study, [config], encoders=[study.config.encoder.spec, str(tmp_path / "second")]
    )
    assert len({part.result.folder for part in grid.parts}) == 2
    assert len(read_curves(grid.table).groups) == 2


def test_jobs_stop_at_cores_and_at_memory():
    assert automatic_jobs(50_000, 512, cores=2, free_bytes=64 * 2**30) == 2
    assert automatic_jobs(1_281_167, 2048, cores=16, free_bytes=64 * 2**30) == 2
    assert automatic_jobs(10**9, 2048, cores=16, free_bytes=2**30) == 1
    assert available_memory() > 0


class _Killing:
    """A cluster that loses a worker as soon as the first cell is there."""

    name = "dask"

    def __init__(self, client):
        self._inner, self._client = DaskExecutor(client), client
        self.killed = 0

    def run(self, job, parts, task):
        for done in self._inner.run(job, parts, task):
            if not self.killed:
                self.killed = next(iter(self._client.run(os.getpid).values()))
                os.kill(self.killed, signal.SIGKILL)
            yield done


@pytest.mark.slow
def test_cells_are_the_same_on_a_cluster_that_loses_a_worker(study):
    config = dataclasses.replace(CONFIG, seeds=(0, 1, 2))
    here = simulate(study, config)
    expected = _scores(here.folder)
    for path in (here.folder / "cells").iterdir():
        path.unlink()
    with cluster() as workers, distributed.Client(workers) as client:
        executor = _Killing(client)
        there = simulate(study, config, executor=executor)
        assert executor.killed not in client.run(os.getpid).values()
    assert there.folder == here.folder
    assert (there.cells, there.reused) == (6, 0)
    assert _scores(there.folder) == expected
