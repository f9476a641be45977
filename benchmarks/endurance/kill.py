"""Hundreds of writers killed at random instants; nothing published may be wrong.

    python -m benchmarks.endurance.kill                200 kills a trial, about 15 minutes
    python -m benchmarks.endurance.kill --kills 2 --trials single shards

Trials: one process; three that share nothing but the store; one that writes to an S3 service; the
same with a service that fails one request in ten; a full disk; the workers of `svp embed --dask`,
whose table must be an undisturbed one's. After every kill each stored byte of
what is published is checked, and each row is compared with what it must be. When a store is whole,
the log says how many chunks were computed twice: at most one for each killed writer.

The full disk is a small tmpfs where this process may mount one, otherwise a limit on the size of a
file. Everything ends in `benchmarks/results/endurance.json`; exit 1 if anything was wrong.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.endurance import dask_workers, writer
from feature_store import FeatureStoreError, Table, open_store

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "endurance.json"
_SHARDS = 3
_FULL_BYTES = (100_000, 900_000)  # of the small disk; a whole store needs about 1.1 MB


@dataclass(kw_only=True)
class Tally:
    """What a trial counted."""

    trial: str
    kills: int = 0
    stores: int = 0
    checks: int = 0
    """Times that all published bytes and rows were compared."""
    computed: int = 0
    """Chunks, over all stores."""
    repeated: int = 0
    """Of these, computed before."""
    allowed: int = 0
    """Of these, one for each killed writer."""
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where one store of a trial is."""

    url: str
    log: Path
    environment: dict[str, str]
    prepare: Callable[[], object] | None = None
    """Called in each writer's process before it starts."""
    before_end: Callable[[], object] = lambda: None
    """Called before the last writer, which must come to the end."""


def check(place: Place, tally: Tally) -> set[str]:
    """Compare all that is published with what it must be; return the published segments."""
    tally.checks += 1
    try:
        store = open_store(place.url)
        encoders = store.encoders()
        if not encoders:
            return set()
        table = store.table(encoders[0])
        tally.wrong += [problem.what for problem in table.verify()]
        _compare(table, tally)
        return {segment.id for segment in table.segments()}
    except FileNotFoundError:
        return set()  # killed before there was a store
    except FeatureStoreError as error:
        tally.wrong.append(f"{type(error).__name__}: {error}")
        return set()


def _compare(table: Table, tally: Tally) -> None:
    digests = writer.all_digests()
    there = np.setdiff1d(np.arange(len(digests)), table.missing(digests))
    if len(there):
        read, expected = table.read(digests[there]), writer.embed(digests[there])
        if read.tobytes() != expected.tobytes():
            tally.wrong.append(f"{int((read != expected).any(axis=1).sum())} rows differ")


def lines(log: Path) -> list[str]:
    """Return the chunks that writers began; a line that a kill cut off counts."""
    return log.read_text().splitlines() if log.exists() else []


def start(place: Place, shard: int, of: int, pause_s: float) -> subprocess.Popen[str]:
    words = [place.url, str(place.log), str(pause_s), str(shard), str(of)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.endurance.writer", *words],
        cwd=ROOT,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=place.prepare,
    )


def interrupted(
    place: Place, of: int, begun: int, delay_s: float, tally: Tally, pause_s: float
) -> tuple[int, bool]:
    """Run writers until they began some chunks, then kill them a moment later.

    Returns how many died so, and if all came to the end before.
    """
    before = len(lines(place.log))
    running = [start(place, shard, of, pause_s) for shard in range(of)]
    for child in running:
        assert child.stdout is not None
        child.stdout.readline()
    # By what they did, not by the clock: otherwise a slow service is killed before it begins.
    while len(lines(place.log)) < before + begun and None in [child.poll() for child in running]:
        time.sleep(0.001)
    time.sleep(delay_s)
    for child in running:
        child.send_signal(signal.SIGKILL)
    killed = 0
    for child in running:
        _, said = child.communicate()
        killed += child.returncode == -signal.SIGKILL
        if child.returncode not in {0, -signal.SIGKILL}:
            tally.wrong.append(f"a writer failed: {said.strip().splitlines()[-1:]}")
    return killed, killed == 0


def one_store(
    place: Place,
    tally: Tally,
    rng: random.Random,
    most_kills: int,
    *,
    of: int = 1,
    pause_s: float = 0.004,
) -> None:
    """Kill writers of one store until it is whole or there were enough, then let one finish."""
    finished = False
    while not finished and tally.kills < most_kills:
        published, before = check(place, tally), len(lines(place.log))
        # Few chunks, so that a store takes many kills; none, so that openings are hit, too.
        begun, delay_s = rng.randrange(12), rng.uniform(0, 5 * pause_s)
        killed, finished = interrupted(place, of, begun, delay_s, tally, pause_s)
        tally.kills += killed
        tally.allowed += killed
        again = {line.split()[0] for line in lines(place.log)[before:]} & published
        if again:
            tally.wrong.append(f"published segments computed again: {sorted(again)}")
    finish(place, tally)


