"""Time of training a proxy, beside its limit and a peer doing the same work.

    python -m benchmarks.speed.proxies --classes 10 --labelled 1000 10000
    python -m benchmarks.speed.proxies --labelbench path/to/LabelBench --asvp path/to/asvp

Linear: scikit-learn's LogisticRegression on the same problem, both solved to their optimum. MLP:
the same network and schedule through a DataLoader, nn.Sequential and torch.optim.SGD. The limit is
the products of the algorithm at the rate of a product of the same shape measured here.

With `--labelbench` or `--asvp` also whole rounds beside the trainers of these repositories
(`benchmarks.speed.rounds`).
"""

import argparse
import json
import math
from pathlib import Path

import torch

from benchmarks.speed import rounds
from benchmarks.speed.machine import clumps, context, median_s, product_rate
from svp.proxies import (
    Head,
    LinearConfig,
    MLPConfig,
    Proxy,
    ProxyConfig,
    Standardiser,
    fit_proxy,
)


def _sklearn(x: torch.Tensor, y: torch.Tensor, config: LinearConfig) -> Head:
    from sklearn.linear_model import LogisticRegression

    # Its own tolerance bounds the largest entry of the gradient; this one stops about as late.
    model = LogisticRegression(
        C=1.0 / (float(config.l2) * len(x)), max_iter=config.max_iterations, tol=2e-5
    )
    model.fit(x.cpu().numpy(), y.cpu().numpy())
    return Head(
        weight_Cd=torch.from_numpy(model.coef_).float(),
        bias_C=torch.from_numpy(model.intercept_).float(),
    )


def _gradient(head: Head, z: torch.Tensor, y: torch.Tensor, l2: float) -> float:
    """Return the gradient norm of the linear objective, in float64: how far a solver went."""
    weight, bias = head.weight_Cd.double(), head.bias_C.double()
    z = z.double().to(weight.device)
    residual = (z @ weight.T + bias).softmax(dim=1)
    residual[torch.arange(len(y)), y.to(weight.device)] -= 1.0
    by_weight = residual.T @ z / len(y) + l2 * weight
    by_bias = residual.mean(dim=0)
    return float(torch.cat([by_weight, by_bias[:, None]], dim=1).norm())


def _loader_loop(x: torch.Tensor, y: torch.Tensor, classes: int, config: MLPConfig) -> object:
    """The loop as it is usually written: batches from a DataLoader, one item at a time."""
    width = x.shape[1]
    model = torch.nn.Sequential(
        torch.nn.Linear(width, width),
        torch.nn.BatchNorm1d(width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, classes),
    ).to(x.device)
    optimiser = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, nesterov=True)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x.cpu(), y.cpu()),
        batch_size=config.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    steps = config.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: math.cos(7 * math.pi / 16 * step / steps)
    )
    for _ in range(config.epochs):
        for batch, target in loader:
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(batch.to(x.device)), target.to(x.device))
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimiser.step()
            schedule.step()
    return model


def _limit_s(proxy: Proxy, rows: int, dim: int, classes: int, device: torch.device) -> float:
    if proxy.kind == "linear":
        rate = max(
            product_rate(rows, dim, classes, device), product_rate(classes, dim, rows, device)
        )
        return 2.0 * proxy.report.steps * 2.0 * rows * dim * classes / rate
    epochs = MLPConfig().epochs
    wide = 2.0 * rows * dim * dim / product_rate(2048, dim, dim, device)
    narrow = 2.0 * rows * dim * classes / product_rate(2048, dim, classes, device)
    # Forward and weight gradient of the first layer; these and the input gradient of the second.
    return epochs * (2.0 * wide + 3.0 * narrow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--labelled", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--kinds", nargs="*", choices=["linear", "mlp"], default=["linear", "mlp"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--labelbench", type=Path, help="a clone of LabelBench to run beside")
    parser.add_argument("--asvp", type=Path, help="a clone of ASVP to run beside")
    parser.add_argument(
        "--rounds",
        nargs="+",
        choices=[one.name for one in rounds.COMPARISONS],
        default=rounds.USUAL,
        help="which rounds to run beside the clones",
    )
    parser.add_argument("--peer-runs", type=int, default=1, help="runs of each peer's round")
    parser.add_argument("--pool", type=int, default=50_000, help="rows of the rounds' pool")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    device = torch.device(options.device)
    x, y = clumps(max(options.labelled) + 5000, options.dim, options.classes, device)
    standardiser = Standardiser.fit(x)
    rows = []
    if options.kinds:
        print(
            f"{'proxy':<8}{'rows':>8}{'seconds':>10}{'limit':>9}{'peer':>9}{'x faster':>10}"
            f"{'acc':>7}"
        )
    for kind in options.kinds:
        config: ProxyConfig = LinearConfig() if kind == "linear" else MLPConfig()
        for count in options.labelled:
            x_L, y_L = x[:count], y[:count]

            def ours(
                x_L: torch.Tensor = x_L, y_L: torch.Tensor = y_L, config: ProxyConfig = config
            ) -> Proxy:
                return fit_proxy(
                    x_L,
                    y_L,
                    options.classes,
                    config,
                    standardiser=standardiser,
                    seed=0,
                    device=device,
                )

            def theirs(
                x_L: torch.Tensor = x_L, y_L: torch.Tensor = y_L, config: ProxyConfig = config
            ) -> object:
                z_L = standardiser(x_L)
                if isinstance(config, LinearConfig):
                    return _sklearn(z_L, y_L, config)
                assert isinstance(config, MLPConfig)
                return _loader_loop(z_L, y_L, options.classes, config)

            proxy = ours()
            ours_s = median_s(ours, device, options.repeats)
            theirs_s = median_s(theirs, device, 1)
            right = proxy.logits(x[-5000:]).argmax(dim=1) == y[-5000:]
            row: dict[str, object] = {
                "proxy": kind,
                "labelled": count,
                "seconds": ours_s,
                "limit_s": _limit_s(proxy, count, options.dim, options.classes, device),
                "peer": "scikit-learn" if kind == "linear" else "DataLoader loop",
                "peer_s": theirs_s,
                "times_faster": theirs_s / ours_s,
                "steps": proxy.report.steps,
                "accuracy": float(right.float().mean()),
            }
            if isinstance(config, LinearConfig) and not isinstance(config.l2, str):
                z_L = standardiser(x_L)
                peer = _sklearn(z_L, y_L, config)
                row["gradient"] = _gradient(proxy.head, z_L, y_L, config.l2)
                row["peer_gradient"] = _gradient(peer, z_L, y_L, config.l2)
            rows.append(row)
            print(
                f"{kind:<8}{count:>8}{ours_s:>10.3g}{row['limit_s']:>10.3g}{theirs_s:>10.3g}"
                f"{row['times_faster']:>10.3g}{row['accuracy']:>10.3f}",
                flush=True,
            )
    if options.labelbench is not None or options.asvp is not None:
        rows += rounds.rows(options)
    if options.json:
        settings = {
            key: value
            for key, value in vars(options).items()
            if key not in ("json", "labelbench", "asvp")
        }
        result = {
            "schema": "svp.benchmarks.proxies/1",
            "settings": settings,
            "context": context(device),
            "rows": rows,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
