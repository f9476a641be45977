"""Processes that test_kill.py kills: python killed_writer.py MODE STORE ...

run STORE LOG PAUSE_S      embeds all rows, writing each computed chunk to the log
steps STORE EVERY FIRST    forks writers killed at their n-th file operation, for every EVERY-th n
"""

import hashlib
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from feature_store import FeatureStore, LocalStorage, Table, open_store

ROWS, DIM, SIZES = 100, 8, {"chunk_rows": 8, "segment_rows": 40}
IDENTITY = {"arch": "tiny"}


# The same as in conftest.py, whose import of pytest would be most of a process's life.
def all_digests() -> np.ndarray:
    rows = [hashlib.sha256(b"%d" % i).digest() for i in range(ROWS)]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32).copy()


def embed(digests: np.ndarray) -> np.ndarray:
    return (digests[:, :DIM].astype(np.float32) - 128).astype(np.float16)


def embed_all(table: Table, log: int, pause_s: float) -> None:
    digests = all_digests()
    for plan in table.plan(digests[table.missing(digests)], dim=DIM, dtype="float16", **SIZES):
        writer = table.writer(plan)
        for chunk in writer.pending():
            os.write(log, f"{plan.id} {chunk.index}\n".encode())
            time.sleep(pause_s)
            writer.write(chunk, embed(plan.digests[chunk.start : chunk.stop]))
        writer.seal()


def run(url: str, log: str, pause_s: str) -> None:
    store = open_store(url, create=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    table = store.table(store.put_encoder(IDENTITY))
    print("ready", flush=True)
    embed_all(table, handle, float(pause_s))


def steps(root: str, every: str, first: str) -> None:
    step, finished = int(first), False
    while not finished:
        directory = Path(root) / f"{step:05d}"
        directory.mkdir()
        finished = _killed_at(directory, step)
        _check(directory)
        step += int(every)
    print(step)


def _killed_at(directory: Path, step: int) -> bool:
    """Run a writer that dies at its `step`-th file operation; return whether it got to the end."""
    # Without fsync, which a killed process does not need: hundreds of runs finish in seconds.
    open_store(directory / "store", create=True)
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, arguments: tuple) -> None:
            nonlocal left
            if event == "open" or event.startswith("os."):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        _write(directory)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status)


def _write(directory: Path) -> None:
    store = FeatureStore(LocalStorage(directory / "store", durable=False))
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    embed_all(store.table(store.put_encoder(IDENTITY)), log, 0)
    os.close(log)


def _check(directory: Path) -> None:
    store = open_store(directory / "store")
    published: set[str] = set()
    if store.encoders():
        table = store.table(store.encoders()[0])
        assert table.verify() == []
        published = {segment.id for segment in table.segments()}
        digests = all_digests()
        there = digests[[i for i in range(ROWS) if i not in set(table.missing(digests).tolist())]]
        assert table.read(there).tobytes() == embed(there).tobytes()
    log = directory / "log"
    before = log.read_text().split("\n") if log.exists() else []
    _write(directory)
    after = log.read_text().split("\n")[max(len(before) - 1, 0) :]
    assert not {line.split()[0] for line in after if line} & published
    repeated = [line for line, times in Counter(log.read_text().splitlines()).items() if times > 1]
    assert len(repeated) <= 1, repeated
    table = store.table(store.encoders()[0])
    assert (table.read(all_digests()) == embed(all_digests())).all()
    assert table.verify() == []
    # Elsewhere a killed process may leave a small temporary file; segments are swept when sealed.
    debris = list(directory.glob("store/encoders/*/*/segments/*/**/.*"))
    assert debris == [], debris


if __name__ == "__main__":
    {"run": run, "steps": steps}[sys.argv[1]](*sys.argv[2:])
