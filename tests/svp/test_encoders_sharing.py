"""Rows are shared exactly where nothing that moves a vector differs: from names to the store."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from encoder_fixtures import (
    eman_checkpoint,
    open_clip_folder,
    photograph,
    shake,
    small_folder,
)

from feature_store import encoder_id_of, open_store
from svp.data.opening import open_source
from svp.embed import load_features
from svp.encoders.backbones import build_backbone
from svp.encoders.encoder import open_encoder
from svp.study.embedding import embed_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path / "cache"))


def write_images(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        photograph(20, 18, seed=number).save(folder / f"{number:03d}.png")
    return folder


def checkpoint(path: Path, seed: int) -> None:
    torch.save(shake(build_backbone("resnet8", image_size=32), seed).state_dict(), path)


def run(images: Path, spec: str, store: Path, **options: Any) -> Any:
    return embed_source(images, spec, str(store), workers=options.pop("workers", 1), **options)


# What each field says, and another value that the code could come to have.
FIELDS: dict[str, Any] = {
    "schema": "svp.encoder/0",
    "architecture.model": "resnet18",
    "architecture.image_size": 20,
    "weights_sha256": "0" * 64,
    "branch": "online",
    "pooling": "class token",
    "output": "l2",
    "preprocessing.size": 15,
    "preprocessing.resize_to": 17,
    "preprocessing.resize": "shortest",
    "preprocessing.interpolation": "bilinear",
    "preprocessing.mean": [0.4, 0.5, 0.5],
    "preprocessing.std": [0.2, 0.25, 0.25],
    "preprocessing.fill": [1, 0, 0],
    "resampling.library": "torchvision",
    "resampling.version": "0.0",
    "resampling.antialias": False,
    "resampling.crop": "corner",
    "decoder.library": "libvips",
    "decoder.version": "0.0",
    "decoder.policy": 0,
    "numeric.autocast": "bfloat16",
    "numeric.tf32": True,
    "numeric.batch_norm": "train",
    "storage": "float16",
}


def test_the_identity_has_these_fields_and_no_others(tmp_path: Path) -> None:
    small_folder(tmp_path / "a")
    identity = open_encoder(str(tmp_path / "a")).identity

    def paths(values: dict[str, Any], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in values.items():
            inner = isinstance(value, dict)
            found |= paths(value, f"{prefix}{key}.") if inner else {prefix + key}
        return found

    # A field that is new here must be put into the table above, one that is gone taken out.
    assert paths(identity) == set(FIELDS) | {"architecture.family"}


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_of_the_identity_moves_the_id(tmp_path: Path, field: str) -> None:
    small_folder(tmp_path / "a")
    encoder = open_encoder(str(tmp_path / "a"))
    changed = copy.deepcopy(encoder.identity)
    *parents, last = field.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    assert place[last] != FIELDS[field]
    place[last] = FIELDS[field]
    assert encoder_id_of(changed) != encoder.id


def test_each_input_that_alters_a_vector_moves_the_id(tmp_path: Path) -> None:
    small_folder(tmp_path / "base")
    base = str(tmp_path / "base")
    ids = {"base": open_encoder(base).id}

    def edited(name: str, **changes: Any) -> None:
        folder = tmp_path / name
        shutil.copytree(base, folder)
        description = json.loads((folder / "encoder.json").read_text())
        description["preprocessing"].update(changes)
        (folder / "encoder.json").write_text(json.dumps(description))
        ids[name] = open_encoder(str(folder)).id

    edited("resize", resize="shortest")
    edited("resize_to", resize_to=20)
    edited("interpolation", interpolation="nearest")
    edited("crop", size=14)
    edited("mean", mean=[0.5, 0.5, 0.4])
    edited("std", std=[0.25, 0.25, 0.2])
    small_folder(tmp_path / "weights", seed=1)
    ids["weights"] = open_encoder(str(tmp_path / "weights")).id
    for precision in ("bf16", "fp16"):
        ids[precision] = open_encoder(base, precision=precision).id
    ids["decoder"] = open_encoder(base, decoder="pillow-reduced").id
    eman_checkpoint(tmp_path / "eman.pth")
    for branch in ("online", "target"):
        ids[branch] = open_encoder(f"byol:resnet8@{tmp_path / 'eman.pth'}#{branch}").id
    for name, coca in (("clip", False), ("coca", True)):
        open_clip_folder(tmp_path / name, coca=coca)
        ids[name] = open_encoder(f"open_clip:@{tmp_path / name}").id
    assert len(set(ids.values())) == len(ids), ids


def test_neither_file_name_nor_batch_nor_workers_make_another_encoder(tmp_path: Path) -> None:
    images, store = write_images(tmp_path / "images", range(9)), tmp_path / "store"
    checkpoint(tmp_path / "a.pth", 0)
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    safetensors.torch.save_file(state, tmp_path / "renamed.safetensors")
    first = run(images, f"byol:resnet8@{tmp_path / 'a.pth'}", store, batch_size=4).results[0]
    again = run(
        images, f"byol:resnet8@{tmp_path / 'renamed.safetensors'}", store, batch_size=3, workers=2
    ).results[0]
    assert (first.embedded, first.reused) == (9, 0)
    assert (again.encoder_id, again.embedded, again.reused) == (first.encoder_id, 0, 9)


def test_a_retrained_checkpoint_under_the_same_name_reuses_nothing(tmp_path: Path) -> None:
    images, store = write_images(tmp_path / "images", range(9)), tmp_path / "store"
    weights = tmp_path / "model.pth"
    spec = f"byol:resnet8@{weights}"
    views = ("eval", "weak:1")
    checkpoint(weights, 0)
    before = run(images, spec, store, views=views)
    stamp = weights.stat()
    checkpoint(weights, 1)
    # Nothing that a file system tells gives the change away.
    assert weights.stat().st_size == stamp.st_size
    after = run(images, spec, store, views=views)
    assert after.golden.status == "recorded"
    assert [(one.embedded, one.reused) for one in after.results] == [(9, 0), (9, 0)]
    opened, pool = open_store(store), open_source(images).scan().pool
    for view in ("eval", "weak-0"):
        old = load_features(opened, pool, before.results[0].encoder_id, view)[1]
        new = load_features(opened, pool, after.results[0].encoder_id, view)[1]
        assert np.abs(old - new).max() > 1e-3
    # The old weights are back: so are their rows.
    checkpoint(weights, 0)
    assert [one.reused for one in run(images, spec, store, views=views).results] == [9, 9]


def test_overlapping_pools_share_rows(tmp_path: Path) -> None:
    store = tmp_path / "store"
    small_folder(tmp_path / "encoder")
    one = write_images(tmp_path / "one", range(10))
    other = write_images(tmp_path / "other" / "renamed", range(6, 18)).parent
    views = ("eval", "strong:1")
    first = run(one, str(tmp_path / "encoder"), store, views=views)
    second = run(other, str(tmp_path / "encoder"), store, views=views)
    assert [(r.embedded, r.reused) for r in first.results] == [(10, 0), (10, 0)]
    assert [(r.embedded, r.reused) for r in second.results] == [(8, 4), (8, 4)]
    assert first.results[0].pool_id != second.results[0].pool_id
    encoder_id = first.results[0].encoder_id
    opened = open_store(store)
    assert opened.table(encoder_id).rows == opened.table(encoder_id, "strong-0").rows == 18
    # The shared images have the same vectors in both, bit for bit.
    pools = [open_source(folder).scan().pool for folder in (one, other)]
    x_first, x_second = (load_features(opened, pool, encoder_id)[1] for pool in pools)
    assert np.array_equal(x_first[6:], x_second[:4])
