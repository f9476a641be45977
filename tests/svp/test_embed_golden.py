"""The self-test: vectors that moved are noticed, and by their size passed, reported or refused."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_fixtures import small_folder

from feature_store import CorruptChunkError, FeatureStore, encoder_id_of, open_store
from feature_store.digest import canonical_json, sha256_hex
from feature_store.transfer import copy_store
from svp.embed.golden import (
    TOLERANCES,
    DriftError,
    check_golden,
    compare,
    golden_images,
    golden_record,
)
from svp.encoders.encoder import Encoder, open_encoder


class Heard:
    """Collects what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def task(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the self-test has no task")


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    small_folder(tmp_path / "encoder")
    return open_encoder(str(tmp_path / "encoder"))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return open_store(tmp_path / "store", create=True)


def rewrite(
    store: FeatureStore, encoder: Encoder, change: Callable[[dict[str, Any]], None]
) -> None:
    """Replace the stored record as if another machine had made it."""
    record = store.golden(encoder.id)
    assert record is not None
    change(record)
    path = Path(store.url) / "encoders" / encoder.id / "golden.json"
    path.unlink()
    sealed = {"record": record, "sha256": sha256_hex(canonical_json(record))}
    path.write_bytes(canonical_json(sealed) + b"\n")


def moved_by(factor: float) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        x = (
            np.frombuffer(base64.b64decode(record["vectors"]), "<f4")
            .reshape(record["shape"])
            .copy()
        )
        place = np.abs(x[2]).argmax()
        x[2, place] *= 1 + factor
        record["vectors"] = base64.b64encode(x.tobytes()).decode()
        record["versions"]["torch"] = "1.0.0"

    return change


def test_the_images_are_the_same_on_every_machine() -> None:
    images = golden_images()
    assert [image.size for image in images] == [
        (240, 180), (64, 64), (97, 131), (224, 224), (320, 213), (250, 400),
    ]  # fmt: skip
    digest = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()
    # Changing an image makes every stored record incomparable: raise SCHEMA with it.
    assert digest[:16] == "5a418ab434e35963"
    assert all(np.asarray(image).std() > 20 for image in images)


def test_the_first_stores_and_the_next_compares(store: FeatureStore, encoder: Encoder) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = check_golden(store, encoder)
    assert (first.status, store.encoders()) == ("recorded", [encoder.id])
    again = check_golden(store, encoder)
    assert (again.status, again.differences, again.pixels_moved) == ("same", (), False)
    assert again.relative_error <= 1e-6
    assert torch.equal(before, torch.random.get_rng_state())
    record = store.golden(encoder.id)
    assert record is not None
    assert record["shape"] == [6, encoder.dim]
    assert "torch" in record["versions"]
    assert store.views(encoder.id) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_bands(tmp_path: Path, store: FeatureStore, precision: Any) -> None:
    small_folder(tmp_path / "encoder")
    encoder = open_encoder(str(tmp_path / "encoder"), precision=precision)
    band = TOLERANCES[precision]
    here = golden_record(encoder)
    for factor, status, hard in (
        (band.soft_relative / 3, "same", False),
        ((band.soft_relative * band.hard_relative) ** 0.5, "drifted", False),
        (3 * band.hard_relative, "accepted", True),
    ):
        stored = json.loads(json.dumps(here))
        moved_by(factor)(stored)
        report, refused = compare(stored, here)
        assert (report.status, refused) == (status, hard), factor
        assert report.relative_error == pytest.approx(factor, rel=0.35)


def test_small_drift_is_reported(store: FeatureStore, encoder: Encoder) -> None:
    check_golden(store, encoder)
    rewrite(store, encoder, moved_by(1e-3))
    heard = Heard()
    report = check_golden(store, encoder, progress=heard)
    assert report.status == "drifted"
    assert "relative error 1.0e-03" in heard.said[0]
    assert "was 1.0.0" in heard.said[0]


def test_large_drift_is_refused_or_accepted_knowingly(
    store: FeatureStore, encoder: Encoder
) -> None:
    check_golden(store, encoder)
    rewrite(store, encoder, moved_by(0.2))
    with pytest.raises(DriftError, match=r"--accept-drift") as caught:
        check_golden(store, encoder)
    assert caught.value.exit_code == 4
    assert caught.value.report.relative_error > 0.1
    assert any("was 1.0.0" in difference for difference in caught.value.report.differences)
    heard = Heard()
    assert check_golden(store, encoder, accept_drift=True, progress=heard).status == "accepted"
    assert heard.said[0].startswith("Warning")


def test_another_network_under_the_same_identity_is_refused(
    store: FeatureStore, encoder: Encoder
) -> None:
    # What no identity can see: a library that computes something else from the same weights.
    check_golden(store, encoder)
    with torch.no_grad():
        next(encoder.module.parameters()).mul_(1.3)
    assert encoder.id == encoder_id_of(encoder.identity)
    with pytest.raises(DriftError, match="the network moved"):
        check_golden(store, encoder)


def test_another_resampler_is_told_from_another_network(
    store: FeatureStore, encoder: Encoder
) -> None:
    check_golden(store, encoder)
    rewrite(store, encoder, lambda record: record.update(pixels="0" * 64))
    assert check_golden(store, encoder).pixels_moved


def test_records_of_other_images_are_not_compared(store: FeatureStore, encoder: Encoder) -> None:
    check_golden(store, encoder)
    rewrite(store, encoder, lambda record: record.update(images="0" * 64))
    heard = Heard()
    assert check_golden(store, encoder, progress=heard).status == "incomparable"
    assert "another version" in heard.said[0]
    rewrite(store, encoder, lambda record: (record.clear(), record.update(schema="svp.golden/9")))
    assert check_golden(store, encoder).status == "incomparable"


def test_a_damaged_record_is_refused_and_a_copy_has_the_same(
    tmp_path: Path, store: FeatureStore, encoder: Encoder
) -> None:
    check_golden(store, encoder)
    other = open_store(tmp_path / "other", create=True)
    copy_store(store, other)
    assert other.golden(encoder.id) == store.golden(encoder.id)
    path = Path(store.url) / "encoders" / encoder.id / "golden.json"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptChunkError, match=r"golden\.json"):
        check_golden(store, encoder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_gpu_stays_within_the_hard_band(
    tmp_path: Path, store: FeatureStore, precision: Any
) -> None:
    small_folder(tmp_path / "encoder")
    check_golden(store, open_encoder(str(tmp_path / "encoder"), precision=precision))
    on_gpu = open_encoder(str(tmp_path / "encoder"), precision=precision, device="cuda")
    assert check_golden(store, on_gpu).status in ("same", "drifted")
