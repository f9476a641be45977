"""What strategies hold, measured: no more than they declare.

Each runs in a fork of a process that has everything loaded, so that only its own memory grows. A
cap of what it declares leaves it no cache.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from svp.strategies.catalog import names

_QUICK = ("margin", "coreset", "margin+prefilter")
_WRAPPED = tuple(
    f"margin+{around}"
    for around in (
        "random_share",
        "collapse",
        "equal",
        "proportional",
        "class_balance",
        "prefilter",
        "all",
    )
)
_SLACK = (
    40 * 2**20
)  # what may grow between two looks, kernels' workspaces, code loaded on first use

_PROGRAM = """
import ctypes, gc, json, os, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from test_strategies import _WRAPPINGS, run_strategy
from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.strategies.base import Budget, PoolView
from svp.strategies.catalog import build_strategy
from svp.strategies.keys import keys_of
from svp.strategies.wrapping import wrap

def status(key):
    with open("/proc/self/status") as stream:
        return next(int(l.split()[1]) * 1024 for l in stream if l.startswith(key + ":"))

def pool(n, d, c, labelled):
    rng = np.random.default_rng(0)
    y = rng.integers(0, c, n)
    x = torch.from_numpy(rng.normal(size=(n, d)).astype(np.float32))
    x += torch.from_numpy(rng.normal(size=(c, d)).astype(np.float32))[torch.from_numpy(y)]
    rows = np.arange(labelled)
    proxy = fit_proxy(x[:labelled], torch.from_numpy(y[:labelled]), c, LinearConfig(),
                      standardiser=Standardiser.fit(x), seed=0, device="cpu")
    x = x.half()  # as stores hold them: a float32 copy of the pool would show
    return PoolView(embeddings_Nd=x, keys_N=keys_of(map(str, range(n))),
                    unlabelled_U=np.arange(labelled, n), labelled_L=rows, y_L=y[:labelled],
                    n_classes=c, proxy=proxy, views=(x, x), groups_N=np.arange(n) % 4)

torch.set_num_threads(1)
small, large = pool(400, 256, 10, 100), pool(int(sys.argv[2]), 256, 10, 200)
for name in sys.argv[3:]:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        continue
    try:
        inner, _, around = name.partition("+")
        strategy = build_strategy(inner)
        if around:
            strategy = wrap(strategy, _WRAPPINGS[around])
        run_strategy(strategy, small, 20, 0)  # loads what is loaded on first use
        declared = strategy.cost(large.shape(100, Budget())).bytes
        gc.collect()
        # Blocks that loading freed are no reserve for the strategy.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
        before = status("VmRSS")
        run_strategy(strategy, large, 100, 0, Budget(memory_bytes=declared))
        grown = status("VmHWM") - before
        print(json.dumps({"name": name, "declared": declared, "grown": grown}), flush=True)
    except BaseException as error:
        print(json.dumps({"name": name, "error": repr(error)}), flush=True)
    os._exit(0)
"""


def _measure(chosen: tuple[str, ...], rows: int) -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(Path(__file__).parent), str(rows), *chosen],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["name"] for one in found] == list(chosen)
    assert not [one for one in found if "error" in one]
    return {one["name"]: one for one in found}


def _too_much(found: dict[str, dict[str, float]]) -> dict[str, str]:
    return {
        name: f"declared {one['declared'] / 2**20:.0f} MiB, held {one['grown'] / 2**20:.0f} MiB"
        for name, one in found.items()
        if one["grown"] > one["declared"] + _SLACK
    }


pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's own counters"
)


def test_some_strategies_hold_what_they_declare() -> None:
    assert not _too_much(_measure(_QUICK, 100_000))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # all pairs of the pool, on one thread
@pytest.mark.parametrize("name", [*names(), *_WRAPPED])
def test_every_strategy_holds_what_it_declares(name: str) -> None:
    assert not _too_much(_measure((name,), 60_000))
