"""Whether a round is labelled, and a selection that a scheduler may run twice."""

import json
import shutil

import pytest
from study_fixtures import config_of, truth_of, write_labels, write_material

from svp.cli import run
from svp.errors import InputError
from svp.study.labels import import_labels
from svp.study.rounds import select
from svp.study.study import Study
from svp.study.waiting import label_status


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        write_material(root, train=8, test=2)
    return root


@pytest.fixture
def study(material, tmp_path):
    made = Study.create(tmp_path / "study", config_of(material))
    shutil.copy(material / "first" / "encoder.json", made.path)
    return made


def label(study, ids, name="answers.csv"):
    truth = truth_of(study)
    import_labels(study, write_labels(study.path / name, {key: truth[key] for key in ids}))


def test_a_round_is_complete_when_its_last_image_is_labelled(study):
    with pytest.raises(InputError, match="svp select"):
        label_status(study)
    ids = [pick.id for pick in select(study, 5).picks]
    label(study, ids[:3])
    status = label_status(study)
    assert (status.round, status.selected, status.labelled, status.complete) == (0, 5, 3, False)
    # Labels of other images do not stand in for those that were asked for.
    label(study, [key for key in truth_of(study) if key not in ids][:4], "others.csv")
    assert label_status(study).waiting == 2
    assert label_status(study).labels == 7
    label(study, ids[3:], "rest.csv")
    assert label_status(study).complete
    with pytest.raises(InputError, match="must be one of: 0"):
        label_status(study, 3)


def test_an_older_round_can_be_asked_about(study):
    first = [pick.id for pick in select(study, 4).picks]
    label(study, first)
    select(study, 4)
    assert label_status(study, 0).complete
    assert not label_status(study).complete


def test_the_same_request_is_the_same_round_whatever_was_labelled_since(study):
    first = select(study, 4, request="night/select_0")
    label(study, [first.picks[0].id])
    again = select(study, 4, request="night/select_0")
    assert again.reopened
    assert again.picks == first.picks
    assert select(study, 4, request="night/select_1").number == 1


def test_the_command_prints_one_object(study, capsys):
    select(study, 3)
    assert run(["labels", "status", str(study.path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == "svp.labels.status/1"
    assert printed["status"]["waiting"] == 3
    assert run(["labels", "status", str(study.path), "--round", "7"]) == 3
