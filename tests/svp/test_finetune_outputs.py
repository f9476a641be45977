import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as reference
from tiny_finetune import NormFree, TinyEncoder, digits

from svp.data.decode import DECODER
from svp.encoders.decoders import decoder_identity
from svp.encoders.encoder import open_encoder
from svp.errors import IdentityError, InputError
from svp.finetune.evaluation import Evaluation, evaluate, pool_scores
from svp.finetune.outputs import load_model
from svp.finetune.presets import preset
from svp.finetune.refresh import save_refreshed_encoder
from svp.finetune.run import finetune


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = preset(
        "small", steps=3, batch_size=8, uratio=2, eval_batch_size=1024, supervised_share=0.0
    )
    output = tmp_path_factory.mktemp("model")
    data = digits()
    result = finetune(TinyEncoder(), data, config, output=output, seed=0, probabilities=True)
    return result, data


def test_predictions_cover_the_pool(finished):
    result, data = finished
    table = pq.read_table(result.output / "predictions.parquet")
    assert table["id"].to_pylist() == list(data.ids)
    probs = result.model.probabilities(data.images_N3SS).numpy()
    named = np.array(data.class_names)[probs.argmax(1)]
    assert table["predicted"].to_pylist() == named.tolist()
    np.testing.assert_allclose(table["confidence"].to_numpy(), probs.max(1), rtol=1e-6)
    columns = [table[f"p:{name}"].to_numpy() for name in data.class_names]
    np.testing.assert_allclose(np.stack(columns, axis=1), probs, rtol=1e-6)


def test_metrics_say_how_good_and_how_dear(finished):
    result, data = finished
    stored = json.loads((result.output / "metrics.json").read_text())
    assert stored == result.metrics
    assert Evaluation.from_dict(stored["evaluation"]) == result.evaluation
    assert result.evaluation.examples == len(data.held_out_rows)
    assert set(stored["seconds"]) == {"probe", "train", "predict"}
    assert 0 <= stored["history"][-1]["mask_ratio"] <= 1
    assert 0 <= stored["history"][0]["pseudo_label_accuracy"] <= 1
    assert stored["pool"]["accuracy_hybrid"] >= stored["pool"]["accuracy_model"]
    assert stored["pool"]["examples"] == len(data.labelled_rows) + len(data.unlabelled_rows)


def test_a_model_opens_without_its_encoder(finished):
    result, data = finished
    model = load_model(result.output)
    x = data.images_N3SS[:40]
    assert torch.equal(model.logits(x), result.model.logits(x))
    assert model.class_names == data.class_names
    assert model.logits(x[:0]).shape == (0, 10)
    assert model.features(x[:0]).shape == (0, 128)
    with pytest.raises(InputError, match="uint8"):
        model.logits(x.float())


def test_the_tuned_backbone_is_an_encoder_of_its_own(finished, tmp_path):
    result, data = finished
    encoder = TinyEncoder()
    save_refreshed_encoder(tmp_path / "refreshed", result.model, encoder)
    opened = open_encoder(str(tmp_path / "refreshed"))
    assert opened.identity["lineage"]["parent"] == encoder.id
    assert opened.identity["decoder"] == DECODER
    x = data.images_N3SS[:16]
    ours = result.model.features(x) / 1
    # The test encoder normalises its own way; the comparison is of the network alone.
    theirs = opened.module(encoder.normalise(x).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(theirs.detach(), ours, rtol=1e-4, atol=1e-4)


def test_a_tuned_backbone_goes_on_with_its_parents_decoder(finished, tmp_path):
    encoder, folder = TinyEncoder(), tmp_path / "refreshed"
    save_refreshed_encoder(folder, finished[0].model, encoder)
    plain = open_encoder(str(folder))
    encoder.decoder = "pillow-reduced"
    save_refreshed_encoder(folder, finished[0].model, encoder)
    reduced = open_encoder(str(folder))
    assert (plain.decoder, reduced.decoder) == ("pillow", "pillow-reduced")
    assert reduced.identity["decoder"] == decoder_identity("pillow-reduced")
    assert reduced.id != plain.id
    # Whoever names a decoder gets that one.
    assert open_encoder(f"{folder}+pillow").id == plain.id
    # A directory from before decoders were recorded keeps its id, and so its stored rows.
    described = json.loads((folder / "encoder.json").read_text())
    del described["decoder"]
    (folder / "encoder.json").write_text(json.dumps(described))
    assert open_encoder(str(folder)).id == plain.id
    described["decoder"] = "opencv"
    (folder / "encoder.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="decoder must be one of"):
        open_encoder(str(folder))


def test_exchanged_weights_and_unfinished_runs_are_refused(tmp_path):
    config = preset("small", mode="lp")
    finetune(TinyEncoder(), digits(held_out=0), config, output=tmp_path, seed=0)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(IdentityError, match="other bytes"):
        load_model(tmp_path)
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(InputError, match="finished fine-tune"):
        load_model(tmp_path)


def test_networks_svp_cannot_build_are_opened_with_their_encoder(tmp_path):
    encoder, data = TinyEncoder(NormFree(), 24), digits(held_out=0)
    config = preset("small", mode="lp")
    result = finetune(encoder, data, config, output=tmp_path, seed=0)
    with pytest.raises(InputError, match="plug-in"):
        load_model(tmp_path)
    model = load_model(tmp_path, encoder=encoder)
    x = data.images_N3SS[:8]
    assert torch.equal(model.logits(x), result.model.logits(x))
    assert finetune(encoder, data, config, output=tmp_path, seed=0).reused


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    true[true == 3] = 4
    ours = evaluate(true, predicted, 6)
    assert ours.accuracy == pytest.approx(reference.accuracy_score(true, predicted))
    recall = reference.recall_score(true, predicted, labels=[0, 1, 2, 4], average=None)
    assert [r for r in ours.recall if r is not None] == pytest.approx(recall.tolist())
    assert ours.recall[3] is None
    assert ours.balanced_accuracy == pytest.approx(recall.mean())
    assert ours.balanced_accuracy_all == pytest.approx(recall.sum() / 6)
    f1 = reference.f1_score(true, predicted, average="macro", zero_division=0)
    assert ours.macro_f1 == pytest.approx(f1)
    confusion = reference.confusion_matrix(true, predicted, labels=range(6))
    assert np.array_equal(ours.confusion, confusion)


def test_pool_scores_with_and_without_the_human_labels():
    truth, predicted = np.array([0, 1, 2, -1]), np.array([1, 1, 0, 0])
    scores = pool_scores(truth, predicted, np.array([0]), np.array([0]))
    assert scores == {
        "examples": 3,
        "accuracy_model": pytest.approx(1 / 3),
        "accuracy_hybrid": pytest.approx(2 / 3),
    }
    assert pool_scores(np.array([-1]), np.array([0]), np.empty(0, int), np.empty(0, int)) is None
