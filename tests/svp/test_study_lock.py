import subprocess
import sys

import pytest

from svp.errors import TemporaryError
from svp.study.lock import alone

HOLD = """
import sys, time
from pathlib import Path
from svp.study.lock import alone
with alone(Path(sys.argv[1]), "svp select"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_to_come_back(holder, tmp_path):
    expected = pytest.raises(TemporaryError, match="svp refresh while svp select")
    with expected as refused, alone(tmp_path, "svp refresh"):
        pytest.fail("two at once")
    assert refused.value.exit_code == 75


def test_a_kill_frees_the_folder(holder, tmp_path):
    holder.kill()
    holder.wait()
    with alone(tmp_path, "svp select"):
        pass


def test_other_folders_and_later_calls_are_free(holder, tmp_path):
    for _ in range(2):
        with alone(tmp_path / "other", "svp select"):
            assert (tmp_path / "other").is_dir()


def test_an_error_frees_the_folder_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="inside"), alone(tmp_path / "new", "svp finetune"):
        raise ValueError("inside")
    assert not (tmp_path / "new").exists()
    with alone(tmp_path, "svp select"):
        (tmp_path / "written").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["written"]
