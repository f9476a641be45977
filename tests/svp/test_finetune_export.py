import csv
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from tiny_finetune import TinyEncoder

from svp.encoders.encoder import Encoder, open_encoder
from svp.encoders.folder import write_encoder_folder
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.weights import Loaded
from svp.errors import InputError
from svp.finetune.data import FinetuneData
from svp.finetune.export import export_model
from svp.finetune.outputs import load_model
from svp.finetune.presets import preset
from svp.finetune.run import finetune
from svp.study.models import export_trained, open_model, predict_source

CLASSES = ("bee", "fly", "moth")


def tuned(encoder, folder, *, size, head=None, steps=1, **changes):
    """Fine-tune on a few random images for a moment, so that no layer is as it was."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (6, 3, size, size), dtype=np.uint8))
    data = FinetuneData(
        images_N3SS=x,
        ids=tuple("abcdef"),
        class_names=CLASSES,
        labelled_rows=np.arange(6),
        labels_L=np.array([0, 1, 2, 0, 1, 2]),
    )
    config = preset("small", method="supervised", steps=steps, batch_size=4, **changes)
    return finetune(encoder, data, config, output=folder, seed=0, head=head).model


def pixels(size, count=5):
    return torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    )


def normalised(x, mean, std):
    mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
    return (x.float() / 255 - mean) / std


@pytest.fixture(scope="module")
def timm_model(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_vit", num_classes=0)
    loaded = Loaded(
        module=module,
        architecture={"family": "timm", "model": "test_vit"},
        pooling="num_classes=0",
        preprocessing=Preprocessing(size=160, resize_to=160, mean=(0.4, 0.5, 0.6)),
        provenance={},
    )
    folder = tmp_path_factory.mktemp("timm-model")
    return tuned(Encoder(loaded), folder, size=160), folder


def test_timm_opens_its_own_network_by_itself(timm_model, tmp_path):
    model, folder = timm_model
    files = export_trained(folder, tmp_path / "out", "timm")
    assert [f.name for f in files] == ["model.safetensors", "config.json"]
    # As its readers do: by name and state, and as a folder.
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    plain = timm.create_model(config["architecture"], num_classes=config["num_classes"])
    plain.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    opened = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    x = pixels(160)
    told = timm.data.resolve_model_data_config(opened)
    assert tuple(told["mean"]) == (0.4, 0.5, 0.6)
    assert tuple(told["input_size"]) == (3, 160, 160)
    for network in (plain, opened):
        with torch.no_grad():
            logits = network.eval()(normalised(x, told["mean"], told["std"]))
        torch.testing.assert_close(logits, model.logits(x), rtol=1e-3, atol=1e-4)
    assert config["label_names"] == list(CLASSES)


def test_torchvision_takes_the_tensors_of_its_residual_nets(tmp_path):
    from svp.encoders.backbones import build_backbone

    write_encoder_folder(
        tmp_path / "encoder",
        module_state=build_backbone("resnet18", image_size=96).state_dict(),
        arch="resnet18",
        image_size=96,
        preprocessing=Preprocessing(size=96, resize_to=96),
        provenance={},
    )
    model = tuned(open_encoder(str(tmp_path / "encoder")), tmp_path / "model", size=96)
    export_model(model, tmp_path / "out", "timm")
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    x, data = pixels(96), Preprocessing(size=96, resize_to=96)
    with torch.no_grad():
        logits = network.eval()(normalised(x, data.mean, data.std))
    torch.testing.assert_close(logits, model.logits(x), rtol=1e-3, atol=1e-4)


def test_networks_timm_does_not_know_are_refused(tmp_path):
    model = tuned(TinyEncoder(), tmp_path / "model", size=8)
    with pytest.raises(InputError, match="onnx"):
        export_model(model, tmp_path / "out", "timm")
    with pytest.raises(InputError, match="onnx"):
        export_model(model, tmp_path / "out", "open_clip")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")  # torch's exporter and onnx warn of themselves
@pytest.mark.parametrize("which", ["vit", "residual"])
def test_onnx_gives_the_same_logits_for_any_number_of_images(which, timm_model, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import onnx

    if which == "vit":
        model, _ = timm_model
        size = 160
    else:
        folder = tmp_path / "encoder"
        encoder = TinyEncoder()
        encoder.identity["preprocessing"] = encoder.preprocessing.as_json()
        model = tuned(encoder, folder, size=8, mode="ft")
        size = 8
    (path,) = export_model(model, tmp_path / "out", "onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        x = pixels(size, count)
        logits, probabilities = session.run(None, {"images": x.numpy()})
        np.testing.assert_allclose(logits, model.logits(x), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(probabilities, model.probabilities(x), rtol=1e-3, atol=1e-5)
    said = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(said["class_names"]) == list(CLASSES)
    assert Preprocessing.from_json(json.loads(said["preprocessing"])).size == size
    assert "uint8 RGB" in said["input"]


def photos(folder, count=7):
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number in range(count):
        side = 160 + 10 * number
        image = rng.integers(0, 256, (side, 200, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "9-broken.jpg").write_bytes(b"\xff\xd8\xff not an image")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_new_images_are_predicted_one_row_each(timm_model, tmp_path, ending):
    from svp.data import open_source
    from svp.encoders.images import decode_pool
    from svp.finetune.export import preprocessing_of

    model, folder = timm_model
    photos(tmp_path / "photos")
    output = tmp_path / f"new.{ending}"
    done = predict_source(folder, tmp_path / "photos", output, top=2, batch_size=3)
    if ending == "parquet":
        rows = pq.read_table(output).to_pylist()
    else:
        rows = list(csv.DictReader(output.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == [
        "id", "predicted", "confidence", "predicted_2", "confidence_2", "error",
    ]  # fmt: skip
    assert (done.items, done.failed, len(rows)) == (8, 1, 8)
    assert rows[-1]["error"]
    assert not rows[-1]["predicted"]
    source = open_source(tmp_path / "photos")
    pool = source.scan().pool
    x, kept, _ = decode_pool(source, pool.uris, preprocessing_of(model))
    probs = model.probabilities(x)
    for row, position, one in zip(rows, kept, probs, strict=False):
        order = one.argsort(descending=True).tolist()
        assert row["id"] == pool.ids[position]
        assert [row["predicted"], row["predicted_2"]] == [CLASSES[c] for c in order[:2]]
        assert float(row["confidence"]) == pytest.approx(float(one[order[0]]), rel=1e-4)
    assert sum(done.counts.values()) == 7
    assert [p.name for p in tmp_path.iterdir() if ".part" in p.name] == []


def test_a_wrong_ending_is_refused_before_any_work(timm_model, tmp_path):
    with pytest.raises(InputError, match="must end in"):
        predict_source(timm_model[1], tmp_path / "nowhere", tmp_path / "new.txt")


def test_a_study_stands_for_its_model(timm_model, tmp_path):
    (tmp_path / "study.toml").write_text("")
    (tmp_path / "model").symlink_to(timm_model[1])
    assert open_model(tmp_path).class_names == CLASSES
    with pytest.raises(InputError, match="finished fine-tune"):
        open_model(tmp_path / "elsewhere")


def test_a_model_that_does_not_say_how_to_prepare_images_is_refused(tmp_path):
    model = tuned(TinyEncoder(), tmp_path, size=8)
    with pytest.raises(InputError, match="how its images are prepared"):
        export_model(model, tmp_path / "out", "onnx")
    assert load_model(tmp_path).class_names == CLASSES


def test_export_without_its_extra_names_it():
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from svp.finetune.export import export_model\n"
        "from pathlib import Path\n"
        "try: export_model(None, Path('x'), 'onnx')\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "InputError" in done.stdout
    assert "svp[onnx]" in done.stdout
