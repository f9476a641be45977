"""`svp store import` of files as LabelBench caches them."""

import json
import warnings

import numpy as np
import pytest
import torch

from feature_store import open_store
from svp.cli import run
from svp.data.feature_cache import read_feature_cache
from svp.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture
def cached(tmp_path):
    """Write two splits as LabelBench does, and their digests; return what they hold."""
    found = {}
    for split, rows in (("train", 12), ("test", 5)):
        # Computed in float16 under autocast, then assigned to a float64 array.
        x = RNG.standard_normal((rows, 6)).astype(np.float16).astype(np.float64)
        torch.save(x, tmp_path / f"toy_clip_0_features_{split}.pt", pickle_protocol=4)
        digests = RNG.integers(1, 255, (rows, 32), np.uint8)
        lines = ["digest", *(row.tobytes().hex() for row in digests)]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
        found[split] = digests, x
    (tmp_path / "clip.json").write_text('{"model": "ViT-B/32", "by": "LabelBench"}')
    return found


def _call(folder, capsys, *splits, code=0, options=()):
    words = ["store", "import", str(folder / "store"), "--json", *options]
    words += ["--encoder-json", str(folder / "clip.json")]
    for split in splits:
        words += ["--vectors", str(folder / f"toy_clip_0_features_{split}.pt")]
        words += ["--ids", str(folder / f"{split}.csv")]
    assert run(words) == code
    printed = capsys.readouterr()
    return printed.err if code else json.loads(printed.out)


def test_splits_become_one_table(cached, tmp_path, capsys):
    assert "--dtype" in _call(tmp_path, capsys, "train", "test", code=3)
    done = _call(tmp_path, capsys, "train", "test", options=["--dtype", "float16"])
    imported = done["imported"]
    assert (imported["rows"], imported["dim"], imported["dtype"]) == (17, 6, "float16")
    store = open_store(tmp_path / "store")
    table = store.table(imported["encoder_id"])
    for digests, x in cached.values():
        np.testing.assert_array_equal(table.read(digests), x)  # nothing is lost
    identity = store.encoder(table.encoder_id)
    assert identity["description"] == {"model": "ViT-B/32", "by": "LabelBench"}
    assert identity["converted"] == "float16"
    assert table.verify() == []
    again = _call(tmp_path, capsys, "test", "train", options=["--dtype", "float16"])
    assert again["imported"]["encoder_id"] == table.encoder_id
    assert again["imported"]["written"] == 0
    wide = _call(tmp_path, capsys, "train", "test", options=["--dtype", "float32"])
    assert wide["imported"]["encoder_id"] != table.encoder_id


def test_lists_and_files_go_in_pairs(cached, tmp_path, capsys):
    extra = ["--ids", str(tmp_path / "test.csv")]
    assert "equally often" in _call(tmp_path, capsys, "train", code=3, options=extra)


def test_values_beyond_float16_are_refused(cached, tmp_path, capsys):
    x = np.full((12, 6), 1e6)
    torch.save(x, tmp_path / "toy_clip_0_features_train.pt", pickle_protocol=4)
    text = _call(tmp_path, capsys, "train", code=3, options=["--dtype", "float16"])
    assert "finite in float16" in text


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8"])
def test_arrays_of_any_pickle_are_read(tmp_path, protocol, dtype):
    x = RNG.standard_normal((5, 3)).astype(dtype)
    for y in (x, np.asfortranarray(x)):
        torch.save(y, tmp_path / "x.pt", pickle_protocol=protocol)
        np.testing.assert_array_equal(read_feature_cache(tmp_path / "x.pt"), y)


def test_tensors_are_read(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = torch.randn(5, 3).to(dtype)
        torch.save(x, tmp_path / "x.pt")
        np.testing.assert_array_equal(read_feature_cache(tmp_path / "x.pt"), x.double().numpy())


class Trap:
    """Runs code when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_anything_else_is_refused_and_nothing_runs(tmp_path):
    x, sprung = np.zeros((4, 3)), tmp_path / "sprung"
    trapped = np.empty((1, 1), object)
    trapped[0, 0] = Trap(str(sprung))
    wrong = [(x, x), {"x": x}, x[0], x.astype(int), trapped, Trap(str(sprung)), [x], "text"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the protocol
        for one in wrong:
            for protocol in (2, 4):
                torch.save(one, tmp_path / "x.pt", pickle_protocol=protocol)
                with pytest.raises(InputError, match="must be one"):
                    read_feature_cache(tmp_path / "x.pt")
    assert not sprung.exists()
    for raw in (b"", b"PK", b"text", (tmp_path / "x.pt").read_bytes()[:100]):
        (tmp_path / "x.pt").write_bytes(raw)
        with pytest.raises(InputError, match="must be one"):
            read_feature_cache(tmp_path / "x.pt")
