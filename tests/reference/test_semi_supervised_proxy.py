"""Semi-supervised proxies: each rule against a naive one, and FlexMatch's training step by step."""

import collections
import dataclasses
import math

import pytest
import torch

from svp.errors import InputError
from svp.finetune.config import FinetuneConfig
from svp.finetune.methods import build_method
from svp.proxies import (
    NetworkConfig,
    NetworkProxy,
    Standardiser,
    StoredViews,
    fit_network_seeds,
    fit_proxy,
)
from svp.proxies.methods import build_rule
from svp.proxies.rows import Orders
from svp.pseudolabels.flexmatch import FlexMatch
from svp.pseudolabels.freematch import FreeMatch
from svp.pseudolabels.rule import Rule, Targets
from svp.pseudolabels.softmatch import SoftMatch
from svp.seed import derive_seed

CPU = torch.device("cpu")


class NaiveFlexMatch:
    """Algorithm 1 with a dictionary and a counter over all unlabelled rows at every step."""

    def __init__(self, rows: int, classes: int, cutoff: float) -> None:
        self.marks = dict.fromkeys(range(rows), -1)
        self.classes, self.cutoff = classes, cutoff

    def thresholds(self) -> list[float]:
        counts = collections.Counter(self.marks.values())
        most = max(max(counts[c] for c in range(self.classes)), counts[-1])
        betas = [counts[c] / most for c in range(self.classes)]
        return [self.cutoff * beta / (2 - beta) for beta in betas]

    def step(self, probabilities: list[list[float]], rows: list[int]) -> list[tuple[int, float]]:
        limits, found = self.thresholds(), []
        for p in probabilities:
            label = max(range(self.classes), key=lambda c, p=p: p[c])  # type: ignore[misc]
            found.append((label, 1.0 if p[label] >= limits[label] else 0.0))
        for p, row, (label, _) in zip(probabilities, rows, found, strict=True):
            if p[label] >= self.cutoff:
                self.marks[row] = label
        return found


def test_flexmatch_thresholds_follow_the_naive_ones_on_a_recorded_sequence() -> None:
    rows, classes, members = 23, 4, 2
    generator = torch.Generator().manual_seed(1)
    rule = FlexMatch(rows, classes, cutoff=0.9, networks=members)
    naive = [NaiveFlexMatch(rows, classes, 0.9) for _ in range(members)]
    assert torch.all(rule.thresholds() == 0)
    for _ in range(30):
        # Repeats within a batch, confident and hesitant rows, classes of unequal favour.
        rows_Mu = torch.randint(rows, (members, 9), generator=generator)
        favour = torch.tensor([2.0, 1.0, 0.0, -1.0])[None, :, None]
        weak = 3.0 * torch.randn(members, classes, 9, generator=generator) + favour
        targets = rule.targets(weak, rows_Mu)
        for place, one in enumerate(naive):
            p = weak[place].softmax(dim=0).T.tolist()
            expected = one.step(p, rows_Mu[place].tolist())
            assert targets.label_M[place].tolist() == [label for label, _ in expected]
            assert targets.weight_M[place].tolist() == [weight for _, weight in expected]
            assert rule.thresholds()[place].tolist() == pytest.approx(one.thresholds(), abs=1e-6)
    assert torch.all(rule.counts_C1.sum(dim=1) == rows)
    assert rule.thresholds().max() <= 0.9


def test_the_worked_example_of_ten_rows() -> None:
    rule = FlexMatch(10, 2, networks=1)
    sure = torch.tensor([[[9.0] * 4 + [-9.0], [-9.0] * 4 + [9.0]]])
    first = rule.targets(sure, torch.arange(5)[None])
    assert first.weight_M.mean() == 1.0
    assert rule.counts_C1.tolist() == [[4, 1, 5]]
    assert rule.thresholds()[0].tolist() == pytest.approx([0.6333, 0.1056], abs=1e-4)


def _pool() -> tuple[torch.Tensor, torch.Tensor, StoredViews]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 3
    centres = 1.5 * torch.randn(3, 6, generator=generator)
    x = centres[y] + torch.randn(80, 6, generator=generator) + 3.0
    noisy = [x + s * torch.randn(80, 6, generator=generator) for s in (0.1, 0.1, 0.6, 0.6)]
    views = StoredViews(
        weak=(noisy[0], noisy[1].half()),
        strong=(noisy[2], noisy[3]),
        labelled_L=torch.arange(0, 80, 5),
        unlabelled_U=torch.tensor([row for row in range(80) if row % 5]),
    )
    return x, y, views


