"""One selection call of another project's own code, in a process of its own.

`benchmarks.speed.strategies` starts it on the arrays and the head that svp's strategies get. The
code runs from a clone, unchanged. What the run changes, because that code expects a GPU and
packages that selection does not use: `cuda` calls stay on the CPU, and trackers and other unused
imports are empty modules. What the peers call dataset, trainer and network are thin stand-ins that
serve arrays: standardised embeddings, and the shared linear head.

LabelBench and ASVP select from stored predictions, in LabelBench's float64: `seconds` is the
selection, `forward_s` one product and softmax over the pool, far less than their own evaluation.
DISTIL and active_learning evaluate inside the call: `forward_s` is 0.

Two more need no clone: `plain`, the loops as textbooks write them, with one product over the whole
pool per pick, and `sklearn`.

Clones:
    https://github.com/EfficientTraining/LabelBench
    https://github.com/ZiTingW/asvp
    https://github.com/decile-team/distil
    https://github.com/zeyademam/active_learning
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch

from benchmarks.speed import pools
from benchmarks.speed.machine import stop_after
from svp.strategies.base import Int64Array

_SHARE_OF_MEMORY: Final = 0.85
_BATCH: Final = 1000
_PROBES: Final = (4, 16)
_STORED: Final = ("labelbench", "asvp")  # select from predictions made before


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One of svp's strategies and a peer's program for the same thing.

    Attributes:
        strategy: As `benchmarks.speed.strategies` writes it, `name` or `name:param=value`.
        peer: `plain`, `sklearn`, or the clone: `labelbench`, `asvp`, `distil`, `zeyademam`.
        method: Its name there.
        same: What must agree: `picks`, `radius` (of the cover), `potential` (of the gradients),
            `trace` (of BAIT), or nothing, where both draw at random.
        linear: Whether its time is linear in the batch, so that a long one can be projected.
    """

    strategy: str
    peer: str
    method: str
    same: str = "picks"
    linear: bool = False


