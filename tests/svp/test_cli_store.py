import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from feature_store import Pool, open_store
from svp.cli import run

IDENTITY = {"architecture": "tiny", "weights": "0" * 64}


def _digests(count, start=0):
    rows = [hashlib.sha256(b"%d" % i).digest() for i in range(start, start + count)]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32).copy()


def _embed(digests):
    return digests[:, :4].astype(np.float16)


def _fill(store, digests, *, seal=True):
    table = store.table(store.put_encoder(IDENTITY))
    for plan in table.plan(digests[table.missing(digests)], dim=4, dtype="float16", chunk_rows=8):
        writer = table.writer(plan)
        for chunk in list(writer.pending())[: None if seal else 1]:
            writer.write(chunk, _embed(plan.digests[chunk.start : chunk.stop]))
        if seal:
            writer.seal()
    return table


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store", create=True)


@pytest.fixture
def json_of(capsys):
    """Return a function that runs `svp store ...` and returns what it printed."""

    def call(*arguments, code=0):
        assert run(["store", *map(str, arguments), "--json"]) == code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out) if code == 0 else capsys.readouterr().err

    return call


@pytest.mark.parametrize("command", ["copy", "sync"])
def test_copy(store, tmp_path, json_of, command):
    digests = _digests(30)
    table = _fill(store, digests)
    store.put_pool(Pool.create([f"i{n:02}" for n in range(30)], ["u"] * 30, digests))
    done = json_of(command, store.url, tmp_path / "other", "--encoder", table.encoder_id)
    assert done["schema"] == "svp.store.copy/1"
    assert done["copied"]["segments"] == 1
    copied = open_store(tmp_path / "other").table(table.encoder_id)
    np.testing.assert_array_equal(copied.read(digests), _embed(digests))
    assert json_of(command, store.url, tmp_path / "other")["copied"]["present"] == 1


def test_copy_of_an_unknown_encoder(store, tmp_path, json_of):
    json_of("copy", store.url, tmp_path / "other", "--encoder", "0" * 16, code=3)


def _age(store):
    moment = time.time() - 2 * 86400
    for path in Path(store.url).rglob("*"):
        os.utime(path, (moment, moment))


def test_gc(store, tmp_path, json_of):
    table = _fill(store, _digests(30))
    _fill(store, _digests(20, 100), seal=False)
    assert json_of("gc", store.url)["garbage"] == []
    _age(store)
    assert json_of("gc", store.url, "--older-than", "3d")["garbage"] == []
    found = json_of("gc", store.url)
    assert found["schema"] == "svp.store.gc/1"
    assert not found["deleted"]
    assert [item["kind"] for item in found["garbage"]] == ["unfinished"]
    study = tmp_path / "study"
    (study / "rounds" / "000").mkdir(parents=True)
    json_of("gc", store.url, "--keep-study", study, code=3)
    (study / "study.toml").write_text("")
    receipt = study / "rounds" / "000" / "round.json"
    receipt.write_text(json.dumps({"encoder": {"id": table.encoder_id}}))
    assert json_of("gc", store.url, "--keep-study", study)["garbage"] == []
    receipt.write_text("{}")
    json_of("gc", store.url, "--keep-study", study, "--delete", code=3)
    receipt.unlink()
    (study / "encoder.json").write_text(json.dumps({"encoder_id": "0" * 16}))
    done = json_of("gc", store.url, "--keep-study", study, "--delete")
    assert done["deleted"]
    assert done["bytes"] == found["bytes"]
    assert json_of("gc", store.url)["garbage"] == []
    assert table.verify() == []


def test_gc_wants_an_age(store, json_of):
    assert "24h" in json_of("gc", store.url, "--older-than", "soon", code=3)


def test_export(store, tmp_path, json_of):
    digests = _digests(30)
    table = _fill(store, digests)
    pool = store.put_pool(Pool.create([f"i{n:02}" for n in range(9)], ["u"] * 9, digests[:9]))
    out = tmp_path / "vectors"
    export = ["export", store.url, table.encoder_id, out, "--format", "npy"]
    done = json_of(*export, "--pool", pool, "--dtype", "float32")
    assert done["schema"] == "svp.store.export/1"
    assert done["exported"]["rows"] == 9
    x = np.load(out / "embeddings.npy", allow_pickle=False)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, _embed(digests[:9]))
    assert "must not exist" in json_of(*export, code=3)
    json_of(
        "export",
        store.url,
        table.encoder_id,
        tmp_path / "x",
        "--format",
        "npy",
        "--view",
        "v",
        code=3,
    )


def test_compact(store, json_of):
    for start in range(0, 40, 10):
        table = _fill(store, _digests(10, start))
    done = json_of("compact", store.url)
    assert done["schema"] == "svp.store.compact/1"
    (merged,) = [one["compacted"] for one in done["tables"]]
    assert (len(merged["merged"]), len(merged["sources"]), merged["rows"]) == (1, 4, 40)
    _age(store)
    assert json_of("gc", store.url, "--delete")["deleted"]
    assert [segment.id for segment in table.segments()] == merged["merged"]
    np.testing.assert_array_equal(table.read(_digests(40)), _embed(_digests(40)))
    again = json_of("compact", store.url, "--encoder", table.encoder_id)
    assert again["tables"][0]["compacted"]["merged"] == []