def finish(place: Place, tally: Tally) -> None:
    """Let one writer come to the end, and look at the whole."""
    place.before_end()
    _, said = (child := start(place, 0, 1, 0)).communicate()
    if child.returncode:
        tally.wrong.append(f"the last writer failed: {said.strip().splitlines()[-1:]}")
    check(place, tally)
    store = open_store(place.url)
    missing = len(store.table(store.encoders()[0]).missing(writer.all_digests()))
    if missing:
        tally.wrong.append(f"{missing} rows are missing from a whole store")
    counted = Counter(lines(place.log))
    tally.stores += 1
    tally.computed += sum(counted.values())
    tally.repeated += sum(counted.values()) - len(counted)


def _places(root: Path, environment: dict[str, str]) -> Iterator[Place]:
    for number in itertools.count():
        yield Place(str(root / f"store-{number}"), root / f"log-{number}", environment)


def local(tally: Tally, rng: random.Random, kills: int, root: Path, *, of: int) -> None:
    """One or several processes on a directory."""
    for place in _places(root, dict(os.environ)):
        if tally.kills >= kills:
            return
        one_store(place, tally, rng, kills, of=of)


def bucket(tally: Tally, rng: random.Random, kills: int, root: Path, *, flaky: bool) -> None:
    """One process on an S3 service, which may fail one request in ten."""
    sys.path.insert(0, str(ROOT))
    from tests.buckets.s3 import running_s3

    with running_s3() as service:
        service.make_bucket("bucket")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ |= service.environment
        if flaky:
            lottery = random.Random(0)
            wrongs = [500, 503, 429, service.DROP]

            def misbehave(*_: object) -> int | None:
                return lottery.choice(wrongs) if lottery.random() < 0.1 else None

            service.misbehave = misbehave
        for number in itertools.count():
            if tally.kills >= kills:
                return
            name = f"{'flaky' if flaky else 'steady'}-{number}"
            place = Place(f"s3://bucket/{name}", root / f"log-{name}", dict(os.environ))
            one_store(place, tally, rng, kills, pause_s=0.01)


def full_disk(tally: Tally, rng: random.Random, kills: int, root: Path) -> None:
    """A disk that gets full in the middle; nobody is killed, each full disk counts as one."""
    for number in range(kills):
        with _small_disk(root / f"disk-{number}", rng.randrange(*_FULL_BYTES)) as (disk, how):
            log = root / f"log-full-{number}"
            limited = None if how.grow else how.limit
            place = Place(str(disk / "store"), log, dict(os.environ), limited)
            child = start(place, 0, 1, 0)
            _, said = child.communicate()
            if child.returncode == 0:
                tally.wrong.append("a writer came to the end on a full disk")
            elif "Errno 28" not in said and "Errno 27" not in said:
                tally.wrong.append(f"a full disk gave: {said.strip().splitlines()[-1:]}")
            tally.kills += 1
            tally.allowed += 1
            check(place, tally)
            finish(
                Place(place.url, log, place.environment, None, how.grow or (lambda: None)), tally
            )


@dataclass(frozen=True)
class _Disk:
    grow: Callable[[], object] | None
    limit: Callable[[], object] | None


@contextlib.contextmanager
def _small_disk(path: Path, size: int) -> Iterator[tuple[Path, _Disk]]:
    path.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    mounted = (
        sys.platform == "linux"
        and os.geteuid() == 0
        and subprocess.run(options, capture_output=True, check=False).returncode == 0
    )
    if not mounted:
        # Smaller than a chunk: the first one fails in the middle, with EFBIG instead of ENOSPC.
        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size % 16_000 + 1_000,) * 2)

        yield path, _Disk(None, limit)
        return

    def grow() -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", str(path)], check=True)

    try:
        yield path, _Disk(grow, None)
    finally:
        subprocess.run(["umount", str(path)], check=True)


TRIALS: dict[str, Callable[[Tally, random.Random, int, Path], None]] = {
    "single": lambda *given: local(*given, of=1),
    "shards": lambda *given: local(*given, of=_SHARDS),
    "s3": lambda *given: bucket(*given, flaky=False),
    "s3-flaky": lambda *given: bucket(*given, flaky=True),
    "full-disk": full_disk,
    "dask": dask_workers.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="of each trial")
    parser.add_argument("--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary one")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    tallies = []
    print(f"{'trial':10} {'kills':>6} {'stores':>7} {'checks':>7} {'chunks':>7} {'again':>6} wrong")
    for name in arguments.trials:
        tally = Tally(trial=name)
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
            rng = random.Random(f"{arguments.seed} {name}")
            TRIALS[name](tally, rng, arguments.kills, Path(folder))
        tally.seconds = round(time.monotonic() - begun, 1)
        if tally.repeated > tally.allowed:
            tally.wrong.append(f"{tally.repeated} chunks computed twice by {tally.allowed} kills")
        tallies.append(tally)
        print(
            f"{name:10} {tally.kills:6,} {tally.stores:7,} {tally.checks:7,} {tally.computed:7,} "
            f"{tally.repeated:6,} {len(tally.wrong)}",
            flush=True,
        )
        for what in tally.wrong[:10]:
            print(f"  {what}")
    record = {
        "schema": "svp.benchmark.endurance/1",
        "seed": arguments.seed,
        "system": platform.platform(),
        "trials": [asdict(tally) for tally in tallies],
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(any(tally.wrong for tally in tallies))


if __name__ == "__main__":
    main()
