import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from study_fixtures import config_of, truth_of, write_labels, write_material

from feature_store.pool import Pool
from svp.errors import InputError
from svp.study.cells import SimulationConfig
from svp.study.config import FinetuneSection
from svp.study.finetune import finetune_study, gather_data
from svp.study.labels import import_labels
from svp.study.rounds import select
from svp.study.simulate import simulate, simulation_labels
from svp.study.study import Study


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        write_material(root, train=8, test=4)
    return root


@pytest.fixture
def study(material, tmp_path):
    return Study.create(tmp_path / "study", config_of(material))


def test_from_images_to_a_model(study):
    picks = select(study, 9).picks
    truth = truth_of(study)
    labels = {pick.id: truth[pick.id] for pick in picks}
    import_labels(study, write_labels(study.path / "answers.csv", labels))
    result = finetune_study(study)
    assert result.output == study.model_dir
    assert (study.model_dir / "model.safetensors").exists()
    metrics = json.loads((study.model_dir / "metrics.json").read_text())
    assert 0 <= metrics["evaluation"]["accuracy"] <= 1
    predictions = pq.read_table(study.model_dir / "predictions.parquet")
    assert predictions.column("id").to_pylist() == sorted(truth)
    assert set(predictions.column("predicted").to_pylist()) <= set(truth.values())
    assert finetune_study(study).reused


def test_a_simulated_run_can_be_finetuned(study):
    simulate(study, SimulationConfig(strategies=("margin",), seeds=(0,), batch=6, rounds=1))
    labels = simulation_labels(study, "margin", "linear", 0)
    output = study.simulation_dir / "margin-model"
    result = finetune_study(study, labels=labels, output=output)
    assert result.output == output
    assert not study.model_dir.exists()


def test_labels_of_one_class_are_not_enough(study):
    with pytest.raises(InputError, match=r"at least two classes\. Got 0 labels"):
        finetune_study(study)
    assert not study.model_dir.exists()


def test_wrong_options_are_found_before_decoding(material, tmp_path):
    config = config_of(material, finetune=FinetuneSection(options={"lamda_u": 1.0}))
    study = Study.create(tmp_path / "study", config)
    with pytest.raises(InputError, match=r"finetune\.lamda_u .*lambda_u"):
        finetune_study(study)


def _pool(**columns):
    ids = ["a", "b", "c", "d", "e", "f"]
    digests = np.arange(6 * 32, dtype=np.uint8).reshape(6, 32)
    return Pool.create(ids, ids, digests, **columns)


IMAGES = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)


def test_who_learns_and_who_is_held_out():
    pool = _pool(
        labels=["x", "y", None, "z", "y", None],
        splits=["train", "train", None, "test", "val", "test"],
    )
    data = gather_data(pool, IMAGES, {"a": "x", "b": "x2", "f": "x"})
    assert data.class_names == ("x", "x2", "z")  # z is only evaluated
    assert data.labelled_rows.tolist() == [0, 1]
    assert data.labels_L.tolist() == [0, 1]
    assert data.unlabelled_rows.tolist() == [2]
    assert data.held_out_rows.tolist() == [3, 5]  # the test split wins over val
    assert data.held_out_labels_E.tolist() == [2, 0]  # an imported label wins over none
    assert data.known_labels_N.tolist() == [0, -1, -1, 2, -1, -1]


def test_validation_stands_in_for_a_missing_test_split():
    pool = _pool(labels=["x", "y", None, "x", None, None], splits=["train"] * 3 + ["val"] * 3)
    data = gather_data(pool, IMAGES, {"a": "x", "b": "y"})
    assert data.held_out_rows.tolist() == [3]
    assert gather_data(_pool(), IMAGES, {"a": "x", "b": "y"}).held_out_rows.tolist() == []


def test_labels_of_evaluation_items_are_not_learned():
    pool = _pool(splits=["train", "test", "test", "test", "test", "test"])
    with pytest.raises(InputError, match="1 readable labelled items of 1"):
        gather_data(pool, IMAGES, {"a": "x", "b": "y"})
