import subprocess
import sys
from pathlib import Path

import pytest

UPKEEP = Path(__file__).with_name("killed_upkeep.py")


@pytest.mark.parametrize("mode", ["copy", "compact"])
@pytest.mark.parametrize(("every", "first"), [(17, 3), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_killed_at_each_file_operation(tmp_path, child_environment, mode, every, first):
    done = subprocess.run(
        [sys.executable, UPKEEP, mode, tmp_path, str(every), str(first)],
        env=child_environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80, "it was to be killed at many places"
