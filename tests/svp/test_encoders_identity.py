"""The identity moves with everything that moves a vector, and with nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import photograph, small_folder

from feature_store import encoder_id_of
from svp.data.decode import DECODER
from svp.encoders.encoder import Encoder, _full_float32, open_encoder
from svp.encoders.identity import describe
from svp.encoders.weights import Loaded, digest_tensors
from svp.errors import InputError


def _edited(folder: Path, target: Path, **preprocessing: object) -> str:
    shutil.copytree(folder, target)
    description = json.loads((target / "encoder.json").read_text())
    description["preprocessing"].update(preprocessing)
    (target / "encoder.json").write_text(json.dumps(description))
    return open_encoder(str(target)).id


def test_what_changes_the_id(tmp_path: Path) -> None:
    base = tmp_path / "base"
    small_folder(base)
    ids = [open_encoder(str(base)).id]
    small_folder(tmp_path / "weights", seed=1)
    ids.append(open_encoder(str(tmp_path / "weights")).id)
    small_folder(tmp_path / "architecture", size=32)
    ids.append(open_encoder(str(tmp_path / "architecture")).id)
    ids.append(open_encoder(str(base), precision="bf16").id)
    ids.append(open_encoder(str(base), precision="fp16").id)
    ids.append(_edited(base, tmp_path / "mean", mean=[0.4, 0.5, 0.5]))
    ids.append(_edited(base, tmp_path / "std", std=[0.2, 0.25, 0.25]))
    ids.append(_edited(base, tmp_path / "size", size=14))
    ids.append(_edited(base, tmp_path / "resize", resize="shortest"))
    ids.append(_edited(base, tmp_path / "filter", interpolation="bilinear"))
    assert len(set(ids)) == len(ids)


def test_what_does_not_change_the_id(tmp_path: Path) -> None:
    small_folder(tmp_path / "a")
    first = open_encoder(str(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert open_encoder(str(tmp_path / "moved")).id == first.id
    # How many images go through at once is nobody's identity.
    first.encode(torch.zeros(3, 3, 16, 16, dtype=torch.uint8))
    assert first.id == encoder_id_of(first.identity)
    assert json.loads(json.dumps(first.identity)) == first.identity
    assert first.identity["decoder"] == DECODER
    assert str(tmp_path) not in json.dumps(first.identity)


def test_branch_and_lineage_are_identity(tmp_path: Path) -> None:
    module = small_folder(tmp_path / "a")
    preprocessing = open_encoder(str(tmp_path / "a")).preprocessing

    def identity(**parts: object) -> str:
        loaded = Loaded(
            module=module,
            architecture={"family": "backbone"},
            pooling="p",
            preprocessing=preprocessing,
            **parts,
        )
        return encoder_id_of(describe(loaded, "fp32", DECODER))

    ids = [identity(), identity(branch="online"), identity(branch="target")]
    ids.append(identity(lineage={"parent": "x"}))
    assert len(set(ids)) == 4
    assert identity(provenance={"spec": "elsewhere"}) == ids[0]


def test_digest_of_tensors() -> None:
    state = {"b": torch.arange(4.0), "a": torch.ones(2, 2), "s": torch.tensor(3.0)}
    digest = digest_tensors(state)
    assert digest == digest_tensors(dict(reversed(state.items())))
    assert digest == digest_tensors({**state, "bn.num_batches_tracked": torch.tensor(7)})
    for other in (
        {**state, "b": torch.arange(4.0).double()},
        {**state, "b": torch.arange(4.0).view(2, 2)},
        {**state, "b": torch.arange(4.0) + 1e-7},
        {"c" if k == "b" else k: v for k, v in state.items()},
    ):
        assert digest_tensors(other) != digest
    channels_last = {"w": torch.rand(4, 3, 2, 2)}
    moved = {"w": channels_last["w"].to(memory_format=torch.channels_last)}
    assert digest_tensors(channels_last) == digest_tensors(moved)


@pytest.mark.parametrize(
    ("precision", "storage"), [("fp32", np.float32), ("bf16", np.float16), ("fp16", np.float16)]
)
def test_precision_and_storage(tmp_path: Path, precision: str, storage: type) -> None:
    small_folder(tmp_path / "a")
    encoder = open_encoder(str(tmp_path / "a"), precision=precision)
    full = open_encoder(str(tmp_path / "a"))
    x = torch.stack([full.preprocessing(photograph(30, 20, seed)) for seed in range(4)])
    z, reference = encoder.encode(x), full.encode(x)
    assert encoder.storage_dtype == storage
    assert z.numpy().dtype == storage
    assert torch.cosine_similarity(z.float(), reference).min() > 0.999
    assert next(encoder.module.parameters()).dtype == torch.float32


def test_unknown_precision(tmp_path: Path) -> None:
    small_folder(tmp_path / "a")
    with pytest.raises(InputError, match="fp32, bf16, fp16"):
        open_encoder(str(tmp_path / "a"), precision="fp8")


def test_encode_refuses_nan_and_restores_the_mode(tmp_path: Path) -> None:
    small_folder(tmp_path / "a")
    encoder: Encoder = open_encoder(str(tmp_path / "a"))
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    encoder.module.train()
    before = encoder.encode(images)
    assert encoder.module.training
    assert torch.equal(before, encoder.encode(images))
    assert not before.requires_grad
    with torch.no_grad():
        next(encoder.module.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="finite"):
        encoder.encode(images)


def test_float32_switches_are_restored() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with _full_float32(torch.device("cuda")):
        assert not matmul.allow_tf32
        assert not cudnn.allow_tf32
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before
