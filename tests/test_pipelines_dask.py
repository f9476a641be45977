"""A study's stages on a real cluster: the files of one process, also when workers are killed."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import distributed
import pytest

sys.path.insert(0, str(Path(__file__).parent / "svp"))

import cluster_material
from study_fixtures import (
    config_of,
    truth_of,
    write_encoder,
    write_images,
    write_labels,
    write_material,
)

from feature_store import open_store
from pipelines.dask import embed, select
from svp.cli import run
from svp.errors import InputError
from svp.progress import Silent
from svp.study.config import StoreSection, StrategySection
from svp.study.labels import import_labels
from svp.study.replay import replay
from svp.study.rounds import select as select_alone
from svp.study.study import Study


@pytest.fixture(scope="module")
def cluster():
    with cluster_material.cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with distributed.Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("studies")
    write_material(root)
    return root


def labelled(root: Path, name: str, **changes: object) -> Study:
    study = Study.create(root / name, config_of(root, **changes))
    embed_record = root / "first" / "encoder.json"
    (study.path / "encoder.json").write_bytes(embed_record.read_bytes())
    truth = truth_of(study)
    kept = {key: label for key, label in truth.items() if key.startswith("train")}
    chosen = dict(sorted(kept.items())[::4])
    import_labels(study, write_labels(root / f"{name}.csv", chosen))
    return study


def kill_soon(cluster) -> threading.Thread:
    def kill() -> None:
        time.sleep(0.3)
        os.kill(next(iter(cluster.workers.values())).process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    return killer


def test_a_study_is_embedded_on_the_cluster(client, cluster, root):
    study = Study.create(
        root / "apart", config_of(root, store=StoreSection(url=str(root / "other")))
    )
    killer = kill_soon(cluster)
    done = embed(study.path, client, device="cpu", progress=Silent())
    killer.join()
    assert (done.results[0].embedded, done.results[0].failed) == (90, 0)
    pool = study.scan().pool
    one, other = (open_store(root / name).table(study.encoder_id()) for name in ("store", "other"))
    assert (one.read(pool.digests) == other.read(pool.digests)).all()


@pytest.mark.parametrize("name", ["margin", "random", "entropy"])
def test_the_round_of_one_process(client, cluster, root, name):
    changes = {"strategy": StrategySection(name=name, first_round="random")}
    alone = select_alone(labelled(root, f"{name}-alone", **changes), 12)
    study = labelled(root, f"{name}-apart", **changes)
    killer = kill_soon(cluster)
    apart = select(study.path, client, budget=12, progress=Silent())
    killer.join()
    assert apart.picks == alone.picks
    assert apart.receipt["selection"] == alone.receipt["selection"]
    assert apart.receipt["refresh"] == alone.receipt["refresh"]
    assert (apart.receipt["executor"], alone.receipt["executor"]) == ("dask", None)
    for file in ("selection.csv", "proxy.safetensors"):
        assert (apart.folder / file).read_bytes() == (alone.folder / file).read_bytes(), file
    if name != "random":
        assert apart.receipt["strategy"]["counters"]["scored_differently"] == 0
    assert replay(study, 0).identical


def test_a_choice_in_two_rounds_is_named_and_can_be_replayed(client, root, monkeypatch):
    monkeypatch.setattr("svp.study.hierarchy.PART_ROWS", 20)
    study = labelled(root, "coreset", strategy=StrategySection(name="coreset"))
    done = select(study.path, client, budget=5, progress=Silent())
    assert done.receipt["strategy"]["exactness"] == "approx:hierarchical"
    monkeypatch.undo()
    assert replay(study, 0).identical


def test_a_missing_embedding_fails_once_and_names_the_command(client, root, tmp_path):
    write_images(tmp_path / "images", train=2, test=1, seed=9)
    write_encoder(tmp_path / "encoder")
    study = Study.create(tmp_path / "new", config_of(tmp_path))
    with pytest.raises(InputError, match="svp embed"):
        select(study.path, client, budget=2, progress=Silent())


@pytest.mark.slow
def test_the_command_line_takes_an_address(cluster, client, root, capsys):
    alone = select_alone(labelled(root, "cli-alone"), 8)
    study = labelled(root, "cli-apart")
    address = cluster.scheduler_address
    arguments = ["select", str(study.path), "--budget", "8", "--dask", address, "--json"]
    assert run([*arguments, "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == [pick.id for pick in alone.picks]
    assert run(["embed", str(study.path), "--dask", address, "--shard", "0/2"]) == 3
    assert "--shard" in capsys.readouterr().err
