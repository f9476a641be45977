"""Data sets saved by `datasets`, and Parquet files: rows, classes, splits, memory, damage."""

import hashlib
import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from svp.data import DigestCache, decode_image, open_source
from svp.data import table_file as tables
from svp.errors import InputError

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
}


def png(value=0):
    stream = io.BytesIO()
    Image.new("L", (2, 2), value % 256).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def table(values, *, paths=None, labels=None, features=FEATURES, binary=False):
    images = [
        None if value is None else {"bytes": png(value), "path": None if paths is None else path}
        for value, path in zip(values, paths or [None] * len(values), strict=True)
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = pa.array([one["bytes"] for one in images]) if binary else pa.array(images, kind)
    made = pa.table({"image": column, "label": labels or [value % 2 for value in values]})
    if features is None:
        return made
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def save(folder, parts, *, split=None, describe=True, **more):
    """Write what Dataset.save_to_disk writes."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(parts):05d}.arrow" for n in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with pa.ipc.new_stream(folder / name, part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split, **more}
    (folder / "state.json").write_text(json.dumps(state))
    if describe:
        (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


def save_dict(folder, splits):
    for name, parts in splits.items():
        save(folder / name, parts, split=name)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def check(source, pool, values):
    for uri, digest, value in zip(pool.uris, pool.digests, values, strict=True):
        data = source.read(uri)
        assert data == png(value)
        assert digest.tobytes() == hashlib.sha256(data).digest()
        assert decode_image(data).getpixel((0, 0)) == (value, value, value)


def test_a_saved_data_set(tmp_path):
    save(tmp_path / "set", [table([0, 1, 2]), table([3, 4])])
    source = open_source(tmp_path / "set")
    pool = source.scan().pool
    assert pool.ids == tuple(f"{row:09d}" for row in range(5))
    assert pool.labels == ("cat", "dog", "cat", "dog", "cat")
    assert pool.splits is None
    check(source, pool, range(5))
    check(pickle.loads(pickle.dumps(source)), pool, range(5))


def test_a_saved_data_set_with_splits_and_names(tmp_path):
    named = table([0, 1], paths=["a/x.png", None])
    save_dict(
        tmp_path / "set", {"train": [named], "validation": [table([2])], "test": [table([3])]}
    )
    pool = open_source(tmp_path / "set").scan().pool
    assert pool.ids == (
        "test/000000000", "train/000000000/x.png", "train/000000001", "validation/000000000",
    )  # fmt: skip
    assert pool.splits == ("test", "train", "train", "val")


def test_class_names_of_the_description_and_absent_labels(tmp_path):
    save(tmp_path / "set", [table([0, 1, 2], labels=[-1, None, 7], features=None)])
    assert open_source(tmp_path / "set").scan().pool.labels == (None, None, "7")


def test_rows_without_bytes_are_failures_of_their_own(tmp_path):
    lost = table([0, None, 2], labels=[0, 0, 0])
    save(tmp_path / "arrow", [lost])
    pq.write_table(lost, tmp_path / "pool.parquet")
    for source in (tmp_path / "arrow", tmp_path / "pool.parquet"):
        scan = open_source(source).scan()
        assert scan.pool.ids == ("000000000", "000000002")
        assert [(one.id, one.kind) for one in scan.failures] == [("000000001", "missing")]
        assert "with its bytes" in scan.failures[0].reason


@pytest.mark.parametrize("binary", [False, True])
def test_parquet_files_tell_splits_by_name(tmp_path, binary):
    data = tmp_path / "data"
    data.mkdir()
    for name, values in {
        "train-00000-of-00002": [0, 1, 2],
        "train-00001-of-00002": [3, 4],
        "test-00000-of-00001": [5],
    }.items():
        made = table(values, binary=binary)
        pq.write_table(made, data / f"{name}.parquet", row_group_size=2)
    for spec in (tmp_path, data, data / "*.parquet"):
        source = open_source(spec)
        pool = source.scan().pool
        assert pool.ids == ("test/000000000", *(f"train/{row:09d}" for row in range(5)))
        assert pool.splits == ("test", *["train"] * 5)
        assert pool.labels == ("dog", "cat", "dog", "cat", "dog", "cat")
        check(source, pool, [5, 0, 1, 2, 3, 4])
    one = open_source(data / "test-00000-of-00001.parquet").scan().pool
    assert one.ids == ("test/000000000",)


def test_a_parquet_manifest_stays_one(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    pq.write_table(pa.table({"id": ["x"], "path": ["a.png"]}), tmp_path / "pool.parquet")
    assert open_source(tmp_path / "pool.parquet").scan().pool.ids == ("x",)


def test_columns_without_features_are_read_by_name_and_type(tmp_path):
    path = tmp_path / "pool.parquet"
    made = pa.table({"jpg": [png(1)], "thumb": [png(2)], "label": ["cat"], "group": [4]})
    pq.write_table(made, path)
    source = open_source(path)
    pool = source.scan().pool
    assert (pool.labels, pool.groups, source.read(pool.uris[0])) == (("cat",), ("4",), png(1))
    pq.write_table(pa.table({"one": [png(1)], "two": [png(2)]}), path)
    with pytest.raises(InputError, match=r"one column of encoded images.*Got one, two"):
        open_source(path)


def test_row_groups_are_held_up_to_a_limit_and_read_once_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_KEPT_BYTES", 400)  # about two groups
    path = tmp_path / "pool.parquet"
    pq.write_table(table(list(range(40))), path, row_group_size=2)
    reads = []
    read = tables.ParquetFile._read_group

    def counted(file, group):
        reads.append(group)
        return read(file, group)

    monkeypatch.setattr(tables.ParquetFile, "_read_group", counted)
    source = open_source(path)
    pool = source.scan().pool
    assert sorted(reads) == sorted(set(reads))
    reads.clear()
    check(source, pool, range(40))
    assert reads == list(range(20))
    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(source.read, pool.uris[::-1])) == [
            png(n) for n in range(39, -1, -1)
        ]


def test_rows_appended_keep_ids_and_only_changed_files_are_read(tmp_path):
    cache = DigestCache(tmp_path / "cache")
    pq.write_table(table([0, 1]), tmp_path / "p-0.parquet")
    first = open_source(tmp_path / "*.parquet").scan(cache=cache)
    pq.write_table(table([2, 3]), tmp_path / "p-1.parquet")
    again = open_source(tmp_path / "*.parquet").scan(cache=cache)
    assert (first.reread, again.reread) == (2, 2)
    assert again.pool.ids[:2] == first.pool.ids


def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "picked", [table([0])], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(InputError, match="flatten_indices"):
        open_source(tmp_path / "picked")
    evil = save(tmp_path / "evil", [table([0])])
    (evil / "state.json").write_text('{"_data_files": [{"filename": "../picked/x.arrow"}]}')
    with pytest.raises(InputError, match="must list its files"):
        open_source(evil)
    torn = save(tmp_path / "torn", [table([0, 1, 2])])
    file = torn / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match="readable Arrow or Parquet"):
        open_source(torn).scan()
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="must be readable"):
        open_source(tmp_path / "x.parquet")
    monkeypatch.setattr(tables, "_MOST_GROUP_BYTES", 10)
    pq.write_table(table([0, 1]), tmp_path / "y.parquet")
    with pytest.raises(InputError, match="row_group_size"):
        open_source(tmp_path / "y.parquet")


def test_a_damaged_row_group_is_a_failure_of_its_rows(tmp_path):
    path = tmp_path / "pool.parquet"
    pq.write_table(
        table(list(range(4))), path, row_group_size=2, compression="none", write_page_checksum=True,
        use_dictionary=False, write_statistics=False,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    data[data.index(png(3)) + 40] ^= 1
    path.write_bytes(bytes(data))
    scan = open_source(path).scan()
    assert scan.pool.ids == ("000000000", "000000001")
    assert [one.kind for one in scan.failures] == ["corrupt", "corrupt"]


def test_a_row_that_is_not_there(tmp_path):
    save(tmp_path / "set", [table([0])])
    source = open_source(tmp_path / "set")
    for uri in ("data-00000-of-00001.arrow#1", "data-00000-of-00001.arrow", "../x#0", "x#-1"):
        with pytest.raises(FileNotFoundError):
            source.read(uri)