def _fit(config: NetworkConfig, seed: int = 0) -> tuple[NetworkProxy, float]:
    x, y, views = _pool()
    proxy = fit_proxy(
        x[views.labelled_L],
        y[views.labelled_L],
        3,
        config,
        standardiser=Standardiser.fit(x),
        seed=seed,
        views=views,
    )
    assert isinstance(proxy, NetworkProxy)
    return proxy, float((proxy.logits(x).argmax(dim=1) == y).float().mean())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_flexmatch_training_is_the_naive_loop(kind: str) -> None:
    config = NetworkConfig(
        kind=kind,  # type: ignore[arg-type]
        trainer="flexmatch",
        hidden=None if kind == "linear" else 6,
        batch_norm=kind == "mlp",
        optimiser="adam",
        lr=0.1,
        weight_decay=1e-3,
        schedule="restarts",
        period=5,
        epochs=8,
        batch_size=6,
        unlabelled_ratio=6,
        cutoff=0.9,
    )
    proxy, _ = _fit(config, seed=11)

    x, y, views = _pool()
    scale = Standardiser.fit(x)
    generator = torch.Generator().manual_seed(derive_seed(11, "network", "init"))
    sizes = [(6, 3)] if kind == "linear" else [(6, 6), (6, 3)]
    layers = [torch.nn.Linear(*size) for size in sizes]
    with torch.no_grad():
        for layer in layers:
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    between = [] if kind == "linear" else [torch.nn.BatchNorm1d(6), torch.nn.ReLU(), layers[1]]
    model = torch.nn.Sequential(layers[0], *between)
    adam = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=1e-3)
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(adam, T_0=5, T_mult=2)
    naive = NaiveFlexMatch(64, 3, 0.9)
    order = torch.Generator().manual_seed(derive_seed(11, "network", "order"))
    others = torch.Generator().manual_seed(derive_seed(11, "network", "unlabelled"))
    stream: list[int] = []
    masked = 0
    for epoch in range(8):
        weak, strong = scale(views.weak[epoch % 2]), scale(views.strong[epoch % 2])
        rows = torch.randperm(16, generator=order)
        for batch in (rows[:6], rows[6:12], rows[12:]):
            while len(stream) < 6 * len(batch):
                stream += torch.randperm(64, generator=others).tolist()
            u, stream = stream[: 6 * len(batch)], stream[6 * len(batch) :]
            pool_u = views.unlabelled_U[u]
            labelled = views.labelled_L[batch]
            z = model(torch.cat([weak[labelled], weak[pool_u], strong[pool_u]]))
            z_l, z_w, z_s = z.split([len(batch), len(u), len(u)])
            found = naive.step(z_w.detach().softmax(dim=1).tolist(), u)
            total = torch.nn.functional.cross_entropy(z_l, y[labelled])
            for z_one, (label, weight) in zip(z_s, found, strict=True):
                loss = torch.nn.functional.cross_entropy(z_one, torch.tensor(label))
                total = total + weight * loss / len(u)
                masked += weight == 0
            adam.zero_grad()
            total.backward()
            adam.step()
            restarts.step()
    assert 0 < masked < 8 * 6 * 16
    model.eval()
    torch.testing.assert_close(proxy.logits(x), model(scale(x)).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "trainer", ["flexmatch", "fixmatch", "freematch", "softmatch", "pseudolabel", "uda"]
)
def test_every_rule_learns_and_its_members_are_what_each_seed_trains(trainer: str) -> None:
    config = NetworkConfig(
        trainer=trainer,  # type: ignore[arg-type]
        lr=0.03,
        epochs=8,
        batch_size=8,
        unlabelled_ratio=3,
        cutoff=0.8,
    )
    x, y, views = _pool()
    both = fit_network_seeds(
        x[views.labelled_L],
        y[views.labelled_L],
        3,
        config,
        standardiser=Standardiser.fit(x),
        seeds=[1, 2],
        views=views,
    )
    for seed, one in zip((1, 2), both, strict=True):
        alone, accuracy = _fit(config, seed=seed)
        torch.testing.assert_close(one.logits(x), alone.logits(x), rtol=1e-3, atol=1e-4)
        assert accuracy > 0.8


def test_an_order_of_unlabelled_rows_is_used_up_or_drawn_anew() -> None:
    orders = Orders(10, [torch.Generator().manual_seed(0)])
    first = torch.cat([orders.next(4), orders.next(4), orders.next(2)], dim=1)
    assert sorted(first[0].tolist()) == list(range(10))
    begun = orders.next(4)
    orders.restart()
    assert sorted(orders.next(10)[0].tolist()) == list(range(10))
    assert len(set(begun[0].tolist())) == 4
    config = NetworkConfig(trainer="flexmatch", epochs=4, batch_size=8, unlabelled_ratio=3, lr=0.03)
    anew, _ = _fit(dataclasses.replace(config, unlabelled_order="anew"))
    through, _ = _fit(config)
    assert anew.report.steps == through.report.steps
    assert not torch.equal(anew.head.weight_Cd, through.head.weight_Cd)


