"""The MLP proxy against PyTorch's own modules and optimiser, and its schedule."""

import math
from pathlib import Path

import pytest
import torch

from svp.errors import InputError
from svp.proxies import MLPConfig, MLPProxy, Proxy, Standardiser, fit_proxy, load_proxy
from svp.proxies.mlp import batch_bounds, cosine_lr
from svp.seed import derive_seed


def _task(n: int, d: int = 10, c: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    y_n = torch.arange(n) % c
    centres = 2.0 * torch.randn(c, d, generator=torch.Generator().manual_seed(0))
    return centres[y_n] + torch.randn(n, d, generator=generator), y_n


def _fit(
    x: torch.Tensor, y: torch.Tensor, config: MLPConfig, seed: int = 0, n_classes: int = 3
) -> MLPProxy:
    scale = Standardiser.fit(x)
    proxy: Proxy = fit_proxy(x, y, n_classes, config, standardiser=scale, seed=seed)
    assert isinstance(proxy, MLPProxy)
    return proxy


def test_it_is_what_pytorch_trains() -> None:
    """Same initialisation, order and schedule through nn.Sequential and torch.optim.SGD."""
    x, y = _task(101)
    config = MLPConfig(epochs=4, batch_size=50, lr=0.05, hidden=8, weight_decay=1e-3)
    proxy = _fit(x, y, config, seed=7)

    generator = torch.Generator().manual_seed(derive_seed(7, "mlp", "init"))
    first, norm, last = torch.nn.Linear(10, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)
    with torch.no_grad():
        for layer in (first, last):
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    model = torch.nn.Sequential(first, norm, torch.nn.ReLU(), last)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    order = torch.Generator().manual_seed(derive_seed(7, "mlp", "order"))
    z = Standardiser.fit(x)(x)
    step = 0
    for _ in range(4):
        rows = torch.randperm(101, generator=order)
        # 101 rows in batches of 50: the last one joins its neighbour.
        for batch in (rows[:50], rows[50:]):
            for group in optimiser.param_groups:
                group["lr"] = 0.05 * math.cos(7 * math.pi / 16 * step / 8)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(z[batch]), y[batch]).backward()
            optimiser.step()
            step += 1
    model.eval()
    torch.testing.assert_close(proxy.logits(x), model(z).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(proxy.hidden(x), model[:3](z).detach(), rtol=1e-4, atol=1e-5)
    assert proxy.report.steps == 8


def test_the_schedule_is_the_papers() -> None:
    config = MLPConfig()
    assert (config.epochs, config.batch_size, config.lr, config.momentum) == (50, 2048, 0.01, 0.9)
    assert MLPConfig.preset("paper") == config
    assert MLPConfig.preset("imagenet").lr == 0.1
    assert len(batch_bounds(10_000, 2048)) == 5
    assert cosine_lr(0.01, 0, 250) == 0.01
    assert cosine_lr(1.0, 250, 250) == pytest.approx(0.1951, abs=5e-5)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(1, [1]), (4, [4]), (5, [5]), (6, [4, 2]), (8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2])],
)
def test_a_last_batch_of_one_joins_its_neighbour(rows: int, sizes: list[int]) -> None:
    bounds = batch_bounds(rows, 4)
    assert [stop - start for start, stop in bounds] == sizes
    assert bounds[0][0] == 0
    assert bounds[-1][1] == rows


@pytest.mark.parametrize(("rows", "sizes"), [(3, [3]), (4, [4]), (7, [4]), (9, [4, 4])])
def test_a_last_batch_can_be_dropped_unless_it_is_the_only_one(rows: int, sizes: list[int]) -> None:
    assert [stop - start for start, stop in batch_bounds(rows, 4, drop_last=True)] == sizes


def test_a_seed_gives_the_same_bits_and_another_does_not() -> None:
    x, y = _task(60)
    one, two, other = (_fit(x, y, MLPConfig(epochs=3), seed=seed) for seed in (1, 1, 2))
    for name, value in one.tensors().items():
        assert torch.equal(value, two.tensors()[name])
    assert not torch.equal(one.head.weight_Cd, other.head.weight_Cd)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    x, y = _task(40)
    before = torch.get_rng_state()
    _fit(x, y, MLPConfig(epochs=2))
    assert torch.equal(before, torch.get_rng_state())


def test_it_learns() -> None:
    x, y = _task(300)
    proxy = _fit(x, y, MLPConfig(lr=0.1, epochs=20, batch_size=64))
    assert (proxy.logits(x).argmax(dim=1) == y).float().mean() > 0.95
    torch.testing.assert_close(proxy.predict_proba(x).sum(dim=1), torch.ones(300))
    head = torch.nn.functional.linear(proxy.hidden(x), proxy.head.weight_Cd, proxy.head.bias_C)
    torch.testing.assert_close(head, proxy.logits(x), rtol=1e-5, atol=1e-5)
    assert not any(value.requires_grad for value in proxy.tensors().values())


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_very_few_rows_train(rows: int) -> None:
    x, y = _task(30)
    scale = Standardiser.fit(x)
    proxy = fit_proxy(x[:rows], y[:rows], 3, MLPConfig(epochs=5), standardiser=scale, seed=0)
    assert torch.isfinite(proxy.logits(x)).all()
    assert proxy.report.constant == (0 if rows == 1 else None)


def test_a_saved_proxy_is_the_same(tmp_path: Path) -> None:
    x, y = _task(50)
    proxy = _fit(x, y, MLPConfig(epochs=2, hidden=6))
    proxy.save(tmp_path / "one.safetensors")
    loaded = load_proxy(tmp_path / "one.safetensors")
    loaded.save(tmp_path / "two.safetensors")
    assert isinstance(loaded, MLPProxy)
    assert loaded.config == proxy.config
    assert torch.equal(loaded.logits(x), proxy.logits(x))
    one, two = ((tmp_path / name).read_bytes() for name in ("one.safetensors", "two.safetensors"))
    assert one == two


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"hidden": 0},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        MLPConfig(**settings)  # type: ignore[arg-type]
