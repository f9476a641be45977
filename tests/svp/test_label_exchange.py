"""Rounds go to labelling tools and come back: the same images, whatever the tool did to them."""

import csv
import json
import random
import zipfile
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
from label_material import CLASSES, add_round, new_study, pool_ids

from svp.errors import InputError
from svp.study.label_export import export_items
from svp.study.labels import import_labels, label_files, read_labels


@pytest.fixture
def study(tmp_path):
    made = new_study(tmp_path)
    # Not the order of the pool: the order to label is another one.
    add_round(made, pool_ids(made)[::-1])
    return made


def _write(path, document):
    path.write_text(json.dumps(document))
    return path


def annotated(tasks, answers, *, by=1, day=1):
    """What Label Studio exports after people answered: its ids are its own."""
    done = []
    for number, task in enumerate(tasks, start=901):
        given = []
        for label in answers.get(task["data"]["svp_id"], []):
            who, label, cancelled = label if isinstance(label, tuple) else (by, label, False)
            result = [
                {
                    "from_name": "label",
                    "to_name": "image",
                    "type": "choices",
                    "origin": "manual",
                    "value": {"choices": [label]},
                }
            ]
            given.append(
                {
                    "id": number * 10,
                    "completed_by": who,
                    "was_cancelled": cancelled,
                    "result": [] if cancelled else result,
                    "updated_at": f"2026-03-{day:02d}T10:00:{number % 60:02d}.5Z",
                }
            )
        done.append(
            {**task, "id": number, "annotations": given, "predictions": task.get("predictions", [])}
        )
    return done


def test_tasks_are_in_labelling_order_with_stable_ids_and_guesses(study, tmp_path):
    done = export_items(study, tmp_path / "tasks.json", format="label-studio", classes=("teal",))
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["svp_id"] for task in tasks] == pool_ids(study)[::-1]
    assert [task["data"]["rank"] for task in tasks] == [1, 2, 3, 4, 5, 6]
    first = tasks[0]
    assert first["data"]["reason"] == "the proxy wavers"
    assert first["data"]["utility"] == 1
    assert first["predictions"][0]["score"] == 0.75
    assert first["predictions"][0]["model_version"] == "svp linear proxy, round 0"
    assert first["predictions"][0]["result"][0]["value"] == {"choices": ["red"]}
    assert done.document_root == tmp_path
    assert first["data"]["image"] == f"/data/local-files/?d=images/{first['data']['svp_id']}"
    config = ElementTree.parse(done.files[1]).getroot()
    assert [choice.get("value") for choice in config.iter("Choice")] == [*CLASSES, "teal"]
    assert config.find("Image").get("name") == first["predictions"][0]["result"][0]["to_name"]
    plain = tmp_path / "plain.json"
    export_items(
        study, plain, format="label-studio", guesses=False, images="https://pictures.example/a"
    )
    task = json.loads(plain.read_text())[0]
    assert "predictions" not in task
    assert task["data"]["image"] == f"https://pictures.example/a/{task['data']['svp_id']}"


def test_label_studio_answers_in_random_order_twice_with_a_cancelled_and_a_conflicting_one(
    study, tmp_path
):
    ids = pool_ids(study)
    export_items(study, tmp_path / "tasks.json", format="label-studio")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    answers = {name: [name.split("/")[1]] for name in ids[:4]}
    answers[ids[0]] = [(1, "blue", False), (2, "green", False)]  # equally many: the newest
    answers[ids[1]] = [(1, "blue", True)]  # cancelled
    answers[ids[2]] = [(1, "red", False), (2, "green", False), (3, "green", False)]
    export = annotated(tasks, answers)
    random.Random(3).shuffle(export)
    first = import_labels(study, _write(tmp_path / "a.json", export))
    assert (first.new, first.skipped, first.blank, first.votes) == (3, 1, 2, 6)
    labels = read_labels(study)
    assert labels == {ids[0]: labels[ids[0]], ids[2]: "green", ids[3]: "green"}
    named = {dispute.id: dispute for dispute in first.disputes}
    assert named.keys() == {ids[0], ids[2]}
    assert named[ids[0]].tie
    assert not named[ids[2]].tie
    assert named[ids[2]].votes == (("1", "red"), ("2", "green"), ("3", "green"))
    assert first.agreement.items == 2
    assert first.agreement.pairwise == pytest.approx(1 / 4)
    before = {path: path.read_bytes() for path in study.labels_dir.rglob("*.csv")}
    random.Random(4).shuffle(export)
    again = import_labels(study, _write(tmp_path / "b.json", export))
    assert (again.file, again.votes, again.new, again.unchanged) == (None, 0, 0, 3)
    assert again.disputes == first.disputes
    assert {path: path.read_bytes() for path in study.labels_dir.rglob("*.csv")} == before
    assert read_labels(study) == labels


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_votes_of_several_files_count_together_in_any_order(study, tmp_path, order):
    name = pool_ids(study)[0]
    head = "id,label,annotator,labeled_at\n"
    files = []
    for number, (who, label) in enumerate([("ann", "red"), ("bob", "red"), ("cat", "blue")]):
        files.append(tmp_path / f"{who}.csv")
        files[-1].write_text(f"{head}{name},{label},{who},2026-01-0{number + 1}T00:00:00Z\n")
    for at in order:
        import_labels(study, files[at])
    assert read_labels(study)[name] == "red"
    kept = label_files(study)
    for file in files:  # a retried job
        assert import_labels(study, file).votes == 0
    assert label_files(study) == kept
    weights = tmp_path / "weights.csv"
    weights.write_text("annotator,weight\ncat,5\n")
    assert import_labels(study, files[2], weights=weights).changed == 1
    assert read_labels(study)[name] == "blue"


