import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from study_fixtures import config_of, write_encoder, write_images, write_labels

from svp.errors import InputError
from svp.study.labels import (
    Conflict,
    export_labels,
    import_labels,
    import_source_labels,
    label_files,
    labels_digest,
    read_labels,
)
from svp.study.study import Study

A, B, C = "train/blue/blue000.png", "train/green/green000.png", "train/red/red000.png"


@pytest.fixture
def study(tmp_path):
    write_images(tmp_path / "images", train=2, test=1)
    write_encoder(tmp_path / "encoder")
    return Study.create(tmp_path / "study", config_of(tmp_path))


def _file(study, text, name="labels.csv"):
    path = study.path.parent / name
    path.write_text(text)
    return path


def _snapshot(study):
    return {path.name: path.read_bytes() for path in study.labels_dir.glob("*")}


def test_import_counts_and_is_idempotent(study):
    file = _file(study, f"id,label\n{A},blue\n{B},\n{C}, red \n")
    first = import_labels(study, file)
    assert (first.new, first.unchanged, first.changed, first.blank) == (2, 0, 0, 1)
    assert read_labels(study) == {A: "blue", C: "red"}
    before = _snapshot(study)
    again = import_labels(study, file)
    assert (again.file, again.new, again.unchanged, again.blank) == (None, 0, 2, 1)
    assert _snapshot(study) == before
    assert again.labelled == 2


def test_the_newest_import_wins_and_conflicts_are_reported(study):
    old = _file(study, f"id,label\n{A},blue\n{C},red\n", "old.csv")
    import_labels(study, old)
    result = import_labels(study, _file(study, f"id,label\n{A},green\n{B},green\n", "new.csv"))
    assert (result.new, result.changed) == (1, 1)
    assert result.conflicts == (Conflict(id=A, old="blue", new="green", kept="green"),)
    assert read_labels(study)[A] == "green"
    # A job that is retried late must not bring back what was corrected meanwhile.
    late = import_labels(study, old)
    assert (late.file, late.outdated, late.unchanged) == (None, 1, 1)
    assert late.conflicts == (Conflict(id=A, old="green", new="blue", kept="green"),)
    assert read_labels(study)[A] == "green"
    assert [name.split("-")[0] for name in label_files(study)] == ["0000", "0001"]


def test_times_decide_where_both_have_one(study):
    head = "id,label,annotator,labeled_at,weight\n"
    import_labels(study, _file(study, f"{head}{A},blue,ann,2026-01-02T10:00:00Z,1\n"))
    older = import_labels(study, _file(study, f"{head}{A},red,bob,2026-01-02T10:30:00+01:00,2\n"))
    assert (older.outdated, older.file) == (1, None)
    newer = import_labels(study, _file(study, f"{head}{A},green,bob,2026-01-03,\n"))
    assert newer.changed == 1
    assert read_labels(study) == {A: "green"}


def test_conflicts_inside_one_file(study):
    result = import_labels(study, _file(study, f"id,label\n{A},blue\n{A},red\n"))
    assert result.new == 1
    assert result.conflicts == (Conflict(id=A, old="blue", new="red", kept="red"),)
    assert read_labels(study) == {A: "red"}


def test_a_conflict_is_reported_once(study):
    import_labels(study, _file(study, f"id,label\n{A},blue\n", "old.csv"))
    both = import_labels(study, _file(study, f"id,label\n{A},blue\n{A},green\n", "both.csv"))
    assert both.conflicts == (Conflict(id=A, old="blue", new="green", kept="green"),)


def test_classes_that_appear_later_are_named(study):
    first = import_labels(study, _file(study, f"id,label\n{A},blue\n{B},green\n", "first.csv"))
    assert first.new_classes == ()
    typo = import_labels(study, _file(study, f"id,label\n{C},geen\n", "typo.csv"))
    assert typo.new_classes == ("geen",)
    again = import_labels(study, _file(study, f"id,label\n{C},green\n", "right.csv"))
    assert again.new_classes == ()


