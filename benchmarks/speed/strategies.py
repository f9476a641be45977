"""Time and memory of one selection call of every strategy, beside limits and peers.

    python -m benchmarks.speed.strategies --cases S M --labelbench path/to/LabelBench
    python -m benchmarks.speed.strategies --cases L XL --plan
    python -m benchmarks.speed.strategies --cases quick --strategies margin bait:dims=10

Cases are named in `benchmarks.speed.pools`: S and M (50,000 items, 10 and 100 classes, 1,000
picks), L (200,000, 1,000 classes, 10,000 picks), XL (as many items as ImageNet, float16), and
`quick`. Every call runs in a process of its own, on arrays that are in memory before the clock
starts: seconds are the median of the repeats, or one run where it takes more than five seconds.
Memory is what the call held at most beyond the pool.

Two shares say how far a call is from what the machine can do. Arithmetic: the operations the
strategy declares, per second, over the rate of a large float32 product measured here. Bytes: the
passes over the embeddings it declares, times their size, over the rate of a large copy. Both are
declared before the call starts; a strategy that needs less than it declared shows a larger share
than it uses.

A strategy whose estimate (the larger of the two at full rate) is over `--limit-s` is listed with
its estimate and not run; where a cheaper form of it fits, that form is run under its own name. On
a GPU there is no limit unless one is given.

With clones, each peer's own code runs on the same arrays and the same head right after ours. Its
seconds are the whole call; a peer that starts from stored predictions is given one product and
softmax on top, marked `forward_s`. One that takes longer than `--peer-limit-s` is projected from
two small batches where its time is linear in the batch, and says so, or else `more than`.
Agreement: how many of the picks are the same, how many first ones are in the same order, and, for
covers, gradients and designs, the covering radius, the potential or the trace of both.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.speed import pools
from benchmarks.speed.machine import context, copy_rate, product_rate
from benchmarks.speed.peers import CLONES, COMPARISONS, Comparison
from svp.strategies.base import Budget, Int64Array
from svp.strategies.catalog import STRATEGIES, build_strategy
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.information import Design, Items
from svp.strategies.principal import Principal

_SCHEMA: Final = "svp.benchmarks.strategies/2"
_CPU_LIMIT_S: Final = 600.0
_WARM_BELOW_S: Final = 30.0
# Forms beside the default: those that peers run, and other exact or published ones.
_VARIANTS: Final = (
    "base:order=sequential",
    "base:distance=polyhedral",
    "bim:form=surrogate",
    "galaxy:fallback=labelbench",
    "direct:form=published",
    "partitioned_badge:pooled=true",
    "bait:form=greedy",
)
# Cheaper forms, tried in this order where the default one is over the limit.
_CHEAPER: Final[Mapping[str, tuple[str, ...]]] = {
    "probcover": ("sub_pool=200000", "sub_pool=50000"),
    "facility_location": ("represented=20000", "represented=5000"),
    "activeft_pre": ("minibatch=10000", "minibatch=10000,iterations=10"),
    "activeft_al": ("minibatch=10000", "minibatch=10000,iterations=10"),
    "kmeans": ("iterations=5", "iterations=1"),
    "glister": ("refresh_every=10", "refresh_every=100", "refresh_every=1000"),
    "bait": ("dims=10", "dims=4", "dims=1"),
    "bald": ("passes=3",),
    "bim": ("form=surrogate",),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A strategy with its parameters, written `name` or `name:param=value,param=value`."""

    name: str
    params: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Form":
        """Return the form that a text names; values are JSON, or else plain words."""
        name, _, settings = text.partition(":")
        params = {}
        for setting in filter(None, settings.split(",")):
            key, _, value = setting.partition("=")
            try:
                params[key] = json.loads(value)
            except json.JSONDecodeError:
                params[key] = value
        return cls(name=name, params=params)

    def __str__(self) -> str:
        settings = ",".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in self.params.items()
        )
        return f"{self.name}:{settings}" if settings else self.name


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Measured rates of this machine.

    Attributes:
        flops: Float32 operations per second of a large product.
        copied: Bytes per second of a large copy, read and written ones.
    """

    flops: float
    copied: float

    @classmethod
    def measure(cls, device: torch.device) -> "Machine":
        """Return the rates of this device, measured now."""
        size = 8192 if device.type == "cuda" else 2048
        return cls(flops=product_rate(size, size, size, device), copied=copy_rate(device))


def _cost(form: Form, case: pools.Case) -> Cost:
    strategy = build_strategy(form.name, form.params)
    shape = PoolShape(
        pool=case.n,
        candidates=case.n - case.labelled,
        labelled=case.labelled,
        dim=case.dim,
        hidden=case.dim,
        classes=case.classes,
        budget=case.budget,
        tile_rows=Budget().tile_rows,
        views=2 if "views" in strategy.needs else 0,
    )
    return strategy.cost(shape)


def _pool_bytes(case: pools.Case) -> float:
    return float(case.n * case.dim * getattr(torch, case.dtype).itemsize)


def _estimate_s(cost: Cost, case: pools.Case, machine: Machine) -> float:
    arithmetic = cost.flops / machine.flops
    return float(max(arithmetic, cost.passes * _pool_bytes(case) / machine.copied))


def _planned(
    form: Form, case: pools.Case, machine: Machine, limit_s: float
) -> tuple[Form | None, list[dict[str, Any]]]:
    """Return the form that fits the limit, if any, and those that do not with their estimates."""
    cheaper = () if form.params else _CHEAPER.get(form.name, ())
    skipped = []
    for tried in (form, *(Form.parse(f"{form.name}:{settings}") for settings in cheaper)):
        estimate = _estimate_s(_cost(tried, case), case, machine)
        if not limit_s or estimate <= limit_s:
            return tried, skipped
        skipped.append({"strategy": str(tried), "estimate_s": estimate})
    return None, skipped


def _call(
    module: str, arguments: list[str], timeout_s: float | None
) -> tuple[dict[str, Any], Int64Array | None]:
    """Run one process; return its result and the rows it chose."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npy"
        command = [sys.executable, "-m", f"benchmarks.speed.{module}", *arguments]
        try:
            done = subprocess.run(
                [*command, "--rows", str(rows)], capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            return {"more_than_s": timeout_s}, None
        if done.returncode or not done.stdout.strip():
            said = done.stderr.strip().splitlines()
            return {"failed": said[-1] if said else f"exit code {done.returncode}"}, None
        chosen = np.load(rows) if rows.exists() else None
        return json.loads(done.stdout.strip().splitlines()[-1]), chosen


def _radius(pool: pools.Pool, rows: Int64Array) -> float:
    """Return the largest distance of a candidate from the labelled rows and these."""
    centres = np.concatenate([np.arange(pool.case.labelled), rows])
    hidden = pool.proxy.hidden
    c = hidden(pool.x_Nd[torch.from_numpy(centres).to(pool.device)].float())
    c_square = c.square().sum(dim=1)
    most = 0.0
    for part in pool.x_Nd[pool.case.labelled :].split(2048):
        x = hidden(part.float())
        least = torch.full((len(x),), torch.inf, device=pool.device)
        for some, square in zip(c.split(4096), c_square.split(4096), strict=True):
            least = torch.minimum(least, (square - 2.0 * x @ some.T).amin(dim=1))
        most = max(most, float((least + x.square().sum(dim=1)).max()))
    return max(most, 0.0) ** 0.5


def _potential(pool: pools.Pool, rows: Int64Array) -> float:
    """Return the sum of squared distances between gradients and the nearest chosen one."""

    def factors(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = pool.proxy.logits(x.float()).softmax(dim=1)
        q[torch.arange(len(q)), q.argmax(dim=1)] -= 1.0
        h = pool.proxy.hidden(x.float())
        return h, q, h.square().sum(dim=1) * q.square().sum(dim=1)

    ch, cq, c_size = factors(pool.x_Nd[torch.from_numpy(rows).to(pool.device)])
    total = 0.0
    for part in pool.x_Nd[pool.case.labelled :].split(2048):
        h, q, size = factors(part)
        least = torch.full_like(size, torch.inf)
        for start in range(0, len(ch), 4096):
            some = slice(start, start + 4096)
            inner = (h @ ch[some].T).mul_(q @ cq[some].T)
            least = torch.minimum(least, (c_size[some] - 2.0 * inner).amin(dim=1))
        total += float((least + size).clamp_min(0.0).double().sum())
    return total


def _trace(pool: pools.Pool, rows: Int64Array) -> float:
    """Return BAIT's trace with these labelled too, on 30 principal axes and without its ridge."""
    view = pool.view()
    principal = Principal(view, 0, Budget(device=pool.device), dims=30)

    def items(chosen: Int64Array) -> Items:
        index = torch.from_numpy(chosen).to(pool.device)
        p = pool.proxy.logits(pool.x_Nd[index].float()).double().softmax(dim=1)
        return Items(principal.rows(chosen), p)

    target = items(np.arange(pool.case.n)).information() / pool.case.n
    known = items(np.concatenate([view.labelled_L, rows])).information()
    # Hardly anything, so that it can be inverted.
    known.diagonal().add_(1e-6)
    return Design(known, target).trace


def _agreement(pool: pools.Pool, ours: Int64Array, theirs: Int64Array, same: str) -> dict[str, Any]:
    picks = min(len(ours), len(theirs))
    # Of a projected peer only the first picks are there.
    ours, theirs = ours[:picks], theirs[:picks]
    differ = np.flatnonzero(ours != theirs)
    found: dict[str, Any] = {
        "picks": picks,
        "equal": len(np.intersect1d(ours, theirs)),
        "same_order_first": int(differ[0]) if len(differ) else picks,
    }
    measure = {"radius": _radius, "potential": _potential, "trace": _trace}.get(same)
    if measure is not None and found["equal"] < picks:
        found |= {same: measure(pool, ours), f"peer_{same}": measure(pool, theirs)}
    return found


def _peer_row(
    comparison: Comparison,
    pool: pools.Pool,
    folder: Path,
    ours: tuple[float, Int64Array],
    options: argparse.Namespace,
) -> dict[str, Any]:
    clone = getattr(options, comparison.peer, None)
    arguments = [str(folder), comparison.peer, comparison.method]
    arguments += ["--limit-s", str(options.peer_limit_s)]
    arguments += ["--clone", str(clone)] if clone else []
    arguments += ["--linear"] if comparison.linear else []
    result, rows = _call("peers", arguments, 3 * options.peer_limit_s + 300)
    row = {"peer": comparison.peer, "method": comparison.method, **result}
    if "seconds" in result:
        row["times_faster"] = (result["seconds"] + result["forward_s"]) / ours[0]
    elif "more_than_s" in result:
        row["times_faster_than"] = result["more_than_s"] / ours[0]
    if "seconds" in result and rows is not None and len(rows):
        row["agreement"] = _agreement(pool, ours[1], rows, comparison.same)
    return row


def _strategy_row(
    form: Form, pool: pools.Pool, folder: Path, machine: Machine, options: argparse.Namespace
) -> dict[str, Any]:
    case = pool.case
    cost = _cost(form, case)
    estimate = _estimate_s(cost, case, machine)
    arguments = [str(folder), form.name, "--params", json.dumps(form.params)]
    arguments += ["--device", options.device, "--repeats", str(options.repeats)]
    arguments += ["--warm"] if estimate < _WARM_BELOW_S else []
    if options.memory:
        arguments += ["--memory-bytes", str(options.memory * 2**20)]
    timeout_s = 300 + 4 * options.limit_s if options.limit_s else None
    result, rows = _call("selection", arguments, timeout_s)
    moved = cost.passes * _pool_bytes(case)
    row = {
        "strategy": str(form),
        **result,
        "estimate_s": estimate,
        "declared_bytes": cost.bytes,
        "flops": cost.flops,
        "bytes_moved": moved,
    }
    if "seconds" not in result or rows is None:
        return row
    row["share_of_product_rate"] = cost.flops / result["seconds"] / machine.flops
    row["share_of_copy_rate"] = moved / result["seconds"] / machine.copied
    row["peers"] = []
    for comparison in COMPARISONS:
        # A cheaper form is no longer the same program.
        given = comparison.peer not in CLONES or getattr(options, comparison.peer) is not None
        if comparison.strategy == str(form) and given and not options.without_peers:
            ours = (result["seconds"], rows)
            row["peers"].append(_peer_row(comparison, pool, folder, ours, options))
    return row


def _shown(row: dict[str, Any]) -> str:
    """Return one line for a strategy and one for each peer."""
    if "seconds" not in row:
        why = row.get("failed") or f"more than {row['more_than_s']:.0f} s"
        return f"{row['strategy']:<36}{why}"
    lines = [
        f"{row['strategy']:<36}{row['seconds']:>10.3g}{row['runs']:>5}"
        f"{row['peak_bytes'] / 2**20:>10,.0f}{row['declared_bytes'] / 2**20:>10,.0f}"
        f"{row['share_of_product_rate']:>8.1%}{row['share_of_copy_rate']:>8.1%}"
        f"  {row['exactness']}"
    ]
    for peer in row["peers"]:
        name = f"    {peer['peer']} {peer['method']}"
        if "seconds" in peer:
            projected = " projected" if "projected_from" in peer else ""
            text = f"{peer['seconds'] + peer['forward_s']:>10.3g}  {peer['times_faster']:.3g} times"
            text += projected
        elif "more_than_s" in peer:
            text = (
                f"{'>':>3}{peer['more_than_s']:>7.0f}  over {peer['times_faster_than']:.3g} times"
            )
        else:
            text = f"  {peer.get('failed') or 'out of memory'}"
        for key, value in peer.get("agreement", {}).items():
            text += f", {key} {value if isinstance(value, int) else f'{value:.6g}'}"
        lines.append(f"{name:<36}{text}")
    return "\n".join(lines)


def _run(case: pools.Case, options: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    device = torch.device(options.device)
    forms = options.strategies or [*(cls.name for cls in STRATEGIES), *_VARIANTS]
    plan = [_planned(Form.parse(text), case, machine, options.limit_s) for text in forms]
    skipped = [form for _, some in plan for form in some]
    chosen = {str(form): form for form, _ in plan if form is not None}
    print(
        f"== {case.name}: {case.n:,} items, {case.classes:,} classes, {case.labelled:,} labelled, "
        f"{case.budget:,} picks"
    )
    result: dict[str, Any] = {
        "case": dataclasses.asdict(case),
        "context": context(device),
        "settings": {
            "limit_s": options.limit_s,
            "peer_limit_s": options.peer_limit_s,
            "memory_mib": options.memory,
            "repeats": options.repeats,
        },
        "machine": dataclasses.asdict(machine),
        "skipped": skipped,
        "rows": [],
    }
    if options.plan:
        for text, form in chosen.items():
            print(f"{text:<36}{_estimate_s(_cost(form, case), case, machine):>10.3g} s estimated")
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            result["accuracy"] = pools.write(case, folder, device)
            print(f"   accuracy of the proxy on the candidates: {result['accuracy']:.3f}")
            pool = pools.read(folder, device)
            print(
                f"{'strategy':<36}{'seconds':>10}{'runs':>5}{'MiB':>10}{'declared':>10}"
                f"{'flops':>8}{'bytes':>8}  exactness"
            )
            for form in chosen.values():
                row = _strategy_row(form, pool, folder, machine, options)
                row["context"] = context(device)
                result["rows"].append(row)
                print(_shown(row), flush=True)
                if options.json:
                    _save(options.json, result)
    for one in skipped:
        print(f"{one['strategy']:<36}not run: {one['estimate_s']:,.0f} s estimated")
    return result


def _save(path: Path, result: dict[str, Any]) -> None:
    """Put a case into the file; other cases, and rows of other strategies, stay as they are."""
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    cases = held.get("cases", []) if held.get("schema") == _SCHEMA else []

    def place(one: dict[str, Any]) -> tuple[str, str]:
        return str(one["case"]), one["context"]["device"]

    new = {row["strategy"] for row in result["rows"]}
    for one in cases:
        if place(one) == place(result):
            old = [row for row in one["rows"] if row["strategy"] not in new]
            result = {**result, "rows": [*old, *result["rows"]]}
    cases = [one for one in cases if place(one) != place(result)]
    text = json.dumps({"schema": _SCHEMA, "cases": [*cases, result]}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(pools.CASES), default=["quick"])
    parser.add_argument("--n", type=int, help="fewer items than the case has, to try it out")
    parser.add_argument("--labelled", type=int, help="another number of labelled rows")
    parser.add_argument("--budget", type=int, help="another number of picks")
    parser.add_argument(
        "--strategies", nargs="+", metavar="NAME[:PARAM=VALUE,...]", help="only these"
    )
    parser.add_argument(
        "--limit-s",
        type=float,
        help="do not run what is estimated to take longer; 0: no limit (600, on a GPU 0)",
    )
    parser.add_argument("--plan", action="store_true", help="print the estimates, run nothing")
    parser.add_argument("--memory", type=int, help="cap of every strategy, in MiB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for peer in CLONES:
        parser.add_argument(f"--{peer}", type=Path, metavar="DIR", help="its clone")
    parser.add_argument("--peer-limit-s", type=float, default=120.0)
    parser.add_argument("--without-peers", action="store_true", help="time ours only")
    parser.add_argument("--json", type=Path, help="also write the result here, case by case")
    options = parser.parse_args()
    if options.limit_s is None:
        options.limit_s = _CPU_LIMIT_S if options.device == "cpu" else 0.0
    for peer in CLONES:
        clone = getattr(options, peer)
        if clone is not None and not clone.is_dir():
            parser.error(f"--{peer} must be the folder of a clone. Got {clone}.")
    machine = Machine.measure(torch.device(options.device))
    print(f"product {machine.flops / 1e9:,.0f} GFLOP/s, copy {machine.copied / 1e9:,.1f} GB/s")
    failed = []
    for name in options.cases:
        given = {key: getattr(options, key) for key in ("n", "labelled", "budget")}
        sizes = {key: value for key, value in given.items() if value is not None}
        result = _run(dataclasses.replace(pools.CASES[name], **sizes), options, machine)
        failed += [row["strategy"] for row in result["rows"] if "failed" in row]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