def test_a_kill_between_labels_and_votes_is_mended_by_the_same_import(study, tmp_path):
    name = pool_ids(study)[0]
    file = tmp_path / "a.csv"
    file.write_text(f"id,label,annotator\n{name},red,ann\n{name},blue,bob\n")
    whole = import_labels(study, file)
    assert (whole.votes, len(whole.disputes)) == (2, 1)
    for path in (study.labels_dir / "votes").iterdir():
        path.unlink()
    mended = import_labels(study, file)
    assert (mended.file, mended.votes, mended.unchanged) == (None, 2, 1)
    assert import_labels(study, file).votes == 0


def test_json_min_csv_and_lost_ids_of_label_studio(study, tmp_path):
    ids = pool_ids(study)
    export_items(study, tmp_path / "tasks.json", format="label-studio")
    written = json.loads((tmp_path / "tasks.json").read_text())
    tasks = {task["data"]["svp_id"]: task["data"] for task in written}
    day = "2026-01-01T00:00:00Z"
    flat = [
        {"id": 7, **tasks[ids[0]], "label": "blue", "annotator": 3, "updated_at": day},
        {"id": 8, **tasks[ids[1]], "label": {"choices": ["green"]}, "annotator": 3},
    ]  # fmt: skip
    assert import_labels(study, _write(tmp_path / "min.json", flat)).new == 2
    table = tmp_path / "ls.csv"
    table.write_text(f"annotator,id,image,label,svp_id,updated_at\n3,9,x,red,{ids[2]},2026-01-02\n")
    assert import_labels(study, table).new == 1
    uploaded = [
        {"id": 1, "data": {"image": f"/data/upload/4/0a1b2c3d-{ids[3].rpartition('/')[2]}"}},
        {"id": 2, "data": {"image": f"/data/local-files/?d=images/{ids[4]}"}},
        {"id": 3, "data": {"image": "gone.png", "svp_digest": tasks[ids[5]]["svp_digest"]}},
    ]
    for task in uploaded:
        result = {"type": "choices", "from_name": "kind", "value": {"choices": ["red"]}}
        task["annotations"] = [{"completed_by": {"email": "ann@x"}, "result": [result]}]
    assert import_labels(study, _write(tmp_path / "lost.json", uploaded)).new == 3
    assert read_labels(study).keys() == set(ids)


def test_cvat_round_trip_keeps_names_and_refuses_two_tags(study, tmp_path):
    ids = pool_ids(study)
    import_labels(study, _csv(tmp_path / "one.csv", {ids[0]: "blue"}))
    path = tmp_path / "round.xml"
    export_items(study, path, format="cvat", number=0)
    tree = ElementTree.parse(path)
    images = tree.getroot().findall("image")
    assert [image.get("name") for image in images] == ids[::-1]
    assert {(image.get("width"), image.get("height")) for image in images} == {("16", "16")}
    assert [tag.get("label") for tag in tree.getroot().iter("tag")] == ["blue"]
    assert [label.text for label in tree.getroot().findall("meta/task/labels/label/name")] == [
        *CLASSES
    ]
    for image in images[:3]:
        ElementTree.SubElement(image, "tag", {"label": "green", "source": "manual"})
    tree.write(tmp_path / "annotations.xml")
    with zipfile.ZipFile(tmp_path / "job.zip", "w") as archive:
        archive.write(tmp_path / "annotations.xml", "annotations.xml")
    done = import_labels(study, tmp_path / "job.zip", annotator="ann")
    assert (done.new, done.unchanged, done.blank, done.votes) == (3, 1, 2, 4)
    ElementTree.SubElement(images[0], "tag", {"label": "red"})
    tree.write(tmp_path / "two.xml")
    with pytest.raises(InputError, match=r"must be one class. Got green, red for train/red"):
        import_labels(study, tmp_path / "two.xml")
    bomb = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>'
    (tmp_path / "bomb.xml").write_text(bomb)
    with pytest.raises(InputError, match="no document type"):
        import_labels(study, tmp_path / "bomb.xml")