def test_softmatch_and_freematch_follow_their_formulas() -> None:
    generator = torch.Generator().manual_seed(3)
    soft = SoftMatch(3, decay=0.999, networks=1)
    free = FreeMatch(3, decay=0.999, fairness=0.001, networks=1)
    mean, var, p_mean = 1 / 3, 1.0, torch.full((3,), 1 / 3)
    tau, p_tilde = 1 / 3, torch.full((3,), 1 / 3)
    for _ in range(5):
        weak = 2.0 * torch.randn(1, 3, 7, generator=generator)
        p = weak[0].softmax(dim=0)
        found = soft.targets(weak, torch.arange(7)[None])
        p_mean = 0.999 * p_mean + 0.001 * p.mean(dim=1)
        aligned = p * (1 / 3) / p_mean[:, None]
        confidence = (aligned / aligned.sum(dim=0)).max(dim=0).values
        mean = 0.999 * mean + 0.001 * float(confidence.mean())
        var = 0.999 * var + 0.001 * float(confidence.var())
        expected = torch.exp(-((confidence - mean).clamp(max=0) ** 2) * 4 / (2 * var))
        torch.testing.assert_close(found.weight_M[0], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.label_M[0], p.argmax(dim=0))

        found = free.targets(weak, torch.arange(7)[None])
        tau = 0.999 * tau + 0.001 * float(p.max(dim=0).values.mean())
        p_tilde = 0.999 * p_tilde + 0.001 * p.mean(dim=1)
        limits = tau * p_tilde / p_tilde.max()
        kept = p.max(dim=0).values >= limits[found.label_M[0]]
        assert torch.equal(found.weight_M[0].bool(), kept)
        torch.testing.assert_close(free.thresholds()[0], limits)
    none = Targets(label_M=found.label_M, weight_M=torch.zeros(1, 7))
    nothing = free.regulariser(weak, none)
    assert nothing is not None
    assert nothing.tolist() == [0.0]
    fairness = free.regulariser(weak, Targets(label_M=found.label_M, weight_M=torch.ones(1, 7)))
    assert fairness is not None
    assert torch.isfinite(fairness).all()


@pytest.mark.parametrize(
    "trainer", ["flexmatch", "fixmatch", "freematch", "softmatch", "pseudolabel", "uda"]
)
def test_networks_side_by_side_follow_the_rule_of_one(trainer: str) -> None:
    config = NetworkConfig(trainer=trainer, cutoff=0.6)  # type: ignore[arg-type]
    both = build_rule(config, members=2, rows=20, classes=4, device=CPU)
    images = FinetuneConfig(
        method=trainer,  # type: ignore[arg-type]
        cutoff=0.6,
        threshold_warmup=True,
    )
    ones = [build_method(images, num_unlabelled=20, num_classes=4) for _ in range(2)]
    assert both is not None
    generator = torch.Generator().manual_seed(5)
    for step in range(12):
        weak = 2.0 * torch.randn(2, 4, 9, generator=generator)
        strong = torch.randn(2, 4, 9, generator=generator)
        rows = torch.randint(20, (2, 9), generator=generator)
        together = both.targets(weak, rows)
        extra = both.regulariser(strong, together)
        for place, one in enumerate(ones):
            assert isinstance(one, Rule)
            alone = one.targets(weak[place].T, rows[place])
            assert torch.equal(together.label_M[place], alone.label_M)
            torch.testing.assert_close(together.weight_M[place], alone.weight_M)
            torch.testing.assert_close(
                together.losses(strong)[place], alone.losses(strong[place].T)
            )
            own = one.regulariser(strong[place].T, alone)
            assert (own is None) == (extra is None)
            if own is not None and extra is not None:
                torch.testing.assert_close(extra[place], own)
            assert both.weight(step / 12) == one.weight(step / 12)


def test_the_weight_ignores_how_many_rows_are_masked_and_pseudo_labels_ramp() -> None:
    z = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[0, 1, 2, 0]])
    whole = torch.nn.functional.cross_entropy(z[0].T, label[0], reduction="none")
    some = Targets(label_M=label, weight_M=torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    assert float(some.loss_sum(z)) == pytest.approx(float(whole[0] + whole[3]))
    none = Targets(label_M=label, weight_M=torch.zeros(1, 4))
    assert float(none.loss_sum(z)) == 0.0
    config = NetworkConfig(trainer="pseudolabel", cutoff=0.3)
    rule = build_rule(config, members=1, rows=4, classes=3, device=CPU)
    assert rule is not None
    for progress, expected in ((0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (0.9, 1.0)):
        assert rule.weight(progress) == pytest.approx(expected)


def test_missing_views_and_nothing_unlabelled() -> None:
    x, y, views = _pool()
    config = NetworkConfig(trainer="flexmatch", epochs=2)
    scale = Standardiser.fit(x)
    with pytest.raises(InputError, match="stored weak and strong views"):
        fit_proxy(x, y, 3, config, standardiser=scale, seed=0)
    with pytest.raises(InputError, match="pool row of each"):
        fit_proxy(x, y, 3, config, standardiser=scale, seed=0, views=views)
    whole = StoredViews(
        weak=views.weak,
        strong=views.strong,
        labelled_L=torch.arange(80),
        unlabelled_U=torch.zeros(0, dtype=torch.int64),
    )
    proxy = fit_proxy(x, y, 3, config, standardiser=scale, seed=0, views=whole)
    assert torch.isfinite(proxy.logits(x)).all()
