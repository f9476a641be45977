"""The trial of `svp embed --dask` whose workers are killed; see `benchmarks.endurance.kill`.

A cluster of worker processes under nannies, which start a killed one again, and the command itself
as a process of its own. Its table must be that of an undisturbed `svp embed`, byte by byte.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from benchmarks.endurance import counted
from feature_store import FeatureStoreError, Table, open_store

ROOT = Path(__file__).parents[2]
_WORKERS, _IMAGES, _SIDE = 3, 384, 16
_CHUNK_ROWS, _SEGMENT_ROWS = 16, 64
_PAUSE_S = 0.1  # of every chunk, so that kills find workers at work
_TEMPORARY = 75
_PATIENCE_S = 600.0


class Tally(Protocol):
    """What the trial counts; see `benchmarks.endurance.kill.Tally`."""

    kills: int
    stores: int
    checks: int
    computed: int
    repeated: int
    allowed: int
    wrong: list[str]


def run(tally: Tally, rng: random.Random, kills: int, root: Path) -> None:
    """Embed into one store after the other until enough workers were killed."""
    _write_material(root)
    expected = _table(root / "undisturbed", [_embed(root, root / "undisturbed")], tally)
    if expected is None:
        return
    with _cluster(root / "log") as cluster:
        for number in itertools.count():
            if tally.kills >= kills:
                return
            store = root / f"store-{number}"
            before = len(_lines(root / "log"))
            _disturbed(root, store, cluster, tally, rng, kills)
            tally.checks += 1
            found = _table(store, [], tally)
            if found is not None and _content(found) != _content(expected):
                tally.wrong.append(f"{store.name} is not the undisturbed table")
            times = Counter(_lines(root / "log")[before:])
            tally.stores += 1
            tally.computed += sum(times.values())
            tally.repeated += sum(times.values()) - len(times)


def _disturbed(
    root: Path, store: Path, cluster, tally: Tally, rng: random.Random, kills: int
) -> None:
    """Run the command to its end, again where it says that this may help, and kill meanwhile."""
    while True:
        child = _embed(root, store, "--dask", cluster.scheduler_address)
        while child.poll() is None and tally.kills < kills:
            # By what they did, not by the clock; none, so that openings are hit, too.
            seen, begun = len(_lines(root / "log")), rng.randrange(10)
            deadline = time.monotonic() + _PATIENCE_S
            while child.poll() is None and len(_lines(root / "log")) < seen + begun:
                time.sleep(0.002)
                if time.monotonic() > deadline:
                    child.kill()
                    tally.wrong.append("nothing was computed for long")
                    return
            time.sleep(rng.uniform(0, 3 * _PAUSE_S))
            if child.poll() is None:
                tally.kills += _kill_one(cluster, rng)
                tally.allowed = tally.kills
        _, said = child.communicate()
        if child.returncode == 0:
            return
        # A part may happen to cost several workers; then the command ends as temporary.
        if child.returncode != _TEMPORARY:
            tally.wrong.append(f"exit {child.returncode}: {said.strip().splitlines()[-1:]}")
            return


def _kill_one(cluster, rng: random.Random) -> int:
    """Kill one of the worker processes that live now; return how many were killed."""
    alive = [
        nanny.process.pid
        for nanny in cluster.workers.values()
        if nanny.process is not None and nanny.process.pid is not None
    ]
    if not alive:
        return 0
    try:
        os.kill(rng.choice(sorted(alive)), signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _table(store: Path, children: list[subprocess.Popen[str]], tally: Tally) -> Table | None:
    for child in children:
        _, said = child.communicate()
        if child.returncode:
            tally.wrong.append(f"the undisturbed run failed: {said.strip().splitlines()[-1:]}")
            return None
    try:
        opened = open_store(store)
        table = opened.table(opened.encoders()[0])
        tally.wrong += [problem.what for problem in table.verify()]
    except (FeatureStoreError, FileNotFoundError, IndexError) as error:
        tally.wrong.append(f"{type(error).__name__}: {error}")
        return None
    return table


def _content(table: Table) -> dict[bytes, bytes]:
    """Return every row by its item."""
    digests = table.digests()
    x = table.read(digests)
    return {row.tobytes(): vector.tobytes() for row, vector in zip(digests, x, strict=True)}


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def _embed(root: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    words = ["--source", root / "images", "--encoder", root / "encoder", "--store", store]
    sizes = {"batch": _CHUNK_ROWS, "chunk": _CHUNK_ROWS, "segment": _SEGMENT_ROWS}
    command = [sys.executable, "-m", "svp", "embed", *map(str, words), "--workers", "1"]
    for name, rows in sizes.items():
        command += [f"--{name}-{'size' if name == 'batch' else 'rows'}", str(rows)]
    return subprocess.Popen(
        [*command, "--device", "cpu", *more],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def _cluster(log: Path) -> Iterator[object]:
    import distributed

    noted = {counted.LOG: str(log), counted.PAUSE_S: str(_PAUSE_S), "OMP_NUM_THREADS": "1"}
    with distributed.LocalCluster(
        n_workers=_WORKERS,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=50,
        preload=[str(Path(counted.__file__))],
        env=noted,
    ) as cluster:
        yield cluster


def _write_material(root: Path) -> None:
    import torch

    from svp.encoders.backbones import build_backbone
    from svp.encoders.folder import write_encoder_folder
    from svp.encoders.preprocessing import imagenet_preprocessing

    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(_IMAGES):
        pixels = rng.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number:05d}.png")
    seeded = torch.Generator().manual_seed(0)
    module = build_backbone("resnet8", image_size=_SIDE, generator=seeded)
    write_encoder_folder(
        root / "encoder",
        module_state=module.state_dict(),
        arch="resnet8",
        image_size=_SIDE,
        preprocessing=imagenet_preprocessing(_SIDE),
        provenance={},
    )
