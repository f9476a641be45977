"""Gradient-trained proxies against PyTorch's own modules, losses and optimisers."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from svp.errors import InputError
from svp.proxies import (
    PRESETS,
    NetworkConfig,
    NetworkProxy,
    Standardiser,
    fit_network_seeds,
    fit_proxy,
    load_proxy,
    proxy_preset,
)
from svp.proxies.criterion import Criterion
from svp.proxies.network import Members
from svp.proxies.rates import learning_rates
from svp.proxies.trainee import Trainee
from svp.seed import derive_seed, numpy_generator


def _task(n: int, d: int = 10, c: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    y_n = torch.arange(n) % c
    centres = 2.0 * torch.randn(c, d, generator=torch.Generator().manual_seed(0))
    return centres[y_n] + torch.randn(n, d, generator=generator), y_n


def _fit(
    x: torch.Tensor,
    y: torch.Tensor,
    config: NetworkConfig,
    seed: int = 0,
    n_classes: int = 3,
    validation: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> NetworkProxy:
    proxy = fit_proxy(
        x,
        y,
        n_classes,
        config,
        standardiser=Standardiser.fit(x),
        seed=seed,
        validation=validation,
    )
    assert isinstance(proxy, NetworkProxy)
    return proxy


def _modules(kind: str, seed: int, *, norm: bool) -> torch.nn.Sequential:
    generator = torch.Generator().manual_seed(derive_seed(seed, "network", "init"))
    sizes = [(10, 3)] if kind == "linear" else [(10, 8), (8, 3)]
    layers = [torch.nn.Linear(*size) for size in sizes]
    with torch.no_grad():
        for layer in layers:
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    if kind == "linear":
        return torch.nn.Sequential(*layers)
    middle = [torch.nn.BatchNorm1d(8)] if norm else []
    return torch.nn.Sequential(layers[0], *middle, torch.nn.ReLU(), layers[1])


@pytest.mark.parametrize(
    ("kind", "norm", "optimiser", "mixup", "smoothing", "published"),
    [
        ("linear", False, "adam", 0.0, 0.0, False),
        ("linear", False, "adamw", 0.4, 0.1, False),
        ("linear", False, "adamw", 0.4, 0.1, True),
        ("mlp", False, "adamw", 0.0, 0.1, False),
        ("mlp", True, "sgd", 0.3, 0.0, False),
        ("mlp", True, "sgd", 0.3, 0.0, True),
    ],
)
def test_it_is_what_pytorch_trains(
    kind: str, norm: bool, optimiser: str, mixup: float, smoothing: float, published: bool
) -> None:
    x, y = _task(61)
    config = NetworkConfig(
        kind=kind,  # type: ignore[arg-type]
        hidden=8 if kind == "mlp" else None,
        batch_norm=norm,
        optimiser=optimiser,  # type: ignore[arg-type]
        lr=0.05,
        weight_decay=0.02,
        epochs=3,
        batch_size=30,
        mixup=mixup,
        label_smoothing=smoothing,
        warmup_steps=2,
        drop_last=published,
        mixup_targets="larger" if published else "mixed",
    )
    proxy = _fit(x, y, config, seed=5)

    model = _modules(kind, 5, norm=norm)
    made = {
        "sgd": lambda p: torch.optim.SGD(p, lr=1, momentum=0.9, nesterov=True, weight_decay=0.02),
        "adam": lambda p: torch.optim.Adam(p, lr=1, weight_decay=0.02),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1, weight_decay=0.02),
    }[optimiser](model.parameters())
    z = Standardiser.fit(x)(x)
    order = torch.Generator().manual_seed(derive_seed(5, "network", "order"))
    rates = [0.025, 0.05, 0.05, *(0.025 * (1 + math.cos(math.pi * s / 4)) for s in (1, 2, 3))]
    shares = numpy_generator(5, "network", "mixup").beta(mixup or 1.0, mixup or 1.0, size=6)
    step = 0
    for _ in range(3):
        rows = torch.randperm(61, generator=order)
        # 61 rows in batches of 30: the last one joins its neighbour, or is dropped.
        for batch in (rows[:30], rows[30 : 60 if published else 61]):
            share = float(shares[step]) if mixup else 1.0
            target = torch.nn.functional.one_hot(y[batch], 3).float()
            mixed = share * z[batch] + (1 - share) * z[batch].flip(0)
            target = share * target + (1 - share) * target.flip(0)
            if published:
                target = torch.nn.functional.one_hot(target.argmax(dim=1), 3).float()
            for group in made.param_groups:
                group["lr"] = rates[step]
            made.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                model(mixed), target, label_smoothing=smoothing
            )
            loss.backward()
            made.step()
            step += 1
    model.eval()
    torch.testing.assert_close(proxy.logits(x), model(z).detach(), rtol=1e-3, atol=1e-4)
    assert proxy.report.steps == 6


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_slope_of_the_loss_is_what_autograd_finds(
    smoothing: float, weights: str, mixed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    y_L = torch.tensor([0, 0, 0, 1, 2, 2])
    config = NetworkConfig(label_smoothing=smoothing, class_weights=weights)  # type: ignore[arg-type]
    criterion = Criterion(y_L, 4, config)
    z = torch.randn(2, 4, 5, generator=generator, requires_grad=True)
    y = torch.tensor([[0, 1, 2, 2, 0], [2, 0, 1, 0, 1]])
    share = torch.tensor([[0.3], [0.8]]) if mixed else None
    (expected,) = torch.autograd.grad(criterion.loss(z, y, share).sum(), z)
    slope = z.detach().softmax(dim=1)
    criterion.residual_(slope, y, share)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("kind", ["linear", "mlp", "normed"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_of_the_first_rows_are_what_autograd_finds(kind: str, dropout: float) -> None:
    generator = torch.Generator().manual_seed(1)
    config = NetworkConfig(
        kind="linear" if kind == "linear" else "mlp", batch_norm=kind == "normed", dropout=dropout
    )
    members = Members.draw(config, 6, 3, (0, 1))
    x = torch.randn(2, 9, 6, generator=generator)
    slope = torch.randn(2, 3, 5, generator=generator)
    alone = Members.of_tensors({name: one.clone() for name, one in members.tensors().items()})
    leaves = [value.requires_grad_(True) for value in alone.learnt().values()]
    trainee = Trainee(members, config, [torch.Generator().manual_seed(s) for s in (2, 3)])
    z, done = trainee.forward(x)
    trainee.backward(done, slope)
    keep = 1.0 if done.keep_MhR is None else done.keep_MhR
    z_alone = alone.last(alone.hidden(x, training=True) * keep)
    torch.testing.assert_close(z, z_alone.detach())
    expected = torch.autograd.grad((z_alone[:, :, :5] * slope).sum(), leaves)
    flat = torch.cat([gradient.flatten() for gradient in expected])
    torch.testing.assert_close(trainee.gradient_P, flat, rtol=1e-4, atol=1e-5)
    assert bool(dropout) == (done.keep_MhR is not None)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "linear"},
        {"kind": "mlp", "hidden": 6, "dropout": 0.3, "mixup": 0.2},
        {"kind": "mlp", "hidden": 6, "batch_norm": True, "bootstrap": True},
    ],
)
def test_members_are_what_each_seed_trains_alone(changes: dict[str, object]) -> None:
    x, y = _task(47)
    config = NetworkConfig(epochs=3, batch_size=16, lr=0.02, **changes)  # type: ignore[arg-type]
    together = fit_network_seeds(x, y, 3, config, standardiser=Standardiser.fit(x), seeds=[3, 4, 5])
    for seed, one in zip((3, 4, 5), together, strict=True):
        alone = _fit(x, y, config, seed=seed)
        torch.testing.assert_close(one.logits(x), alone.logits(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0].logits(x), together[1].logits(x))
    ensemble = _fit(x, y, dataclasses.replace(config, members=3), seed=9)
    seeds = [derive_seed(9, "member", place) for place in range(3)]
    parts = fit_network_seeds(x, y, 3, config, standardiser=Standardiser.fit(x), seeds=seeds)
    expected = torch.stack([part.logits(x) for part in parts])
    torch.testing.assert_close(ensemble.member_logits(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ensemble.logits(x), expected.mean(dim=0), rtol=1e-4, atol=1e-5)
    head = torch.nn.functional.linear(
        ensemble.hidden(x), ensemble.head.weight_Cd, ensemble.head.bias_C
    )
    torch.testing.assert_close(head, ensemble.logits(x))


def test_early_stopping_keeps_the_best_epoch_of_held_out_rows() -> None:
    x, _ = _task(40)
    y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(2))
    long = NetworkConfig(lr=0.3, epochs=30, schedule="constant", validation=0.25, patience=3)
    stopped = _fit(x, y, long)
    assert stopped.report.validation_rows == 10
    assert stopped.report.rows == 30
    steps = stopped.report.steps
    assert 3 < steps < 30
    # The kept weights are those of the epoch three before the end: random labels only get worse.
    best = _fit(x, y, dataclasses.replace(long, epochs=steps - 3, patience=None))
    torch.testing.assert_close(stopped.logits(x), best.logits(x), rtol=1e-4, atol=1e-5)
    given = _fit(x, y, dataclasses.replace(long, validation=0.0), validation=(x, y))
    assert given.report.rows == 40
    assert given.report.validation_rows == 40


def test_balanced_weights_make_repeated_rows_count_once() -> None:
    x, y = _task(30)
    config = NetworkConfig(
        lr=0.05, epochs=25, batch_size=1000, schedule="constant", class_weights="balanced"
    )
    more = torch.cat([torch.arange(30), torch.arange(30)[y == 0], torch.arange(30)[y == 0]])
    scale = Standardiser.fit(x)
    even = fit_proxy(x, y, 3, config, standardiser=scale, seed=0)
    skewed = fit_proxy(x[more], y[more], 3, config, standardiser=scale, seed=0)
    torch.testing.assert_close(even.logits(x), skewed.logits(x), rtol=1e-3, atol=1e-3)
    plain = dataclasses.replace(config, class_weights="none")
    other = fit_proxy(x[more], y[more], 3, plain, standardiser=scale, seed=0)
    assert (other.logits(x) - even.logits(x)).abs().max() > 0.02


def test_rates_follow_their_schedules() -> None:
    def rates(steps_per_epoch: int = 5, **settings: object) -> list[float]:
        return learning_rates(NetworkConfig(lr=1.0, **settings), steps_per_epoch)  # type: ignore[arg-type]

    warm = rates(epochs=10, warmup_steps=10)
    assert warm[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert warm[10] == 1.0
    assert warm[30] == pytest.approx(0.5)
    # LabelBench's: 120 steps under a warm-up of 200 never reach the peak.
    assert max(rates(2, epochs=60, warmup_steps=200)) == pytest.approx(0.6)
    restarts = rates(1, epochs=40, schedule="restarts", period=10)
    assert restarts[0] == restarts[10] == restarts[30] == 1.0
    assert restarts[5] == pytest.approx(0.5)
    assert restarts[20] == pytest.approx(0.5)
    stepped = rates(2, epochs=6, schedule="steps", period=2)
    assert stepped == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 4)
    assert rates(5, epochs=10, schedule="seven_sixteenths")[0] == 1.0


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_very_few_rows_train(rows: int, kind: str) -> None:
    x, y = _task(30)
    config = NetworkConfig(
        kind=kind,  # type: ignore[arg-type]
        batch_norm=kind == "mlp",
        epochs=3,
        validation=0.5,
        patience=1,
        members=2,
    )
    proxy = fit_proxy(x[:rows], y[:rows], 3, config, standardiser=Standardiser.fit(x), seed=0)
    assert torch.isfinite(proxy.logits(x)).all()
    assert proxy.report.rows >= 1
    if rows == 1:
        assert proxy.report.constant == 0


@pytest.mark.parametrize("changes", [{"kind": "linear"}, {"kind": "mlp", "batch_norm": True}])
def test_a_saved_proxy_is_the_same(tmp_path: Path, changes: dict[str, object]) -> None:
    x, y = _task(40)
    proxy = _fit(x, y, NetworkConfig(epochs=2, members=2, **changes))  # type: ignore[arg-type]
    proxy.save(tmp_path / "one.safetensors")
    loaded = load_proxy(tmp_path / "one.safetensors")
    loaded.save(tmp_path / "two.safetensors")
    assert isinstance(loaded, NetworkProxy)
    assert loaded.config == proxy.config
    assert torch.equal(loaded.logits(x), proxy.logits(x))
    assert torch.equal(loaded.member_logits(x), proxy.member_logits(x))
    one, two = ((tmp_path / name).read_bytes() for name in ("one.safetensors", "two.safetensors"))
    assert one == two


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    x, y = _task(40)
    before = torch.get_rng_state()
    one = _fit(x, y, NetworkConfig(kind="mlp", epochs=2, dropout=0.2, mixup=0.2))
    two = _fit(x, y, NetworkConfig(kind="mlp", epochs=2, dropout=0.2, mixup=0.2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.logits(x), two.logits(x))


def test_presets_are_the_published_numbers() -> None:
    linear = proxy_preset("labelbench-cifar10-flexmatch-linear")
    assert isinstance(linear, NetworkConfig)
    assert (linear.lr, linear.weight_decay, linear.epochs, linear.patience) == (3e-3, 1e-4, 20, 3)
    assert (linear.optimiser, linear.schedule, linear.period) == ("adam", "restarts", 500)
    assert (linear.batch_size, linear.unlabelled_ratio, linear.cutoff) == (128, 5, 0.95)
    passive = proxy_preset("labelbench-fmow-supervised-linear")
    assert isinstance(passive, NetworkConfig)
    assert (passive.batch_size, passive.mixup, passive.label_smoothing) == (500, 0.2, 0.01)
    for name, config in PRESETS.items():
        if isinstance(config, NetworkConfig) and name.startswith("labelbench"):
            assert name.endswith(config.kind)
    program = proxy_preset("labelbench-fmow-supervised-linear", as_published=True)
    assert program == dataclasses.replace(
        passive, drop_last=True, unlabelled_order="anew", mixup_targets="larger"
    )
    assert proxy_preset("asvp-paper", as_published=True) == proxy_preset("asvp-paper")
    with pytest.raises(InputError, match="Known"):
        proxy_preset("none")


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"dropout": 1.0},
        {"validation": 1.0},
        {"cutoff": 1.5},
        {"members": 0},
        {"hidden": 4},
        {"mixup": 0.2, "trainer": "flexmatch"},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        NetworkConfig(**settings)  # type: ignore[arg-type]
