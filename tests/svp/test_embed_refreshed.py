"""After a refresh, `svp embed --dask` embeds by both encoders on the workers."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import cluster_material
import distributed
import pytest

from svp.cli import run
from svp.cluster.dask import DaskExecutor
from svp.encoders.encoder import open_encoder
from svp.progress import Silent
from svp.study.config import EncoderSection, RefreshSection
from svp.study.embedding import embed_study
from svp.study.labels import import_labels
from svp.study.refresh import make_refresh
from svp.study.refreshes import encoder_in_force, read_refreshes
from svp.study.study import Study
from tests.svp.study_fixtures import (
    config_of,
    truth_of,
    write_encoder,
    write_images,
    write_labels,
)

SIZES = {"chunk_rows": 4, "segment_rows": 8}


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study whose encoder decodes at reduced scale, refreshed; then images were added."""
    root = tmp_path_factory.mktemp("refreshed")
    write_images(root / "images", train=4, test=2)
    write_encoder(root / "encoder")
    config = config_of(
        root,
        encoder=EncoderSection(spec=f"{root / 'encoder'}+pillow-reduced", batch_size=64, workers=1),
        refresh=RefreshSection(finetune={"steps": 1}),
    )
    study = Study.create(root / "study", config)
    embed_study(study, **SIZES)
    truth = truth_of(study)
    import_labels(study, write_labels(root / "labels.csv", truth))
    make_refresh(
        study, study.scan().pool, truth,
        verdict=None, forced=True, device="cpu", progress=Silent(),
    )  # fmt: skip
    write_images(root / "images" / "more", train=10, test=2, seed=1)
    return study


def copied(study: Study, name: str) -> Study:
    """Return a copy of a study, beside it, with a store of its own."""
    root = study.path.parent
    shutil.copytree(study.path, root / name)
    shutil.copytree(study.store_url, root / f"{name}-store")
    return Study.open(root / name, {"store.url": str(root / f"{name}-store")})


def rows_of(study: Study) -> dict[str, list[str]]:
    store = study.open_store()
    return {
        manifest.id: [chunk.digest for chunk in manifest.embeddings]
        for encoder_id in (study.encoder_id(), encoder_in_force(study))
        for manifest in store.table(encoder_id).segments()
    }


def test_a_refreshed_encoder_decodes_as_its_parent(refreshed: Study) -> None:
    (made,) = read_refreshes(refreshed)
    opened = open_encoder(made.encoder_spec)
    parent = refreshed.open_store().encoder(refreshed.encoder_id())
    assert opened.id == made.encoder_id
    assert opened.identity["decoder"] == parent["decoder"]
    assert opened.identity["decoder"]["jpeg_scale"] == "reduced"


def test_workers_embed_by_both_encoders(refreshed: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, apart = copied(refreshed, "one"), copied(refreshed, "many")
    embed_study(alone, **SIZES)
    # The client may name the study relative to where it is; workers are elsewhere.
    monkeypatch.chdir(refreshed.path.parent)
    apart = Study.open("many", {"store.url": apart.store_url})
    killed: list[int] = []
    with cluster_material.cluster() as cluster, distributed.Client(cluster) as client:
        table = Path(apart.store_url) / "encoders" / encoder_in_force(apart)
        before = set(table.rglob("c.*"))

        def kill() -> None:
            while set(table.rglob("c.*")) <= before:
                time.sleep(0.005)
            killed.append(next(iter(cluster.workers.values())).process.pid)
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        done = embed_study(apart, executor=DaskExecutor(client), **SIZES)
        killer.join()
    assert killed
    assert done.refreshed is not None
    assert done.refreshed.encoder_id == encoder_in_force(apart)
    for result in (done.results[0], done.refreshed):
        assert result.embedded == 36
        assert result.workers
        assert not any(test.worker.endswith(f":{os.getpid()}") for test in result.workers)
        assert {test.golden.status for test in result.workers} == {"same"}
    assert rows_of(apart) == rows_of(alone)


@pytest.mark.slow
def test_a_refresh_embeds_on_workers_what_one_process_would(refreshed: Study) -> None:
    alone, apart = copied(refreshed, "lonely"), copied(refreshed, "shared")
    for study in (alone, apart):
        # As if never refreshed, with nothing stored under the encoder that will be made.
        shutil.rmtree(Path(study.store_url) / "encoders" / encoder_in_force(study))
        shutil.rmtree(study.refreshes_dir)
        embed_study(study, **SIZES)

    def refresh(study: Study, *options: str) -> None:
        place = f"store.url={study.store_url}"
        assert run(["refresh", str(study.path), "--force", "--set", place, *options]) == 0

    refresh(alone)
    with cluster_material.cluster() as cluster:
        refresh(apart, "--dask", cluster.scheduler_address, "--batch-size", "64")
    (here,), (there,) = read_refreshes(alone), read_refreshes(apart)
    assert there.encoder_id == here.encoder_id
    assert here.record["workers"] == []
    assert {test["golden"]["status"] for test in there.record["workers"]} == {"same"}
    assert not any(test["worker"].endswith(f":{os.getpid()}") for test in there.record["workers"])
    assert rows_of(apart) == rows_of(alone)
    digests = apart.scan().pool.digests
    x_alone, x_apart = (
        study.open_store().table(there.encoder_id).read(digests) for study in (alone, apart)
    )
    assert len(digests) == 54
    assert x_apart.tobytes() == x_alone.tobytes()
