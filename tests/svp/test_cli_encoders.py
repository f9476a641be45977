"""Views and the self-test through `svp embed`, and `svp encoders show`."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from study_fixtures import write_encoder, write_images

from feature_store import canonical_json, open_store, sha256_hex
from svp.cli import run
from svp.encoders.folder import save_encoder
from svp.encoders.preprocessing import imagenet_preprocessing

FREE = ("--source", "images", "--encoder", "./encoder", "--store", "store", "--workers", "1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "images", train=3, test=1)
    write_encoder(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SVP_STORE", raising=False)
    return tmp_path


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def call(*arguments: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        found = run([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert found == code, err
        return {"stderr": err, **(json.loads(out) if out else {})}

    return call


def test_views_without_a_study(here: Path, done: Callable[..., dict[str, Any]]) -> None:
    found = done("embed", *FREE, "--views", "eval,weak:2,strong:1")
    assert [(one["view"], one["embedded"]) for one in found["views"]] == [
        ("eval", 12), ("weak-0", 12), ("weak-1", 12), ("strong-0", 12),
    ]  # fmt: skip
    assert found["result"] == found["views"][0]
    assert found["golden"]["status"] == "recorded"
    again = done("embed", *FREE, "--views", "strong-0")
    assert [(one["view"], one["reused"]) for one in again["views"]] == [("strong-0", 12)]
    assert again["golden"]["status"] == "same"
    for other in (("--view-seed", "1"), ("--no-view-flip",)):
        refused = done("embed", *FREE, "--views", "weak:3", *other, code=4)
        assert "weak-0" in refused["stderr"]
    assert open_store("store").views(found["result"]["encoder_id"]) == [
        "eval", "strong-0", "weak-0", "weak-1",
    ]  # fmt: skip
    assert "eval,weak:2" in done("embed", *FREE, "--views", "weak", code=3)["stderr"]


def test_a_study_has_its_views_and_always_eval(
    here: Path, done: Callable[..., dict[str, Any]]
) -> None:
    done("init", "s", "--source", "images", "--encoder", "./encoder", "--store", "store")
    toml = here / "s" / "study.toml"
    assert 'views = ["eval"]' in toml.read_text()
    toml.write_text(toml.read_text().replace('views = ["eval"]', 'views = ["weak:1"]'))
    assert [one["view"] for one in done("embed", "s")["views"]] == ["eval", "weak-0"]
    # The flag wins over the file.
    found = done("embed", "s", "--views", "strong:1", "--view-seed", "3")["views"]
    assert [one["view"] for one in found] == ["eval", "strong-0"]
    record = json.loads((here / "s" / "encoder.json").read_text())
    assert (record["views"], record["golden"]["status"]) == (["eval", "strong-0"], "same")
    view = open_store("store").view_record(record["encoder_id"], "strong-0")
    assert view is not None
    assert view["seed"] == 3
    assert "'nothing'" in done("embed", "s", "--set", "encoder.views=['nothing']", code=3)["stderr"]


def test_drift_is_refused_until_it_is_accepted(
    here: Path, done: Callable[..., dict[str, Any]]
) -> None:
    encoder_id = done("embed", *FREE)["result"]["encoder_id"]
    # As if the vectors had been stored by a machine that computes something else.
    path = here / "store" / "encoders" / encoder_id / "golden.json"
    record = json.loads(path.read_bytes())["record"]
    zeros = bytes(4 * record["shape"][0] * record["shape"][1])
    record["vectors"] = base64.b64encode(zeros).decode()
    path.unlink()
    sealed = {"record": record, "sha256": sha256_hex(canonical_json(record))}
    path.write_bytes(canonical_json(sealed) + b"\n")
    write_images(here / "images", train=4, test=1, seed=9)
    refused = done("embed", *FREE, code=4)
    assert "--accept-drift" in refused["stderr"]
    assert open_store("store").table(encoder_id).rows == 12
    accepted = done("embed", *FREE, "--accept-drift")
    assert accepted["golden"]["status"] == "accepted"
    assert accepted["result"]["embedded"] > 0
    assert "Warning" in accepted["stderr"]


def test_show_by_spec_and_by_id(
    here: Path, done: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = done("encoders", "show", "./encoder")["encoder"]
    assert (alone["store"], alone["stored"], alone["licence"]) == (None, False, "unknown")
    embedded = done("embed", *FREE, "--views", "eval,weak:1")["result"]
    assert embedded["encoder_id"] == alone["id"]
    by_spec = done("encoders", "show", "./encoder", "--store", "store")["encoder"]
    by_id = done("encoders", "show", alone["id"], "--store", "store")["encoder"]
    assert by_spec["golden"].pop("check")["status"] == "same"
    assert by_id["golden"].pop("check") is None
    assert by_spec == by_id
    assert [(one["view"], one["rows"]) for one in by_id["tables"]] == [("eval", 12), ("weak-0", 12)]
    assert by_id["tables"][1]["made"]["policy"] == "flexmatch"
    assert by_id["identity"] == open_store("store").encoder(alone["id"])
    capsys.readouterr()
    assert run(["encoders", "show", "./encoder", "--store", "store"]) == 0
    text = capsys.readouterr().out
    for said in (alone["id"], "Licence: unknown", "preprocessing.mean", "resampling.antialias",
                 "here: same", "flexmatch seed 0"):  # fmt: skip
        assert said in text
    other = done("encoders", "show", "./encoder", "--store", "store", "--precision", "bf16")
    assert (other["encoder"]["stored"], other["encoder"]["tables"]) == (False, [])
    assert other["encoder"]["id"] != alone["id"]
    assert "--store" in done("encoders", "show", alone["id"], code=3)["stderr"]
    done("encoders", "show", "0" * 16, "--store", "store", code=3)
    done("encoders", "show", "./encoder", "--store", "nowhere", code=3)
    assert not (here / "nowhere").exists()


def test_show_names_the_parent_of_a_refreshed_encoder(
    here: Path, done: Callable[..., dict[str, Any]]
) -> None:
    parent = done("embed", *FREE)["result"]["encoder_id"]
    shutil.copytree("encoder", "refreshed")
    state = safetensors.torch.load_file("encoder/weights.safetensors")
    save_encoder(
        Path("refreshed"),
        module_state=state,
        architecture={"family": "backbone", "model": "resnet8", "image_size": 16},
        pooling="global average",
        preprocessing=imagenet_preprocessing(16),
        lineage={"parent": parent, "labels_sha256": "0" * 64, "config_sha256": "0" * 64, "seed": 0},
    )
    card = done("encoders", "show", "./refreshed", "--store", "store")["encoder"]
    assert card["parent"] == {"id": parent, "licence": "unknown"}
    assert card["id"] != parent


def test_a_file_of_ones_own_has_no_licence_of_timm(
    here: Path, done: Callable[..., dict[str, Any]]
) -> None:
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet").state_dict()
    safetensors.torch.save_file(weights, here / "own.safetensors")
    card = done("encoders", "show", "timm:test_resnet.r160_in1k@own.safetensors")["encoder"]
    assert card["licence"] == "unknown"
    assert card["identity"]["architecture"] == {"family": "timm", "model": "test_resnet"}


def test_verify_names_a_damaged_record(here: Path, done: Callable[..., dict[str, Any]]) -> None:
    encoder_id = done("embed", *FREE, "--views", "eval,weak:1")["result"]["encoder_id"]
    assert done("store", "verify", "store")["problems"] == []
    folder = here / "store" / "encoders" / encoder_id
    for path in (folder / "golden.json", folder / "weak-0" / "view.json"):
        data = bytearray(path.read_bytes())
        data[60] ^= 1
        path.unlink()
        path.write_bytes(bytes(data))
    problems = done("store", "verify", "store", code=4)["problems"]
    assert [Path(one["object"]).name for one in problems] == ["golden.json", "view.json"]
