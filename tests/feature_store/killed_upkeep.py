"""Upkeep that test_kill_upkeep.py kills: python killed_upkeep.py copy|compact DIRECTORY EVERY FIRST

Forks a process that dies at its n-th file operation, for every EVERY-th n, checks what readers
see, runs the same again and compares the result with that of a run that nobody killed.
"""

import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from feature_store import FeatureStore, LocalStorage, Pool
from feature_store.compaction import compact_table
from feature_store.transfer import copy_store

ROWS, DIM = 60, 8
IDENTITY = {"arch": "tiny"}


def all_digests() -> np.ndarray:
    rows = [hashlib.sha256(b"%d" % i).digest() for i in range(ROWS)]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32).copy()


def embed(digests: np.ndarray) -> np.ndarray:
    return (digests[:, :DIM].astype(np.float32) - 128).astype(np.float16)


def opened(directory: Path) -> FeatureStore:
    # Without fsync, which a killed process does not need.
    storage = LocalStorage(directory, durable=False)
    storage.create("store.json", b'{"format":1,"kind":"svp feature store"}\n')
    return FeatureStore(storage)


def prepare(directory: Path) -> None:
    """Embed three small segments."""
    store, digests = opened(directory), all_digests()
    table = store.table(store.put_encoder(IDENTITY))
    for start in range(0, ROWS, 20):
        part = digests[start : start + 20]
        for plan in table.plan(part, dim=DIM, dtype="float16", chunk_rows=8):
            writer = table.writer(plan)
            for chunk in writer.pending():
                writer.write(chunk, embed(plan.digests[chunk.start : chunk.stop]))
            writer.seal()
    store.put_pool(Pool.create([f"{i:03}" for i in range(ROWS)], ["u"] * ROWS, digests))


def compact(directory: Path) -> None:
    store = opened(directory / "store")
    compact_table(store.storage, store.table(store.encoders()[0]))


def copy(directory: Path) -> None:
    copy_store(opened(directory / "store"), opened(directory / "copy"))


def check_compact(directory: Path) -> None:
    store = opened(directory / "store")
    table = store.table(store.encoders()[0])
    assert table.read(all_digests()).tobytes() == embed(all_digests()).tobytes()
    assert table.verify() == []


def check_copy(directory: Path) -> None:
    store, digests = opened(directory / "copy"), all_digests()
    for encoder_id in store.encoders():
        table = store.table(encoder_id)
        assert table.verify() == []
        there = np.setdiff1d(np.arange(ROWS), table.missing(digests))
        assert table.read(digests[there]).tobytes() == embed(digests[there]).tobytes()
    for pool_id in store.pools():
        store.pool(pool_id)


def content(directory: Path, *, merged_at_any_time: bool) -> dict[str, bytes]:
    """Return what is stored; a manifest says when it was made, so of these only the names count."""
    return {
        str(path.relative_to(directory)): b""
        if merged_at_any_time and path.parent.name == "segments"
        else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(".tmp") and not path.name.startswith(".probe")
    }


def killed_at(step: int, mode: str, directory: Path) -> bool:
    """Run a process that dies at its `step`-th file operation; return whether it got that far."""
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
        RUN[mode](directory)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, status
    return os.WIFSIGNALED(status)


def main(mode: str, root: str, every: str, first: str) -> None:
    whole = Path(root) / "whole"
    prepare(whole / "store")
    source = content(whole / "store", merged_at_any_time=False)
    shutil.copytree(whole, Path(root) / "source")
    RUN[mode](whole)
    wanted = content(whole, merged_at_any_time=mode == "compact")
    assert len(wanted) > len(source)
    step, alive = int(first), True
    while alive:
        directory = Path(root) / f"{step:05d}"
        shutil.copytree(Path(root) / "source", directory)
        alive = killed_at(step, mode, directory)
        CHECK[mode](directory)
        RUN[mode](directory)
        CHECK[mode](directory)
        assert content(directory, merged_at_any_time=mode == "compact") == wanted
        stored = content(directory / "store", merged_at_any_time=False)
        assert source.items() <= stored.items(), "what was published stays as it is"
        # Elsewhere a killed process may leave a small file; published segments are swept.
        debris = list(directory.glob("*/encoders/*/*/segments/*/**/.*"))
        assert debris == [], debris
        shutil.rmtree(directory)
        step += int(every)
    print(step)


RUN = {"copy": copy, "compact": compact}
CHECK = {"copy": check_copy, "compact": check_compact}

if __name__ == "__main__":
    main(*sys.argv[1:])
