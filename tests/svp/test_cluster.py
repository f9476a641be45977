"""Jobs on real Dask workers: results, retries, lost workers, errors and stops."""

import time

import cluster_material
import distributed
import pytest
from cluster_material import Squares, noted, numbers

from svp.cluster import InProcess, connect
from svp.cluster.dask import DaskExecutor
from svp.errors import InputError, TemporaryError
from svp.progress import Silent


class Counted:
    def __init__(self):
        self.done = 0

    def advance(self, amount=1, note=""):
        self.done += amount


@pytest.fixture(scope="module")
def executor():
    with cluster_material.cluster() as cluster, distributed.Client(cluster) as client:
        yield DaskExecutor(client)


def results(executor, job, parts, task=None):
    with Silent().task("numbers", None) as silent:
        return dict(executor.run(job, parts, task or silent))


SQUARES = {number: number**2 for number in range(8)}


def test_every_worker_opens_once_and_every_part_is_done_once(executor, tmp_path):
    log, task = tmp_path / "log", Counted()
    assert results(executor, Squares(log), range(8), task) == SQUARES
    opened = [word for word in noted(log) if word.startswith("open")]
    assert 1 <= len(opened) == len(set(opened)) <= 2
    assert sorted(word for word in noted(log) if word.startswith("run")) == [
        f"run-{number}" for number in range(8)
    ]
    assert task.done == 8
    assert results(InProcess(), Squares(tmp_path / "other"), range(8)) == SQUARES


def test_a_configuration_error_fails_once_with_its_class(executor, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(InputError, match="Change it"):
        results(executor, Squares(log, "input"), range(8))
    assert noted(log).count("run-3") == 1


def test_a_temporary_error_is_tried_again(executor, tmp_path, monkeypatch):
    monkeypatch.setattr("svp.cluster.dask._PAUSE_S", 0.05)
    log = tmp_path / "log"
    assert results(executor, Squares(log, "temporary"), range(8)) == SQUARES
    assert noted(log).count("run-3") == 2


def test_a_killed_worker_is_replaced(executor, tmp_path):
    log, task = tmp_path / "log", Counted()
    assert results(executor, Squares(log, "killed"), range(8), task) == SQUARES
    assert noted(log).count("run-3") == 2
    assert task.done == 8


def test_parts_are_read_only_as_fast_as_they_are_worked_off(executor, tmp_path):
    read: list[int] = []
    with Silent().task("numbers", None) as silent:
        run = executor.run(Squares(tmp_path / "log"), numbers(read, 1000), silent)
        next(run)
        assert len(read) < 50
        run.close()


def test_a_stop_ends_the_parts_in_work(executor, tmp_path):
    log = tmp_path / "log"
    with Silent().task("numbers", None) as silent:
        run = executor.run(Squares(log, "slow"), range(20), silent)
        next(run)
        run.close()  # what an error, Ctrl-C or SIGTERM does
    time.sleep(0.5)
    started = noted(log)
    time.sleep(1.5)
    assert noted(log) == started
    # The workers are free for the next job at once.
    assert results(executor, Squares(tmp_path / "next"), range(8)) == SQUARES


def test_addresses_that_cannot_be_used_are_explained(monkeypatch):
    monkeypatch.setattr("svp.cluster.dask._CONNECT_S", 0.2)
    with pytest.raises(InputError, match="local:2"), connect("local:x"):
        pass
    with pytest.raises(TemporaryError, match="scheduler"), connect("tcp://127.0.0.1:9"):
        pass
    with pytest.raises(InputError, match="scheduler"), connect("ftp://127.0.0.1:9"):
        pass
