"""Workers keep their own number of threads where that gives the same bits."""

import json
import subprocess
import sys
import textwrap

PROGRAM = """
import json
import sys

import torch

from svp.cluster.device import enough_threads

torch.set_num_threads(1)
seen = []


def alike():
    seen.append(torch.get_num_threads())
    return torch.ones(8)


def different():
    return torch.full((8,), float(torch.get_num_threads()))


kept = enough_threads(3, alike), seen, torch.get_num_threads()
print(json.dumps([*kept, enough_threads(1, different), enough_threads(3, different)]))
"""


def test_the_clients_number_is_taken_only_where_bits_depend_on_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [1, [3, 1], 1, 1, 3]