def test_unknown_ids_write_nothing(study):
    file = _file(study, f"id,label\n{A},blue\nnope1.png,red\nnope2.png,red\n")
    with pytest.raises(InputError, match=r"Got 2 unknown .*nope1\.png, nope2\.png"):
        import_labels(study, file)
    assert not study.labels_dir.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\nx,y\n", "columns id and label. Got name, label in .* add id"),
        ("", "columns id and label. Got none"),
        (f"id,label\n{A}\n", "must have 2 cells.*row 2"),
        (f"id,label,weight\n{A},blue,heavy\n", "weight must be a number.*'heavy' in row 2"),
        (f"id,label,labeled_at\n{A},blue,yesterday\n", "labeled_at must be .*'yesterday'"),
        ("id,label\n,blue\n", "must have an id. Got none in row 2"),
    ],
)
def test_malformed_files_write_nothing(study, text, message):
    with pytest.raises(InputError, match=message):
        import_labels(study, _file(study, text))
    assert not study.labels_dir.exists()


def test_a_missing_or_binary_file(study):
    with pytest.raises(InputError, match="must exist"):
        import_labels(study, study.path / "none.csv")
    path = study.path / "labels.csv"
    path.write_bytes(b"\xff\xfe\x00id")
    with pytest.raises(InputError, match="UTF-8"):
        import_labels(study, path)
    path.rename(study.path / "labels.parquet")
    with pytest.raises(InputError, match="CSV or Parquet"):
        import_labels(study, study.path / "labels.parquet")


def test_parquet_with_numbers_and_extra_columns(study):
    path = study.path / "labels.parquet"
    table = pa.table({"id": [A, B, C], "label": [3.0, None, 1.5], "uri": ["a", "b", "c"]})
    pq.write_table(table, path)
    result = import_labels(study, path)
    assert (result.new, result.blank) == (2, 1)
    assert read_labels(study) == {A: "3", C: "1.5"}
    pq.write_table(pa.table({"id": [A], "label": [["x", "y"]]}), path)
    with pytest.raises(InputError, match="one value per row"):
        import_labels(study, path)


def test_source_labels_leave_the_test_split_out(study):
    result = import_source_labels(study)
    assert result.new == 6
    assert all(key.startswith("train/") for key in read_labels(study))
    assert import_source_labels(study).unchanged == 6


def test_source_without_labels(tmp_path):
    write_images(tmp_path / "labelled", train=1, test=0)
    write_encoder(tmp_path / "encoder")
    flat = tmp_path / "images"
    flat.mkdir()
    for path in (tmp_path / "labelled").rglob("*.png"):
        path.rename(flat / path.name)
    study = Study.create(tmp_path / "study", config_of(tmp_path))
    with pytest.raises(InputError, match="source must have labels"):
        import_source_labels(study)
    assert not study.labels_dir.exists()


def test_export_and_digest(study, tmp_path):
    import_labels(study, write_labels(tmp_path / "one.csv", {C: 're"d, dark', A: "blue"}))
    digest = labels_digest(read_labels(study))
    assert export_labels(study, tmp_path / "out.csv") == 2
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["label"]) for row in rows] == [(A, "blue"), (C, 're"d, dark')]
    other = Study.create(tmp_path / "other", config_of(tmp_path))
    import_labels(other, tmp_path / "out.csv")
    assert labels_digest(read_labels(other)) == digest
    import_labels(other, write_labels(tmp_path / "two.csv", {B: "green"}))
    assert labels_digest(read_labels(other)) != digest


def test_labels_as_of_an_earlier_time(study, tmp_path):
    import_labels(study, write_labels(tmp_path / "one.csv", {A: "blue"}))
    files = label_files(study)
    import_labels(study, write_labels(tmp_path / "two.csv", {A: "red"}))
    assert read_labels(study, files) == {A: "blue"}
    with pytest.raises(InputError, match="every import"):
        read_labels(study, ["0009-gone-0.csv"])
