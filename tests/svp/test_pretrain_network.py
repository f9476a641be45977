import copy
import dataclasses
import math

import pytest
import torch

from svp.augment.byol import views_digits
from svp.errors import InputError
from svp.pretrain.config import PretrainConfig, imagenet_224, small_32
from svp.pretrain.monitor import feature_spread, knn_accuracy
from svp.pretrain.network import BYOLNetwork, regression_loss, target_momentum
from svp.pretrain.optimiser import LARS, build_optimiser, is_excluded, learning_rate
from svp.pretrain.simclr import SimCLRNetwork, contrastive_loss


def tiny(method="eman", **changes):
    settings = {
        "method": method,
        "arch": "resnet8",
        "image_size": 8,
        "epochs": 2,
        "batch_size": 8,
        "optimiser": "sgd",
        "lr": 0.05,
        "excluded": "vectors",
        "warmup_epochs": 0.0,
        "cosine_per": "step",
        "head_width": 16,
        "projection_dim": 8,
        "views": views_digits(),
    }
    return PretrainConfig(**{**settings, **changes})


def network(method="eman", **changes):
    return BYOLNetwork(tiny(method, **changes), generator=torch.Generator().manual_seed(0))


def images(n=8, seed=1):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_momentum_rises_from_m0_to_one():
    assert target_momentum(0, 100, 0.98) == pytest.approx(0.98, abs=1e-12)
    assert target_momentum(100, 100, 0.98) == 1.0
    assert target_momentum(50, 100, 0.98) == pytest.approx(0.99)


def test_loss_is_zero_for_parallel_and_four_for_opposite():
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert regression_loss(3 * z, z).item() == pytest.approx(0, abs=1e-5)
    assert regression_loss(-z, z).item() == pytest.approx(4, abs=1e-5)


def test_eman_target_ignores_its_batch_and_byol_target_does_not():
    one, others = images(1), images(7, seed=2)
    for method in ("eman", "byol"):
        net = network(method)
        net(images(), images(seed=3))
        net.follow(0.5)
        net.train()
        with torch.no_grad():
            first = net.target(torch.cat([one, others]))[0]
            second = net.target(torch.cat([one, 3 * others]))[0]
        same = torch.allclose(first, second, atol=1e-5)
        assert same == (method == "eman")


def test_momentum_one_freezes_the_target_and_its_statistics():
    net = network("eman")
    before = copy.deepcopy(net.target.state_dict())
    net(images(), images(seed=3))
    net.follow(1.0)
    for name, value in net.target.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, before[name]), name


def test_eman_averages_running_statistics_and_byol_does_not():
    name = "backbone.stem.1.running_mean"
    for method in ("eman", "byol"):
        net = network(method)
        net(images(), images(seed=3))
        theirs = net.target.state_dict()[name].clone()
        ours = net.online.state_dict()[name]
        net.follow(0.75)
        expected = 0.75 * theirs + 0.25 * ours if method == "eman" else theirs
        torch.testing.assert_close(net.target.state_dict()[name], expected)


def test_the_contrastive_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(5, 4, generator=generator) for _ in range(2))
    z = [row / row.norm() for row in (*z1, *z2)]
    terms = []
    for i in range(10):
        partner = (i + 5) % 10
        others = [math.exp(float(z[i] @ z[j]) / 0.3) for j in range(10) if j != i]
        terms.append(-math.log(math.exp(float(z[i] @ z[partner]) / 0.3) / sum(others)))
    assert float(contrastive_loss(z1, z2, 0.3)) == pytest.approx(sum(terms) / 10, rel=1e-5)
    # Lengths do not matter, all alike is chance, and precision is not autocast's.
    torch.testing.assert_close(contrastive_loss(7 * z1, z2, 0.3), contrastive_loss(z1, z2, 0.3))
    same = torch.ones(5, 4)
    assert float(contrastive_loss(same, same, 0.3)) == pytest.approx(math.log(9))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(z1, z2, 0.3), contrastive_loss(z1, z2, 0.3).float())
        assert float(contrastive_loss(z1, z2, 0.3)) == pytest.approx(sum(terms) / 10, rel=1e-5)


