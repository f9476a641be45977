"""Loading: each family gives its own library's vectors; what does not fit is refused."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import timm
import timm.data
import torch
from encoder_fixtures import (
    CLIP_CONFIG,
    eman_checkpoint,
    open_clip_folder,
    photograph,
    shake,
    small_folder,
)
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn

from svp.encoders import openclip
from svp.encoders.backbones import build_backbone
from svp.encoders.encoder import Encoder, open_encoder
from svp.encoders.folder import save_encoder
from svp.encoders.spec import parse_spec
from svp.errors import IdentityError, InputError, TemporaryError
from svp.progress import Silent


def _embed(encoder: Encoder, *images: Any) -> torch.Tensor:
    return encoder.encode(torch.stack([encoder.preprocessing(image) for image in images]))


IMAGES = [photograph(70, 50, 1), photograph(41, 90, 2), photograph(32, 32, 3)]


@pytest.mark.parametrize("coca", [False, True])
def test_open_clip_equals_the_library(tmp_path: Path, coca: bool) -> None:
    model = open_clip_folder(tmp_path / "hub", coca=coca)
    transform = image_transform_v2(
        PreprocessCfg(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear"),
        is_train=False,
    )
    with torch.no_grad():
        x = torch.stack([transform(image) for image in IMAGES])
        reference = model.encode_image(x, normalize=False)
    encoder = open_encoder(f"open_clip:@{tmp_path / 'hub'}")
    assert encoder.dim == 12
    torch.testing.assert_close(_embed(encoder, *IMAGES), reference, rtol=1e-4, atol=1e-5)
    assert ("attentional" in encoder.identity["pooling"]) == coca
    norms = _embed(encoder, *IMAGES).norm(dim=1)
    assert (norms - 1).abs().min() > 1e-3


def test_open_clip_by_name_from_a_file(tmp_path: Path) -> None:
    name = "PE-Core-T-16-384"
    config = open_clip.get_model_config(name)
    tower = openclip.build(
        {"embed_dim": 512, "vision": config["vision_cfg"], "quick_gelu": False}
    ).eval()
    torch.save(tower.state_dict(), tmp_path / "whole.pt")
    torch.save(tower.visual.state_dict(), tmp_path / "tower.pt")
    x = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = tower(x)
    for file in ("whole", "tower"):
        encoder = open_encoder(f"open_clip:{name}@{tmp_path / file}.pt")
        torch.testing.assert_close(encoder.features_of(x), reference, rtol=1e-4, atol=1e-5)
        # What all published weights of this model share.
        assert encoder.preprocessing.resize == "squash"
        assert encoder.preprocessing.mean == (0.5, 0.5, 0.5)


def test_open_clip_tag_brings_activation_and_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def small(architecture: dict[str, Any]) -> nn.Module:
        built.append(architecture["quick_gelu"])
        return openclip.ImageTower(open_clip.CLIP(**CLIP_CONFIG).visual)

    weights = tmp_path / "w.pt"
    torch.save(small({"quick_gelu": None}).state_dict(), weights)
    monkeypatch.setattr(openclip, "build", small)
    built.clear()
    # The published OpenAI weights need QuickGELU, whichever of the two names is used.
    for model in ("ViT-B-32/openai", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-32"):
        spec = parse_spec(f"open_clip:{model}@{weights}")
        openclip.load(spec, offline=True, progress=Silent())
    assert built == [True, False, False]
    spec = parse_spec(f"open_clip:ViT-L-14/laion2b_s32b_b82k@{weights}")
    loaded = openclip.load(spec, offline=True, progress=Silent())
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
    spec = parse_spec(f"open_clip:ViT-L-14@{weights}")
    with pytest.raises(InputError, match="laion2b_s32b_b82k@PATH"):
        openclip.load(spec, offline=True, progress=Silent())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_timm_equals_the_library(tmp_path: Path, name: str) -> None:
    model = shake(timm.create_model(name, num_classes=5))
    torch.save({"state_dict": model.state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "w")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    model.reset_classifier(0)
    with torch.no_grad():
        reference = model(torch.stack([transform(image) for image in IMAGES]))
    encoder = open_encoder(f"timm:{name}@{tmp_path / 'w'}")
    torch.testing.assert_close(_embed(encoder, *IMAGES), reference, rtol=1e-4, atol=1e-4)


def test_both_branches_of_eman(tmp_path: Path) -> None:
    path = tmp_path / "res8.pth.tar"
    modules = eman_checkpoint(path)
    assert len("module.online_net.backbone.") == len("module.target_net.backbone.")
    seen = {}
    for branch, module in modules.items():
        encoder = seen[branch] = open_encoder(f"byol:resnet8@{path}#{branch}")
        assert encoder.identity["branch"] == branch
        with torch.no_grad():
            x = encoder.normalise(encoder.preprocessing(IMAGES[2])[None])
            reference = module(x)
        torch.testing.assert_close(_embed(encoder, IMAGES[2]), reference, rtol=1e-4, atol=1e-5)
    online, target = seen["online"].identity, seen["target"].identity
    assert online["weights_sha256"] != target["weights_sha256"]
    assert seen["online"].id != seen["target"].id
    assert open_encoder(f"byol:resnet8@{path}").id == seen["target"].id


def _renamed(style: str, state: dict[str, torch.Tensor]) -> Any:
    children = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(i + 3) for i in range(1, 5)}}
    if style == "torchvision":
        return {**state, "fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}
    if style == "lightly":
        sequential = {
            ".".join(["backbone", children[head], tail]): value
            for name, value in state.items()
            for head, _, tail in [name.partition(".")]
        }
        return {"state_dict": {**sequential, "projection_head.weight": torch.zeros(2)}}
    prefix = {"moco": "module.encoder_q.", "byol_pytorch": "online_encoder.net."}[style]
    return {"state_dict": {f"{prefix}{name}": value for name, value in state.items()}}


@pytest.mark.parametrize("style", ["torchvision", "lightly", "moco", "byol_pytorch"])
def test_other_checkpoints_of_a_backbone(tmp_path: Path, style: str) -> None:
    module = shake(build_backbone("resnet18", image_size=32))
    torch.save(_renamed(style, module.state_dict()), tmp_path / "w.pt")
    encoder = open_encoder(f"byol:resnet18@{tmp_path / 'w.pt'}")
    with torch.no_grad():
        reference = module(encoder.normalise(encoder.preprocessing(IMAGES[2])[None]))
    torch.testing.assert_close(_embed(encoder, IMAGES[2]), reference, rtol=1e-4, atol=1e-5)
    assert encoder.identity["branch"] == ("plain" if style == "torchvision" else "online")
    assert encoder.preprocessing.size == 32


def test_full_size_stem(tmp_path: Path) -> None:
    module = build_backbone("resnet18", image_size=224)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    encoder = open_encoder(f"byol:resnet18@{tmp_path / 'w.pt'}")
    assert (encoder.preprocessing.size, encoder.preprocessing.resize_to) == (224, 256)
    assert encoder.identity["architecture"]["image_size"] == 224


def test_byol_refusals(tmp_path: Path) -> None:
    state = build_backbone("resnet8", image_size=32).state_dict()
    path = tmp_path / "w.pt"
    torch.save(state, path)
    with pytest.raises(InputError, match="one it holds: plain"):
        open_encoder(f"byol:resnet8@{path}#online")
    with pytest.raises(InputError, match="architecture resnet50"):
        open_encoder(f"byol:resnet50@{path}")
    with pytest.raises(InputError, match="resnet8"):
        open_encoder(f"byol:resnet9@{path}")
    # Anything left over but the classifier means that these are not the weights.
    torch.save({**state, "extra.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="1 left over"):
        open_encoder(f"byol:resnet8@{path}")
    del state["layer1.0.bn1.running_mean"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"1 missing \(layer1.0.bn1.running_mean\)"):
        open_encoder(f"byol:resnet8@{path}")


@pytest.mark.parametrize(
    "spec", ["timm:test_vit@{}", "open_clip:RN50@{}", "open_clip:PE-Core-T-16-384@{}"]
)
def test_weights_of_another_architecture(tmp_path: Path, spec: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(
        InputError, match=r"fit its architecture exactly. Got \d+ missing"
    ) as caught:
        open_encoder(spec.format(path))
    assert "\n" not in str(caught.value)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_unrun(tmp_path: Path, how: str) -> None:
    path, crater = tmp_path / "w.pt", tmp_path / "crater"
    state = {"state_dict": {"x": torch.zeros(2)}, "bomb": _Bomb(crater)}
    if how == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    for spec in ("timm:test_resnet@{}", "byol:resnet18@{}", "open_clip:RN50@{}"):
        with pytest.raises(InputError, match="tensors and plain data only"):
            open_encoder(spec.format(path))
    assert not crater.exists()


def test_damaged_checkpoints(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"PK\x03\x04nothing"), ("b.safetensors", b"no"), ("c.pt", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError):
            open_encoder(f"timm:test_resnet@{path}")
    torch.save([1, 2, 3], tmp_path / "d.pt")
    with pytest.raises(InputError, match="named tensors"):
        open_encoder(f"timm:test_resnet@{tmp_path / 'd.pt'}")


def test_unknown_names_list_near_ones() -> None:
    for spec, near in (
        ("timm:resnet5", "resnet50"),
        ("timm:resnet18.a9_in1k", "resnet18.a1_in1k"),
        ("open_clip:ViT-B32/openai", "ViT-B-32"),
        ("open_clip:ViT-B-32/opennai", "openai"),
        ("open_clip:ViT-B-32", "/openai"),
    ):
        with pytest.raises(InputError, match=near):
            open_encoder(spec)


class _Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_published_weights_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for offline in (True, None):  # the environment of the tests says offline
        with pytest.raises(InputError, match=r"hf download timm/test_resnet.r160_in1k"):
            open_encoder("timm:test_resnet.r160_in1k", offline=offline)
    with pytest.raises(InputError, match=r"hf download timm/vit_base_patch32_clip_224.openai"):
        open_encoder("open_clip:ViT-B-32/openai", offline=True)
    # In the cache, neither flag nor network matters.
    model = timm.create_model("test_resnet")
    snapshot = tmp_path / "models--timm--test_resnet.r160_in1k"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("abc")
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    safetensors.torch.save_file(
        model.state_dict(), snapshot / "snapshots" / "abc" / "model.safetensors"
    )
    heard = _Heard()
    encoder = open_encoder("timm:test_resnet.r160_in1k", offline=True, progress=heard)
    assert heard.lines == []
    assert encoder.provenance["licence"] == "apache-2.0"


def test_downloads_are_announced_and_their_failure_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), weights)
    heard = _Heard()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: str(weights))
    open_encoder("timm:test_resnet", offline=False, progress=heard)
    assert len(heard.lines) == 1
    assert "timm/test_resnet.r160_in1k" in heard.lines[0]

    def fail(*_: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(TemporaryError, match=r"no route.*hf download timm/test_resnet"):
        open_encoder("timm:test_resnet", offline=False)


def test_folder_round_trip_and_exchange(tmp_path: Path) -> None:
    module = small_folder(tmp_path / "a", seed=1)
    encoder = open_encoder(str(tmp_path / "a"))
    with torch.no_grad():
        reference = module(encoder.normalise(encoder.preprocessing(IMAGES[0])[None]))
    torch.testing.assert_close(_embed(encoder, IMAGES[0]), reference, rtol=1e-4, atol=1e-5)
    assert encoder.provenance["method"] == "test"
    small_folder(tmp_path / "b", seed=2)
    (tmp_path / "b" / "weights.safetensors").replace(tmp_path / "a" / "weights.safetensors")
    with pytest.raises(IdentityError, match="must be those"):
        open_encoder(str(tmp_path / "a"))
    (tmp_path / "a" / "weights.safetensors").unlink()
    with pytest.raises(InputError):
        open_encoder(str(tmp_path / "a"))
    (tmp_path / "a" / "encoder.json").write_text("{}")
    with pytest.raises(InputError, match="schema"):
        open_encoder(str(tmp_path / "a"))


@pytest.mark.parametrize("family", ["open_clip", "timm", "byol"])
def test_any_family_saves_as_a_folder(tmp_path: Path, family: str) -> None:
    if family == "open_clip":
        open_clip_folder(tmp_path / "hub")
        spec = f"open_clip:@{tmp_path / 'hub'}"
    elif family == "timm":
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
        spec = f"timm:test_resnet@{tmp_path / 'w.pt'}"
    else:
        eman_checkpoint(tmp_path / "w.pt")
        spec = f"byol:resnet8@{tmp_path / 'w.pt'}#online"
    encoder = open_encoder(spec)
    lineage = {"parent": encoder.id, "labels_sha256": "0" * 64}
    for path, extra in ((tmp_path / "same", None), (tmp_path / "refreshed", lineage)):
        save_encoder(
            path,
            module_state=encoder.module.state_dict(),
            architecture=encoder.identity["architecture"],
            pooling=encoder.identity["pooling"],
            preprocessing=encoder.preprocessing,
            lineage=extra,
        )
    same, refreshed = (
        open_encoder(str(tmp_path / "same")),
        open_encoder(str(tmp_path / "refreshed")),
    )
    assert same.identity == {**encoder.identity, "branch": None}
    assert refreshed.identity["lineage"] == lineage
    assert len({same.id, refreshed.id}) == 2
    assert torch.equal(_embed(same, *IMAGES), _embed(encoder, *IMAGES))


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    open_clip_folder(tmp_path / "hub")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    small_folder(tmp_path / "a")
    before = torch.get_rng_state()
    for spec in (f"open_clip:@{tmp_path}/hub", f"timm:test_resnet@{tmp_path}/w.pt", tmp_path / "a"):
        open_encoder(str(spec))
    assert torch.equal(torch.get_rng_state(), before)