def test_fiftyone_round_trip(study, tmp_path):
    ids = pool_ids(study)
    import_labels(study, _csv(tmp_path / "one.csv", {ids[0]: "blue"}))
    folder = tmp_path / "dataset"
    export_items(study, folder, format="fiftyone", number=0)
    document = json.loads((folder / "labels.json").read_text())
    assert list(document["labels"]) == ids[::-1]
    assert document["labels"][ids[0]] == document["classes"].index("blue")
    paths = json.loads((folder / "data.json").read_text())
    assert all((tmp_path / "images" / name).samefile(path) for name, path in paths.items())
    with pytest.raises(InputError, match="proxy's guesses"):
        import_labels(study, folder / "predictions.json")
    document["labels"] |= {ids[1]: 1, ids[2]: {"label": 2, "confidence": None}}
    _write(folder / "labels.json", document)
    assert import_labels(study, folder).new == 2
    samples = [
        {"filepath": paths[ids[3]], "kind": {"_cls": "Classification", "label": "green"}},
        {"filepath": "x.png", "svp_id": ids[4], "kind": {"_cls": "Classification", "label": "red"}},
        {"filepath": paths[ids[5]], "kind": None},
    ]  # fmt: skip
    done = import_labels(study, _write(tmp_path / "samples.json", {"samples": samples}))
    assert (done.new, done.blank) == (2, 1)
    samples[0]["guess"] = {"_cls": "Classification", "label": "red"}
    several = _write(tmp_path / "several.json", {"samples": samples})
    with pytest.raises(InputError, match=r"one field of classes\. Got guess, kind"):
        import_labels(study, several)
    assert import_labels(study, several, field="kind").unchanged == 2


def test_ambiguous_and_unknown_names(study, tmp_path):
    ids = pool_ids(study)
    source = tmp_path / "images"
    other = source / "train" / "other"
    other.mkdir()
    (other / "blue000.png").write_bytes((source / ids[3]).read_bytes())
    xml = tmp_path / "names.xml"
    xml.write_text(
        '<annotations><image name="blue000.png"><tag label="blue"/></image></annotations>'
    )
    with pytest.raises(InputError, match=r"must mean one item.*other/blue000.png"):
        import_labels(study, xml)
    xml.write_text(
        '<annotations><image name="blue001.png"><tag label="blue"/></image>'
        '<image name="gone.png"><tag label="blue"/></image></annotations>'
    )
    with pytest.raises(InputError, match=r"1 unknown.*gone\.png"):
        import_labels(study, xml)
    assert not study.labels_dir.exists()
    done = import_labels(study, xml, skip_unknown=True)
    assert (done.new, done.unknown) == (1, ("gone.png",))


def test_tables_of_a_round(study, tmp_path):
    ids = pool_ids(study)
    import_labels(study, _csv(tmp_path / "one.csv", {ids[0]: "blue"}))
    export_items(study, tmp_path / "all.csv", number=0)
    with (tmp_path / "all.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["label"]) for row in rows][-1] == (ids[0], "blue")
    export_items(study, tmp_path / "todo.parquet", format="parquet")
    table = pq.read_table(tmp_path / "todo.parquet")
    assert table["id"].to_pylist() == ids[:0:-1]
    assert import_labels(study, tmp_path / "todo.parquet").blank == 5
    with pytest.raises(InputError, match=r"must be one of: 0\. Got 4"):
        export_items(study, tmp_path / "no.csv", number=4)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "must be JSON"),
        ("a.json", '{"x": 1}', "Label Studio or FiftyOne"),
        ("a.json", '[{"data": 3, "annotations": [{"result": 4}]}]', "as Label Studio exports it"),
        ("a.json", '{"labels": {"x": 9}, "classes": ["a"]}', "as FiftyOne exports it"),
        ("a.xml", "<annotations>", "XML as CVAT exports it"),
        ("a.xml", "<html/>", "must hold <annotations>"),
        ("a.zip", "PK", "XML as CVAT exports it"),
    ],
)
def test_damaged_files_write_nothing(study, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        import_labels(study, tmp_path / name)
    assert not study.labels_dir.exists()


def _csv(path, labels):
    path.write_text("id,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items()))
    return path
