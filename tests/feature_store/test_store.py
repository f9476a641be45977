import json
import subprocess
import sys
from pathlib import Path

import pytest

from feature_store import (
    EncoderMismatchError,
    FeatureStoreError,
    StoreConflictError,
    StoreFormatError,
    StoreNotFoundError,
    encoder_id_of,
    open_store,
)


def test_a_store_is_made_only_when_asked(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(StoreNotFoundError, match=r"store\.json"):
            open_store(path)
        with pytest.raises(FileNotFoundError):
            open_store(str(path))
    assert list(tmp_path.iterdir()) == []
    store = open_store(tmp_path / "new" / "store", create=True)
    assert open_store(f"file://{store.url}").url == store.url
    assert open_store(store.url, create=True).pools() == []
    assert [path.name for path in Path(store.url).iterdir()] == ["store.json"]


def test_other_formats_are_refused(store):
    marker = Path(store.url) / "store.json"
    assert json.loads(marker.read_bytes())["format"] == 1
    for content in ({"format": 2, "kind": "svp feature store"}, {"format": 1, "kind": "x"}):
        marker.write_text(json.dumps(content))
        with pytest.raises(StoreFormatError, match=r"must be 1.*Install the svp version"):
            open_store(store.url)
    for text in ("", "[]", "{", "null", "{}"):
        marker.write_text(text)
        with pytest.raises(StoreFormatError, match="must describe a feature store"):
            open_store(store.url, create=True)


def test_only_supported_urls(tmp_path):
    for url in ("ftp://x/store", "memory://x", "https://x/y"):
        with pytest.raises(FeatureStoreError, match="local path or a file://, s3://"):
            open_store(url, create=True)
    with pytest.raises(FeatureStoreError, match="empty"):
        open_store("")


def test_encoders_are_known_by_their_identity(store):
    identity = {"arch": "ViT", "mean": [0.5, 0.25], "size": 224, "nested": {"b": 1, "a": None}}
    encoder_id = store.put_encoder(identity, about={"licence": "MIT"})
    assert encoder_id == encoder_id_of(dict(reversed(identity.items())))
    assert store.put_encoder(identity, about={"licence": "other"}) == encoder_id
    assert store.encoder(encoder_id) == identity
    assert store.encoder_record(encoder_id)["about"] == {"licence": "MIT"}
    assert store.encoders() == [encoder_id]
    assert encoder_id_of(identity | {"size": 225}) != encoder_id
    with pytest.raises(ValueError, match="JSON"):
        store.put_encoder({"mean": float("nan")})


def test_unknown_encoders_and_views_are_refused(store):
    encoder_id = store.put_encoder({"arch": "x"})
    with pytest.raises(StoreNotFoundError, match=f"Stored: {encoder_id}"):
        store.table("0" * 16)
    for name in ("../../x", "x", encoder_id.upper() + "Z"):
        with pytest.raises(FeatureStoreError, match="16 hexadecimal"):
            store.table(name)
    for view in ("../x", "", "a/b", ".hidden", "Eval", "a..b", "segments", "x" * 65):
        with pytest.raises(FeatureStoreError, match="view must be named"):
            store.table(encoder_id, view)


def test_a_changed_identity_is_refused(store, table, samples):
    samples.fill(table, samples.digests(5))
    path = Path(store.url) / "encoders" / table.encoder_id / "encoder.json"
    intact = path.read_text()
    for text in (intact.replace("tiny", "tiny2"), intact.replace(table.encoder_id, "0" * 16), "x"):
        path.write_text(text)
        with pytest.raises(EncoderMismatchError, match=table.encoder_id):
            store.table(table.encoder_id)
        with pytest.raises(EncoderMismatchError):
            store.put_encoder(samples.identity)
    assert store.views(table.encoder_id) == ["eval"]


def test_another_description_of_a_segment_is_a_conflict(store, table, samples):
    digests = samples.digests(5)
    plan = table.plan(digests, dim=8, dtype="float16")[0]
    path = Path(store.url) / "encoders" / table.encoder_id / "eval" / "segments" / plan.id
    path.mkdir(parents=True)
    (path / "zarr.json").write_text("{}")
    with pytest.raises(StoreConflictError, match=r"zarr\.json"):
        table.writer(plan).write(plan.chunks()[0], samples.embed(digests))
    assert (path / "zarr.json").read_text() == "{}"


def test_importing_the_store_is_cheap():
    code = (
        "import sys, feature_store; "
        "print({'torch', 'zarr', 'pyarrow', 'PIL'} & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "set()"
