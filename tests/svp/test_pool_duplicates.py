"""Copies in a pool, and pools that grow: groups, what is embedded anew, where labels go."""

import csv
import io
import json
import shutil
import tarfile

import pytest
from PIL import Image
from study_fixtures import config_of, write_encoder, write_images, write_labels

from svp.cli import run
from svp.errors import InputError
from svp.study.config import DataSection
from svp.study.duplicates import find_duplicates
from svp.study.embedding import embed_study
from svp.study.labels import import_labels, read_labels
from svp.study.study import Study


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def study(tmp_path):
    write_images(tmp_path / "images", train=4, test=2)
    write_encoder(tmp_path / "encoder")
    return Study.create(tmp_path / "study", config_of(tmp_path))


@pytest.fixture
def images(study):
    return study.path.parent / "images"


def brightened(path, target):
    """Write a picture that differs by one grey level in one pixel: other bytes, same look."""
    image = Image.open(path)
    pixel = image.getpixel((3, 3))
    image.putpixel((3, 3), (pixel[0] ^ 1, *pixel[1:]))
    image.save(target)


def test_groups_of_exact_and_near_copies(study, images):
    red = images / "train" / "red"
    shutil.copy(red / "red001.png", red / "copy.png")
    shutil.copy(red / "red001.png", images / "test" / "red" / "leak.png")
    brightened(red / "red002.png", red / "red002b.png")
    shutil.copy(red / "red003.png", images / "train" / "blue" / "wrong.png")
    (red / "broken.png").write_bytes(b"no image")
    (red / "broken2.png").write_bytes(b"no image")
    embed_study(study, max_failure_rate=0.5)
    labels = write_labels(study.path.parent / "l.csv", {"train/red/red001.png": "crimson"})
    import_labels(study, labels)
    found = find_duplicates(study, threshold=0.99999)
    assert (found.items, found.compared, found.exact, found.near) == (24, 19, 4, 1)
    by_keep = {group.representative: group for group in found.groups}
    assert list(by_keep) == [
        "train/red/red001.png",  # largest; labelled, though copy.png comes first by id
        "train/blue/wrong.png",
        "train/red/broken.png",
        "train/red/red002.png",
    ]
    leaked = by_keep["train/red/red001.png"]
    assert [(one.id, one.kind, one.side) for one in leaked.copies] == [
        ("test/red/leak.png", "exact", "test"),
        ("train/red/copy.png", "exact", "train"),
    ]
    assert (leaked.waste, leaked.sides_differ, leaked.labels_differ) == (1, True, True)
    near = by_keep["train/red/red002.png"].copies[0]
    assert (near.kind, 0.99999 <= near.cosine < 1) == ("near", True)
    assert by_keep["train/blue/wrong.png"].labels_differ
    assert by_keep["train/red/broken.png"].copies[0].cosine is None
    assert (found.waste, found.sides_differ, found.labels_differ) == (4, 1, 2)


def test_the_command(study, images, tmp_path, capsys):
    blue = images / "train" / "blue"
    shutil.copy(blue / "blue000.png", blue / "again.png")
    assert run(["pool", "duplicates", str(study.path)]) == 3  # not embedded yet
    assert "svp embed" in capsys.readouterr().err
    embed_study(study)
    options = ["--threshold", "0.99999", "--out", str(tmp_path / "copies.csv"), "--device", "cpu"]
    assert run(["pool", "duplicates", str(study.path), *options]) == 0
    said = capsys.readouterr().out
    assert "1 groups among 19 items: 1 exact copies, 0 near ones" in said
    assert "spend 1 labels on copies" in said
    with (tmp_path / "copies.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["id"], line["representative"], line["kind"]) for line in lines] == [
        ("train/blue/again.png", "train/blue/again.png", "representative"),
        ("train/blue/blue000.png", "train/blue/again.png", "exact"),
    ]
    assert run(["pool", "duplicates", str(study.path), *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "svp.pool.duplicates/1"
    assert told["duplicates"]["groups"][0]["copies"][0]["id"] == "train/blue/blue000.png"
    assert run(["pool", "duplicates", str(study.path), "--threshold", "0"]) == 3
    assert run(["pool", "duplicates", str(study.path), "--out", "no/such/folder.csv"]) == 3


def test_a_grown_pool_embeds_only_what_is_new(study, images, tmp_path):
    first = embed_study(study).results[0]
    assert (first.embedded, first.reused) == (18, 0)
    labels = {
        "train/red/red000.png": "red",
        "train/red/red001.png": "red",
        "train/blue/blue000.png": "blue",
    }
    import_labels(study, write_labels(tmp_path / "l.csv", labels))

    red = images / "train" / "red"
    again = embed_study(study).results[0]
    assert (again.embedded, again.reused, again.pool_id) == (0, 18, first.pool_id)

    (red / "red000.png").rename(red / "renamed.png")
    renamed = embed_study(study).results[0]
    assert (renamed.embedded, renamed.reused) == (0, 18)
    assert renamed.pool_id != first.pool_id

    shutil.copy(images / "test" / "red" / "red001.png", red / "copy.png")
    brightened(red / "red002.png", red / "new.png")
    added = embed_study(study).results[0]
    assert (added.embedded, added.reused) == (1, 18)  # the copy has its embedding already

    brightened(red / "red003.png", red / "red001.png")  # other bytes, same name
    changed = embed_study(study).results[0]
    assert (changed.embedded, changed.reused) == (1, 18)

    (images / "train" / "blue" / "blue000.png").unlink()
    (red / "red001.png").rename(red / "elsewhere.png")
    fewer = embed_study(study).results[0]
    assert (fewer.embedded, fewer.reused) == (0, 18)

    # Labels are filed by id: they stay on record, and apply to what has that id.
    assert read_labels(study) == labels
    known = set(study.scan().pool.ids)
    assert not known & labels.keys()
    assert run(["select", str(study.path), "--budget", "2", "--device", "cpu"]) == 0
    with pytest.raises(InputError, match="must be an item of the study"):
        import_labels(study, tmp_path / "l.csv")
    (red / "renamed.png").rename(red / "red000.png")
    assert set(study.scan().pool.ids) & labels.keys() == {"train/red/red000.png"}
    assert embed_study(study).results[0].embedded == 0


def test_a_study_on_shards(study, images, tmp_path):
    embed_study(study)
    for number, label in enumerate(("blue", "green", "red")):
        with tarfile.open(tmp_path / f"train-{number:03d}.tar", "w") as archive:
            for path in sorted((images / "train" / label).iterdir()):
                for name, data in (
                    (path.name, path.read_bytes()),
                    (f"{path.stem}.cls", label.encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    pattern = str(tmp_path / "train-{000..002}.tar")
    config = config_of(tmp_path, data=DataSection(source=(pattern,)))
    other = Study.create(tmp_path / "shards-study", config)
    result = embed_study(other).results[0]
    assert (result.embedded, result.reused) == (0, 12)
    assert other.scan().pool.ids[0] == "train-000/blue000"
    assert other.scan().pool.labels[0] == "blue"
    one_more = config_of(tmp_path, data=DataSection(source=(pattern.replace("002", "003"),)))
    with pytest.raises(InputError, match=r"no .*train-003\.tar"):
        Study.create(tmp_path / "no", one_more)
