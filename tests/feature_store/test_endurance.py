import json
import subprocess
import sys
from pathlib import Path

import pytest

TRIALS = ("single", "shards", "full-disk")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")
def test_a_few_kills_of_the_long_trials(tmp_path, child_environment):
    command = [sys.executable, "-m", "benchmarks.endurance.kill", "--kills", "3"]
    command += ["--directory", tmp_path, "--output", tmp_path / "out.json", "--trials", *TRIALS]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=child_environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for trial in json.loads((tmp_path / "out.json").read_text())["trials"]:
        assert trial["kills"] >= 3
        assert trial["checks"] > trial["stores"] > 0
        assert trial["computed"] - trial["repeated"] == 50 * trial["stores"]
        assert trial["repeated"] <= trial["allowed"]
