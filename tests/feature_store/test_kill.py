import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from feature_store import open_store

WRITER = Path(__file__).with_name("killed_writer.py")
ROWS = 100


def _start(environment, *arguments):
    return subprocess.Popen(
        [sys.executable, WRITER, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def _kill_until_done(tmp_path, environment, samples, kills, seed, pause_s=0.005):
    rng = random.Random(seed)
    url, log = tmp_path / "store", tmp_path / "log"
    digests = samples.digests(ROWS)
    for _ in range(kills):
        published, logged = set(), 0
        if log.exists():
            table = open_store(url).table(open_store(url).encoders()[0])
            published = {segment.id for segment in table.segments()}
            logged = len(log.read_text().splitlines())
        with _start(environment, "run", url, log, pause_s) as child:
            assert child.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.12))
            child.send_signal(signal.SIGKILL)
        table = open_store(url).table(open_store(url).encoders()[0])
        assert table.verify() == []
        missing = set(table.missing(digests).tolist())
        there = digests[[row for row in range(ROWS) if row not in missing]]
        assert table.read(there).tobytes() == samples.embed(there).tobytes()
        computed = log.read_text().splitlines()[logged:] if log.exists() else []
        assert not {line.split()[0] for line in computed} & published
    with _start(environment, "run", url, log, 0) as child:
        assert child.wait() == 0
    lines = Counter(log.read_text().splitlines())
    assert len(lines) == 13  # 5 + 5 + 3 chunks of 8 rows in segments of 40
    assert sum(lines.values()) - len(lines) <= kills, "a kill costs at most one chunk"
    table = open_store(url).table(open_store(url).encoders()[0])
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
    assert len(table.segments()) == 3
    assert table.verify() == []
    files = {path: path.stat().st_mtime_ns for path in url.rglob("*")}
    with _start(environment, "run", url, log, 0) as child:
        assert child.wait() == 0
    lately = {path: path.stat().st_mtime_ns for path in url.rglob("*") if path.is_file()}
    assert lately == {path: files[path] for path in lately}, "running again must change nothing"
    assert Counter(log.read_text().splitlines()) == lines


def test_killed_at_random_instants(tmp_path, samples, child_environment):
    _kill_until_done(tmp_path, child_environment, samples, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_many_random_instants(tmp_path, samples, child_environment, seed):
    _kill_until_done(tmp_path, child_environment, samples, kills=15, seed=seed, pause_s=0.001)


@pytest.mark.parametrize(("every", "first"), [(23, 3), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_killed_at_each_file_operation(tmp_path, child_environment, every, first):
    with _start(child_environment, "steps", tmp_path, every, first) as child:
        printed = child.stdout.read()
        assert child.wait() == 0
    assert int(printed) > 150, "the writer was to be killed at many places"


def test_racing_writers_agree(tmp_path, samples, child_environment):
    url = tmp_path / "store"
    children = [
        _start(child_environment, "run", url, tmp_path / f"log-{i}", 0.001) for i in range(3)
    ]
    for child in children:
        with child:
            child.stdout.read()
            assert child.wait() == 0
    table = open_store(url).table(open_store(url).encoders()[0])
    digests = samples.digests(ROWS)
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
    assert len(table.segments()) == 3
    assert table.rows == ROWS
    assert table.verify() == []