@pytest.fixture
def vectors(tmp_path, monkeypatch):
    """Write five images, their vectors and a description; return digests and vectors."""
    from PIL import Image

    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    digests = []
    for n in range(5):
        path = tmp_path / "photos" / f"{n}.png"
        Image.new("RGB", (4, 4), (n, 0, 0)).save(path)
        digests.append(hashlib.sha256(path.read_bytes()).digest())
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "x.json").write_text(json.dumps({"model": "ours"}))
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), x


@pytest.mark.parametrize("column", ["id", "path", "digest"])
def test_import(tmp_path, vectors, json_of, column):
    from svp.data import open_source

    digests, x = vectors
    photos = tmp_path / "photos"
    pool = open_source(photos).scan().pool
    names = {"id": pool.ids, "path": pool.uris, "digest": [d.tobytes().hex() for d in digests]}
    lines = [column, *(f'"{name}"' for name in names[column])]
    (tmp_path / "ids.csv").write_text("\n".join(lines))
    call = ["import", tmp_path / "s", "--vectors", tmp_path / "x.npy"]
    call += ["--ids", tmp_path / "ids.csv", "--encoder-json", tmp_path / "x.json"]
    if column != "digest":
        assert "--source" in json_of(*call, code=3)
        call += ["--source", photos]
    done = json_of(*call)
    assert done["schema"] == "svp.store.import/1"
    store = open_store(tmp_path / "s")
    np.testing.assert_array_equal(store.table(done["imported"]["encoder_id"]).read(digests), x)
    assert done["pool"] == (None if column == "digest" else pool.id)
    assert json_of(*call)["imported"]["written"] == 0
    (tmp_path / "ids.csv").write_text("\n".join([column, "unknown"]))
    assert "unknown" in json_of(*call, code=3)
    (tmp_path / "ids.csv").write_text("name\nx")
    assert "column" in json_of(*call, code=3)
    (tmp_path / "x.json").write_text("[]")
    assert "object" in json_of(*call, code=3)


_ID = "0123456789abcdef"
_ON_A_STORE = (
    ("ls", "{}"), ("show", "{}", _ID), ("verify", "{}"), ("gc", "{}"), ("gc", "{}", "--delete"),
    ("compact", "{}"), ("compact", "{}", "--encoder", _ID), ("copy", "{}", "{}-copy"),
    ("sync", "{}", "{}-copy"), ("export", "{}", _ID, "{}-out", "--format", "npy"),
)  # fmt: skip


@pytest.fixture
def refused(capsys):
    """Return a function that runs `svp store ...`, wants exit 3, and returns the one line said."""

    def call(*arguments):
        code = run(["store", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n")) == (3, "", 1), (code, out, err)
        return err

    return call


@pytest.mark.parametrize("command", _ON_A_STORE, ids=" ".join)
@pytest.mark.parametrize("kind", ["missing", "folder", "file"])
def test_a_mistyped_path_is_named_and_nothing_is_made(tmp_path, refused, command, kind):
    path = tmp_path / "stroe"
    if kind == "folder":
        (path / "encoders" / _ID).mkdir(parents=True)
    if kind == "file":
        path.write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert str(path) in refused(*(word.format(path) for word in command))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", _ON_A_STORE, ids=" ".join)
@pytest.mark.parametrize("url", ["s4://bucket/store", "s3://bucket/a//b"])
def test_a_mistyped_url_is_named(refused, command, url):
    assert repr(url) in refused(*(word.replace("{}", url, 1) for word in command))


def test_a_store_that_cannot_be_made_there(store, tmp_path, refused, vectors):
    _fill(store, _digests(3))
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "store"
    assert str(target) in refused("copy", store.url, target)
    (tmp_path / "ids.csv").write_text("digest\n" + "\n".join(d.tobytes().hex() for d in vectors[0]))
    say = ["--ids", tmp_path / "ids.csv", "--encoder-json", tmp_path / "x.json"]
    assert str(target) in refused("import", target, "--vectors", tmp_path / "x.npy", *say)
    assert "gone.npy" in refused("import", store.url, "--vectors", tmp_path / "gone.npy", *say)


def test_names_that_are_not_in_the_store(store, tmp_path, refused):
    table, out = _fill(store, _digests(9)), tmp_path / "out"
    for name in (_ID, "nonsense"):
        assert name in refused("show", store.url, name)
        assert name in refused("compact", store.url, "--encoder", name)
        assert name in refused("copy", store.url, tmp_path / "other", "--encoder", name)
        assert name in refused("export", store.url, name, out, "--format", "npy")
        assert name in refused(
            "export", store.url, table.encoder_id, out, "--format", "npy", "--pool", name
        )
    for view in ("weak-0", "No View"):
        assert view in refused(
            "export", store.url, table.encoder_id, out, "--format", "npy", "--view", view
        )
    assert not out.exists()


@pytest.mark.parametrize("command", [("ls",), ("verify",), ("compact",), ("gc",)])
def test_a_damaged_store_is_no_mistyped_path(store, capsys, command):
    _fill(store, _digests(9))
    Path(store.url, "store.json").write_text("{")
    assert run(["store", *command, store.url]) == 4
    assert store.url in capsys.readouterr().err


def test_every_command_shows_an_example(capsys):
    for command in ("ls", "show", "verify", "copy", "sync", "gc", "export", "compact", "import"):
        assert run(["store", command, "--help"]) == 0
        printed = capsys.readouterr().out
        assert f"svp store {command}" in printed.split("Example:")[1]
