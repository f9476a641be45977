"""A store that can only be read: what needs no write works, the rest says so in one line."""

import csv
import os
import shutil
import subprocess
import sys

import pytest
from study_fixtures import write_encoder, write_images

from feature_store import open_store
from feature_store.errors import StoreInputError
from svp.cli import run

STUDY = ["--source", "images", "--encoder", "encoder", "--store"]
#: Root may write anything, unless it gives that up.
_ROOT = os.name == "posix" and os.geteuid() == 0
_LESS = "-dac_override,-dac_read_search"
_WITHOUT = ["setpriv", f"--bounding-set={_LESS}", f"--inh-caps={_LESS}"] if _ROOT else []

pytestmark = pytest.mark.skipif(
    os.name != "posix" or (_ROOT and shutil.which("setpriv") is None),
    reason="nothing here is forbidden to this user",
)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    write_images(root / "images", train=6, test=2)
    write_encoder(root / "encoder")
    (root / "file").touch()
    (root / "locked").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        assert run(["init", "study", *STUDY, "store"]) == 0
        assert run(["embed", "study", "--device", "cpu"]) == 0
    folders = [root / "locked", *(p for p in (root / "store").rglob("*")), root / "store"]
    for path in folders:
        path.chmod(path.stat().st_mode & ~0o222)
    yield root
    for path in reversed(folders):
        path.chmod(path.stat().st_mode | 0o200)


@pytest.fixture
def svp(material):
    """Run a command as a user whom modes bind: exit code, stdout, stderr."""

    def call(*words):
        done = subprocess.run(
            [*_WITHOUT, sys.executable, "-m", "svp", *words],
            capture_output=True,
            text=True,
            cwd=material,
            env={**os.environ, "SVP_CACHE_DIR": str(material / "cache")},
        )
        return done.returncode, done.stdout, done.stderr

    return call


def _said(err):
    lines = [line for line in err.splitlines() if line.startswith("svp: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.slow
def test_what_needs_no_write_works(svp, material):
    encoder = open_store(material / "store").encoders()[0]
    for words in (
        ["store", "ls", "store"],
        ["store", "show", "store", encoder],
        ["store", "verify", "store"],
        ["store", "export", "store", encoder, "vectors.parquet", "--format", "parquet"],
        ["store", "copy", "store", "copied"],
        ["embed", "study", "--device", "cpu"],
        ["select", "study", "-n", "4", "--device", "cpu"],
    ):
        code, _, err = svp(*words)
        assert code == 0, (words, err)
    with (material / "study/rounds/000/selection.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 4


@pytest.mark.slow
def test_new_images_for_it_are_refused_and_nothing_is_lost(svp, material):
    shutil.copytree(material / "images", material / "more", dirs_exist_ok=True)
    write_images(material / "more", train=7, test=2, seed=1)
    code, out, err = svp(
        *("embed", "--source", "more", "--encoder", "encoder", "--store", "store"),
        *("--device", "cpu"),
    )
    assert (code, out) == (3, "")
    assert f"A store must be a folder that can be written. Got {material / 'store'}" in _said(err)
    assert ".probe" not in err
    assert svp("store", "verify", "store")[0] == 0


@pytest.mark.parametrize(
    ("store", "named"),
    [
        ("file", "a file"),
        ("file/below", "below the file"),
        ("locked", "no permission to write"),
        ("locked/below", "no permission to write"),
    ],
)
def test_a_place_for_no_store_is_refused_at_once(svp, material, store, named):
    code, out, err = svp("init", "refused", *STUDY, store)
    assert (code, out) == (3, "")
    said = _said(err)
    assert "A store must be" in said
    assert f"Got {material / store}" in said
    assert named in said
    assert not (material / "refused").exists()


def test_a_study_may_begin_on_a_store_that_can_only_be_read(svp, material):
    assert svp("init", "second", *STUDY, "store")[0] == 0
    shutil.rmtree(material / "second")


def test_the_probe_of_a_file_system_is_not_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreInputError, match="A store must be a folder") as caught:
        open_store(tmp_path / "file", create=True)
    assert ".probe" not in str(caught.value)
