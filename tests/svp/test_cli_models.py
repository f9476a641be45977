"""`svp predict` and `svp export` from the command line, on a model made in a moment."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_finetune import TinyEncoder, digits
from typer.testing import CliRunner

from svp.cli.app import app
from svp.finetune.presets import preset
from svp.finetune.run import finetune


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    encoder = TinyEncoder()
    encoder.identity["preprocessing"] = encoder.preprocessing.as_json()
    finetune(encoder, digits(), preset("small", mode="lp"), output=folder, seed=0)
    return folder


def svp(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_predict_writes_a_row_per_image(model, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        pixels = digits().images_N3SS[number].permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(photos / f"{number}.png")
    done = svp("predict", model, "--source", photos, "-o", tmp_path / "new.parquet",
               "--top", 3, "--device", "cpu", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["schema"] == "svp.predict/1"
    assert said["result"]["items"] == 3
    table = pq.read_table(tmp_path / "new.parquet")
    assert table["id"].to_pylist() == ["0.png", "1.png", "2.png"]
    top = np.stack([table[c].to_numpy() for c in ("confidence", "confidence_2", "confidence_3")])
    assert (np.diff(top, axis=0) <= 0).all()


@pytest.mark.filterwarnings("ignore")  # torch's exporter and onnx warn of themselves
def test_export_writes_what_it_says(model, tmp_path):
    pytest.importorskip("onnxscript")
    done = svp("export", model, "--format", "onnx", "-o", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["schema"] == "svp.export/1"
    assert said["files"] == [str(tmp_path / "model.onnx")]
    assert (tmp_path / "model.onnx").stat().st_size > 0