COMPARISONS: Final = (
    Comparison(strategy="coreset", peer="plain", method="greedy", same="radius", linear=True),
    Comparison(strategy="badge", peer="plain", method="d2", same="potential", linear=True),
    Comparison(strategy="kmeans", peer="sklearn", method="KMeans", same=""),
    Comparison(strategy="least_confidence", peer="labelbench", method="confidence"),
    Comparison(strategy="margin", peer="labelbench", method="margin"),
    Comparison(strategy="entropy", peer="labelbench", method="entropy"),
    Comparison(strategy="coreset", peer="labelbench", method="coreset", same="radius", linear=True),
    Comparison(strategy="badge", peer="labelbench", method="badge", same="potential", linear=True),
    Comparison(
        strategy="galaxy:fallback=labelbench",
        peer="labelbench",
        method="galaxy",
        same="",
        linear=True,
    ),
    Comparison(strategy="direct:form=published", peer="labelbench", method="direct", same=""),
    Comparison(strategy="bait", peer="labelbench", method="bait", same="trace", linear=True),
    Comparison(strategy="margin", peer="asvp", method="margin"),
    Comparison(strategy="entropy", peer="asvp", method="entropy"),
    Comparison(strategy="coreset", peer="asvp", method="coreset", same="radius", linear=True),
    Comparison(strategy="margin", peer="distil", method="MarginSampling"),
    Comparison(strategy="entropy", peer="distil", method="EntropySampling"),
    Comparison(strategy="least_confidence", peer="distil", method="LeastConfidenceSampling"),
    Comparison(strategy="coreset", peer="distil", method="CoreSet", same="radius", linear=True),
    Comparison(strategy="badge", peer="distil", method="BADGE", same="potential", linear=True),
    Comparison(strategy="glister", peer="distil", method="GLISTER", linear=True),
    Comparison(strategy="margin", peer="zeyademam", method="MarginSampler"),
    Comparison(strategy="mase", peer="zeyademam", method="MASESampler"),
    Comparison(strategy="base:order=sequential", peer="zeyademam", method="BASESampler"),
    Comparison(strategy="coreset", peer="zeyademam", method="CoresetSampler", same="radius"),
    Comparison(
        strategy="partitioned_coreset",
        peer="zeyademam",
        method="PartitionedCoresetSampler",
        same="radius",
    ),
    Comparison(
        strategy="partitioned_badge:pooled=true",
        peer="zeyademam",
        method="PartitionedBADGESampler",
        same="potential",
    ),
    Comparison(
        strategy="balancing", peer="zeyademam", method="BalancingSampler", same="", linear=True
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """What every peer gets.

    Attributes:
        h_Nh: Standardised embeddings, float32.
        p_NC: The head's probabilities, float32.
        y_N: Classes.
        labelled: Rows before this one are labelled, the others candidates.
        head: The shared head, (h -> C).
    """

    h_Nh: torch.Tensor
    p_NC: torch.Tensor
    y_N: Int64Array
    labelled: int
    head: torch.nn.Linear

    @property
    def unlabelled_U(self) -> Int64Array:
        """The candidates."""
        return np.arange(self.labelled, len(self.y_N))


Call = Callable[[int], Any]


def _plain(clone: Path, method: str, arrays: Arrays) -> Call:
    del clone
    rest = arrays.h_Nh[arrays.labelled :]
    norms = rest.square().sum(dim=1)

    def greedy(b: int) -> Int64Array:
        least = torch.full((len(rest),), torch.inf)
        for some in arrays.h_Nh[: arrays.labelled].split(256):
            square = norms[:, None] + some.square().sum(dim=1) - 2.0 * rest @ some.T
            least = torch.minimum(least, square.amin(dim=1))
        places = []
        for _ in range(b):
            place = int(least.argmax())
            places.append(place)
            least = torch.minimum(least, norms + norms[place] - 2.0 * rest @ rest[place])
            least[place] = -torch.inf
        return arrays.unlabelled_U[places]

    def d2(b: int) -> Int64Array:
        q = arrays.p_NC[arrays.labelled :].clone()
        q[torch.arange(len(q)), q.argmax(dim=1)] -= 1.0
        sizes = norms * q.square().sum(dim=1)
        places = [int(sizes.argmax())]
        least = torch.full_like(sizes, torch.inf)
        rng = np.random.default_rng(0)
        for _ in range(b - 1):
            last = places[-1]
            square = sizes + sizes[last] - 2.0 * (rest @ rest[last]) * (q @ q[last])
            least = torch.minimum(least, square.clamp_min(0.0))
            least[last] = 0.0
            weights = least.double().numpy()
            places.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        return arrays.unlabelled_U[places]

    return greedy if method == "greedy" else d2


def _sklearn(clone: Path, method: str, arrays: Arrays) -> Call:
    from sklearn.cluster import KMeans

    del clone, method
    x = arrays.h_Nh[arrays.labelled :].numpy()

    def call(b: int) -> Int64Array:
        # As many iterations as ours may take; its centres are no items, so nothing is compared.
        KMeans(b, n_init=1, max_iter=20, random_state=0).fit(x)
        return np.zeros(0, dtype=np.int64)

    return call


def _labelbench(clone: Path, method: str, arrays: Arrays) -> Call:
    sys.path.insert(0, str(clone))
    get = importlib.import_module("LabelBench.strategy.strategies").get_strategy
    kinds = importlib.import_module("LabelBench.skeleton.active_learning_skeleton").ALInput
    named = clone / "configs" / "strategy" / f"{method}_sampling.json"
    config = json.loads(named.read_text(encoding="utf-8"))
    # Its 20 GB working memory does not fit this machine.
    config |= {"working_memory_GB": 4} if method == "coreset" else {}
    held = {
        kinds.TRAIN_PRED: arrays.p_NC.double().numpy(),
        kinds.TRAIN_LABEL: np.eye(arrays.p_NC.shape[1])[arrays.y_N],
        kinds.TRAIN_EMBEDDING: arrays.h_Nh.double().numpy(),
    }
    trainer = types.SimpleNamespace(
        retrieve_inputs=lambda wanted: [np.array(held[kind]) for kind in wanted]
    )

    class Data:
        def __len__(self) -> int:
            return len(arrays.y_N)

        def labeled_idxs(self) -> Int64Array:
            return np.arange(arrays.labelled)

        def unlabeled_idxs(self) -> Int64Array:
            return arrays.unlabelled_U

    # A new object for each call: some keep what they labelled.
    return lambda b: get(method, config, Data()).select(trainer, b)


def _asvp(clone: Path, method: str, arrays: Arrays) -> Call:
    sys.path.insert(0, str(clone / "samplings"))
    module = importlib.import_module("sampling_strategy")
    labelled = arrays.labelled
    if method == "coreset":
        seen, rest = arrays.h_Nh[:labelled], arrays.h_Nh[labelled:]
        return lambda b: module.acquire_new_sample(b, arrays.unlabelled_U.tolist(), seen, rest)
    p = arrays.p_NC[labelled:].numpy()
    return lambda b: getattr(module, f"{method}_sampling")(p, arrays.unlabelled_U, b)


class _DistilNet(torch.nn.Module):
    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = head

    def forward(self, x: torch.Tensor, last: bool = False, freeze: bool = False) -> Any:
        del freeze
        return (self.linear(x), x) if last else self.linear(x)

    def get_embedding_dim(self) -> int:
        return self.linear.in_features


def _distil(clone: Path, method: str, arrays: Arrays) -> Call:
    sys.path.insert(0, str(clone))
    # Imported beside what runs here; a compiled library that selection by these does not use.
    sys.modules.setdefault("submodlib", types.ModuleType("submodlib"))
    cls = getattr(importlib.import_module("distil.active_learning_strategies"), method)
    labels = torch.from_numpy(arrays.y_N)
    seen = torch.utils.data.TensorDataset(arrays.h_Nh[: arrays.labelled], labels[: arrays.labelled])
    rest = arrays.h_Nh[arrays.labelled :]

    class Rows(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(rest)

        def __getitem__(self, index: int) -> torch.Tensor:
            return rest[index]

    settings = {"batch_size": _BATCH, "device": "cpu", "lr": 0.01}
    net, classes = _DistilNet(arrays.head), arrays.p_NC.shape[1]

    def call(b: int) -> Int64Array:
        return arrays.labelled + np.array(cls(seen, Rows(), net, classes, settings).select(b))

    return call


class _ZeyademamNet(torch.nn.Module):
    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = head

    def forward(
        self,
        x: torch.Tensor,
        return_features: str | None = None,
        specify_input_layer: str | None = None,
    ) -> Any:
        del specify_input_layer
        return (self.linear(x), x) if return_features else self.linear(x)


def _zeyademam(clone: Path, method: str, arrays: Arrays) -> Call:
    sys.path.insert(0, str(clone / "src"))
    sys.modules.setdefault("comet_ml", types.ModuleType("comet_ml"))
    files = {
        "MarginSampler": "margin_sampler",
        "MASESampler": "mase_sampler",
        "BASESampler": "base_sampler",
        "CoresetSampler": "coreset_sampler",
        "PartitionedCoresetSampler": "partitioned_coreset_sampler",
        "PartitionedBADGESampler": "partitioned_badge_sampler",
        "BalancingSampler": "balancing_sampler",
    }
    cls = getattr(importlib.import_module(f"query_strategies.{files[method]}"), method)
    labels = torch.from_numpy(arrays.y_N)

    class Data(torch.utils.data.Dataset[Any]):
        num_classes = arrays.p_NC.shape[1]

        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> Any:
            return arrays.h_Nh[index], labels[index], index

    data, net = Data(), _ZeyademamNet(arrays.head)
    settings = {"loader_te_args": {"batch_size": 100, "num_workers": 0}}  # its default

    def call(b: int) -> Any:
        one = cls(
            data,
            data,
            net,
            settings,
            [],
            types.SimpleNamespace(url="."),
            early_stop_patience=0,
            n_epoch=1,
            world_size=1,
            model="linear",
            freeze_feature=False,
            ckpt_path="",
            exp_name="",
            subset_labeled=None,
            subset_unlabeled=None,
            partitions=10,
        )
        one.feature_net = net
        one.idxs_lb[: arrays.labelled] = True
        return one.query(b)[0]

    return call


_ADAPTERS: Final = {
    "plain": _plain,
    "sklearn": _sklearn,
    "labelbench": _labelbench,
    "asvp": _asvp,
    "distil": _distil,
    "zeyademam": _zeyademam,
}
PEERS: Final = tuple(_ADAPTERS)
CLONES: Final = ("labelbench", "asvp", "distil", "zeyademam")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("method")
    parser.add_argument("--clone", type=Path, default=Path())
    parser.add_argument("--rows", type=Path, required=True, help="where the chosen rows go (.npy)")
    parser.add_argument("--limit-s", type=float, required=True)
    parser.add_argument("--linear", action="store_true", help="project when it takes long")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("Peers are timed on Linux only, where their memory can be watched.")
    with _on_cpu():
        print(json.dumps(_run(options)))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    pool = pools.read(options.folder, torch.device("cpu"))
    arrays, forward_s = _arrays(pool)
    most = int(_SHARE_OF_MEMORY * _available())
    out = sys.stdout
    best: dict[str, Any] = {}

    def stopped(what: str) -> None:
        limit = {"more_than_s": options.limit_s} if what == "seconds" else {"more_than_bytes": most}
        print(json.dumps(best or limit), file=out)

    np.random.seed(0)  # noqa: NPY002  # their generator
    torch.manual_seed(0)
    call = _ADAPTERS[options.peer](options.clone, options.method, arrays)
    # Predictions were there before; what evaluates inside the call pays itself.
    stored = forward_s if options.peer in _STORED else 0.0
    done = stop_after(options.limit_s, most, stopped)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        budget = pool.case.budget
        if options.linear and budget > 4 * _PROBES[-1]:
            times = []
            for picks in _PROBES:
                rows, seconds = _timed(call, picks)
                times.append(seconds)
                np.save(options.rows, np.asarray(rows, dtype=np.int64))
            slope = max(0.0, (times[1] - times[0]) / (_PROBES[1] - _PROBES[0]))
            projected = times[1] + slope * (budget - _PROBES[1])
            best |= {
                "seconds": projected,
                "forward_s": stored,
                "projected_from": dict(zip(map(str, _PROBES), times, strict=True)),
                "picks": _PROBES[1],
            }
            if projected + sum(times) > options.limit_s:
                done()
                return best
            rows, seconds = _timed(call, budget)
        else:
            _warm(call, min(8, budget), options)
            rows, seconds = _timed(call, budget)
    done()
    np.save(options.rows, np.asarray(rows, dtype=np.int64))
    return {"seconds": seconds, "forward_s": stored, "picks": len(rows)}


def _warm(call: Call, picks: int, options: argparse.Namespace) -> None:
    # Only what is quick anyway: scores from stored predictions.
    if options.peer in _STORED:
        call(picks)


def _timed(call: Call, b: int) -> tuple[Any, float]:
    start = time.perf_counter()
    rows = call(b)
    return rows, time.perf_counter() - start


def _arrays(pool: pools.Pool) -> tuple[Arrays, float]:
    h = pool.proxy.hidden(pool.x_Nd.float())
    head = torch.nn.Linear(h.shape[1], pool.case.classes)
    with torch.no_grad():
        head.weight.copy_(pool.proxy.head.weight_Cd)
        head.bias.copy_(pool.proxy.head.bias_C)
        head(h[:1024]).softmax(dim=1)
        start = time.perf_counter()
        p = head(h).softmax(dim=1)
        forward_s = time.perf_counter() - start
    arrays = Arrays(h_Nh=h, p_NC=p, y_N=pool.y_N, labelled=pool.case.labelled, head=head)
    return arrays, forward_s


def _available() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("The kernel does not say how much memory is free.")


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    def here(self: Any, *arguments: Any, **named: Any) -> Any:
        del arguments, named
        return self

    with (
        mock.patch.object(torch.Tensor, "cuda", here),
        mock.patch.object(torch.nn.Module, "cuda", here),
        mock.patch.object(torch.cuda, "is_available", return_value=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()