def test_simclr_has_one_branch_and_only_reads_its_own_settings():
    net = SimCLRNetwork(tiny("simclr"), generator=torch.Generator().manual_seed(0))
    net(images(), images(seed=3)).backward()
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"online"}
    assert all(p.grad is not None for p in net.parameters())
    # The same first weights as BYOL's, so that methods are compared from one start.
    byol = network("byol").online.state_dict()
    assert all(torch.equal(v, byol[n]) for n, v in net.online.state_dict().items() if "num" not in n
               and "running" not in n)  # fmt: skip
    assert "temperature" in tiny("simclr").identity()
    assert "momentum0" not in tiny("simclr").identity()
    assert "temperature" not in tiny("eman").identity()
    with pytest.raises(InputError, match="has no target"):
        tiny("simclr", branch="target")
    assert imagenet_224("simclr").projection_dim == 128


def test_gradients_reach_only_the_online_branch_and_the_predictor():
    net = network("byol")
    net(images(), images(seed=3)).backward()
    assert all(p.grad is None for p in net.target.parameters())
    assert all(p.grad is not None for p in net.online.parameters())
    assert all(p.grad is not None for p in net.predictor.parameters())


def test_the_heads_have_no_biases_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    net = network()
    linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 6
    assert all(m.bias is None for m in linear)
    assert torch.equal(torch.get_rng_state(), before)


def test_heads_start_as_published():
    net = network(head_width=256, projection_dim=128)
    for layer, fan_out in ((net.online.projector[0], 256), (net.online.projector[3], 128)):
        # Kaiming for ReLU, over the outputs.
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    for layer in (net.predictor[0], net.predictor[3]):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert abs(layer.weight.mean().item()) < 1e-3
    for name, value in net.target.state_dict().items():
        assert torch.equal(value, net.online.state_dict()[name])


def test_lars_steps_in_proportion_to_the_norm():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    free = torch.nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [weight]}, {"params": [free], "adapt": False}]
    lars = LARS(groups, lr=2.0, momentum=0.5, eta=0.1)
    for _ in range(2):
        weight.grad, free.grad = torch.tensor([0.0, 10.0]), torch.tensor([1.0])
        lars.step()
    # First: 2 * 0.1 * 5; second: momentum 0.5 of the old velocity plus the new one.
    first = 0.1 * 5.0
    second = 0.5 * first + 0.1 * (3.0**2 + (4.0 - 2 * first) ** 2) ** 0.5
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0, 4.0 - 2 * (first + second)]))
    torch.testing.assert_close(free.detach(), torch.tensor([1.0 - 2 * (1 + 1.5)]))


def test_what_lars_excludes_follows_the_rule():
    vector, matrix = torch.zeros(3), torch.zeros(3, 3)
    assert is_excluded("online.projector.1.weight", vector, "vectors")
    assert not is_excluded("online.projector.1.weight", vector, "eman")
    assert is_excluded("online.backbone.layer1.0.bn1.weight", vector, "eman")
    assert not is_excluded("online.backbone.conv1.weight", matrix, "vectors")
    groups = build_optimiser(network(), tiny()).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-6, 0.0]
    assert all(p.ndim < 2 for p in groups[1]["params"])


def test_the_rate_warms_up_then_falls_to_zero():
    config = tiny(epochs=10, warmup_epochs=2.0, lr=1.0)
    rates = [learning_rate(step, 5, config) for step in range(50)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    stepped = [learning_rate(s, 5, tiny(epochs=10, lr=1.0, cosine_per="epoch")) for s in range(10)]
    assert len(set(stepped)) == 2


def test_monitors_know_separated_and_collapsed_features():
    y = torch.arange(40) % 4
    x = torch.eye(4)[y] + 0.01 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    assert knn_accuracy(x, y, x, y, k=5) == 1.0
    assert feature_spread(x) > 0.3
    assert feature_spread(torch.ones(10, 4)) < 1e-6


def test_presets_and_bad_values():
    assert imagenet_224().arch == "resnet50"
    assert imagenet_224("byol").method == "byol"
    assert small_32().image_size == 32
    assert small_32().view_size == 24
    assert dataclasses.replace(small_32(), image_size=8).view_size == 8
    with pytest.raises(InputError, match="view_share"):
        tiny(view_share=1.5)
    with pytest.raises(InputError, match="momentum0"):
        tiny(momentum0=1.5)
    with pytest.raises(InputError, match="optimiser"):
        tiny(optimiser="adam")
    with pytest.raises(InputError, match="lr"):
        tiny(lr=0.0)
