"""Time of one selection call of every strategy, beside its limit and a plain implementation.

    python -m benchmarks.speed.strategies --n 50000 --classes 10 --budget 1000

The limit is the arithmetic the strategy cannot avoid, at the rate of a matrix product of the same
shape measured here. The peer is the loop as textbooks write it (one product with the whole pool
per pick), or scikit-learn; it runs on `--peer-budget` picks, and its time is scaled to the budget
where it is linear in it. Takes about two minutes on two idle cores.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.machine import clumps, context, median_s, product_rate
from svp.proxies import LinearConfig, Proxy, Standardiser, fit_proxy
from svp.strategies.base import BLOCK_ROWS, Budget, PoolView
from svp.strategies.catalog import build_strategy, names, run_strategy
from svp.strategies.keys import keys_of


def _view(n: int, dim: int, classes: int, labelled: int, device: torch.device) -> PoolView:
    x, y = clumps(n, dim, classes, device)
    proxy = fit_proxy(
        x[:labelled],
        y[:labelled],
        classes,
        LinearConfig(),
        standardiser=Standardiser.fit(x),
        seed=0,
        device=device,
    )
    return PoolView(
        embeddings_Nd=x,
        keys_N=keys_of(str(row) for row in range(n)),
        unlabelled_U=np.arange(labelled, n, dtype=np.int64),
        labelled_L=np.arange(labelled, dtype=np.int64),
        y_L=y[:labelled].cpu().numpy(),
        n_classes=classes,
        proxy=proxy,
    )


def _limit_s(
    name: str, view: PoolView, b: int, iterations: int, device: torch.device
) -> float | None:
    n, dim = view.embeddings_Nd.shape
    classes, labelled = view.n_classes, len(view.labelled_L)
    logits = 2.0 * n * dim * classes / product_rate(BLOCK_ROWS, dim, classes, device)
    pairs = 2.0 * n * dim / product_rate(BLOCK_ROWS, dim, min(b, 1000), device)
    return {
        "random": None,
        "least_confidence": logits,
        "margin": logits,
        "entropy": logits,
        "coreset": (labelled + b) * pairs,
        "badge": b * pairs * (dim + classes) / dim + logits,
        "kmeans": (1 + iterations) * b * pairs,
    }.get(name)


def _embeddings(view: PoolView) -> torch.Tensor:
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    return view.embeddings_Nd


def _plain_score(view: PoolView, proxy: Proxy, b: int) -> None:
    p = proxy.predict_proba(_embeddings(view)[view.unlabelled_U]).cpu().numpy()
    p.sort(axis=1)
    np.argsort(p[:, -1] - p[:, -2], kind="stable")[:b]


def _plain_greedy(view: PoolView, proxy: Proxy, b: int) -> list[int]:
    x = proxy.hidden(_embeddings(view))
    norms = x.square().sum(dim=1)
    centres, rest = x[view.labelled_L], x[view.unlabelled_U]
    square = norms[view.unlabelled_U][:, None]
    least = torch.full((len(rest),), torch.inf, device=x.device)
    for start in range(0, len(centres), 256):
        some = slice(start, start + 256)
        all_square = square + norms[view.labelled_L][some] - 2.0 * rest @ centres[some].T
        least = torch.minimum(least, all_square.amin(dim=1))
    rest_norms = square.flatten()
    places = []
    for _ in range(b):
        place = int(least.argmax())
        places.append(place)
        least = torch.minimum(least, rest_norms + rest_norms[place] - 2.0 * rest @ rest[place])
        least[place] = -torch.inf
    return view.unlabelled_U[places].tolist()


def _plain_d2(view: PoolView, proxy: Proxy, b: int) -> None:
    x = proxy.hidden(_embeddings(view)[view.unlabelled_U])
    z = proxy.logits(_embeddings(view)[view.unlabelled_U])
    q = z.softmax(dim=1)
    q[torch.arange(len(q)), z.argmax(dim=1)] -= 1.0
    norms = x.square().sum(dim=1) * q.square().sum(dim=1)
    place = int(norms.argmax())
    least = torch.full_like(norms, torch.inf)
    rng = np.random.default_rng(0)
    for _ in range(b - 1):
        square = norms + norms[place] - 2.0 * (x @ x[place]) * (q @ q[place])
        least = torch.minimum(least, square.clamp_min(0.0))
        least[place] = 0.0
        weights = least.double().cpu().numpy()
        place = int(rng.choice(len(weights), p=weights / weights.sum()))


def _sklearn_kmeans(view: PoolView, proxy: Proxy, b: int, iterations: int) -> None:
    from sklearn.cluster import KMeans

    x = proxy.hidden(_embeddings(view)[view.unlabelled_U]).cpu().numpy()
    KMeans(b, n_init=1, max_iter=iterations, random_state=0).fit(x)


def _peer(
    name: str, view: PoolView, proxy: Proxy, iterations: int
) -> tuple[str, Callable[[int], object], bool] | None:
    """Return what the peer is, its call by budget, and whether its time is linear in it."""
    if name in ("least_confidence", "margin", "entropy"):
        return "softmax and full sort", lambda b: _plain_score(view, proxy, b), False
    if name == "coreset":
        return "one product per pick", lambda b: _plain_greedy(view, proxy, b), True
    if name == "badge":
        return "one factored product per pick", lambda b: _plain_d2(view, proxy, b), True
    if name == "kmeans":
        return (
            "scikit-learn, as many iterations",
            lambda b: _sklearn_kmeans(view, proxy, b, iterations),
            False,
        )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--labelled", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--peer-budget", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--strategies", nargs="*", default=list(names()))
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    device = torch.device(options.device)
    view = _view(options.n, options.dim, options.classes, options.labelled, device)
    proxy = view.proxy
    assert isinstance(proxy, Proxy)
    budget = Budget(device=device)
    rows = []
    print(f"{'strategy':<18}{'seconds':>10}{'limit':>10}{'x limit':>9}{'peer':>10}{'x faster':>10}")
    for name in options.strategies:
        strategy = build_strategy(name)
        selection = run_strategy(strategy, view, options.budget, 0, budget=budget)
        repeats = options.repeats if name != "kmeans" else 1
        ours = median_s(
            lambda chosen=strategy: run_strategy(chosen, view, options.budget, 0, budget=budget),
            device,
            repeats,
        )
        iterations = selection.counters.get("iterations", 0)
        limit = _limit_s(name, view, options.budget, iterations, device)
        row = {
            "strategy": name,
            "seconds": ours,
            "limit_s": limit,
            "over_limit": ours / limit if limit else None,
            "counters": dict(selection.counters),
        }
        peer = None if options.no_peers else _peer(name, view, proxy, iterations)
        if peer is not None:
            what, work, linear = peer
            picks = min(options.peer_budget, options.budget) if linear else options.budget
            theirs = median_s(lambda run=work, b=picks: run(b), device, 1)
            if linear:
                # Its first products, against the labelled rows, do not grow with the budget.
                fixed = median_s(lambda run=work: run(1), device, 1)
                theirs = fixed + (theirs - fixed) / (picks - 1) * (options.budget - 1)
            row |= {"peer": what, "peer_s": theirs, "times_faster": theirs / ours}
        if name == "coreset" and peer is not None:
            same = _plain_greedy(view, proxy, 50) == selection.rows_b[:50].tolist()
            row["first_50_picks_equal_peer"] = same
        rows.append(row)
        cells = [row["limit_s"], row["over_limit"], row.get("peer_s"), row.get("times_faster")]
        shown = ["-" if cell is None else f"{cell:.3g}" for cell in cells]
        print(
            f"{name:<18}{ours:>10.3g}{shown[0]:>10}{shown[1]:>9}{shown[2]:>10}{shown[3]:>10}",
            flush=True,
        )
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        result = {
            "schema": "svp.benchmarks.strategies/1",
            "settings": settings,
            "context": context(device),
            "rows": rows,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
