"""Each method's rule against its formula, written out image by image, and in training."""

import math

import numpy as np
import pytest
import torch
from tiny_finetune import NormFree, TinyEncoder, digits

from svp.augment.draws import ShareDraws
from svp.augment.fixmatch import StrongView
from svp.errors import InputError
from svp.finetune.batchnorm import statistics_kept
from svp.finetune.config import METHODS, FinetuneConfig
from svp.finetune.methods import build_method
from svp.finetune.mixmatch import MixMatch, mix, squared_error_sum
from svp.finetune.model import Normalisation, trainable_copy
from svp.finetune.parallel import Group
from svp.finetune.presets import preset
from svp.finetune.probe import start_head
from svp.finetune.run import finetune
from svp.finetune.training import Training
from svp.finetune.views import Views
from svp.pseudolabels.fixmatch import FixMatch
from svp.pseudolabels.freematch import FreeMatch
from svp.pseudolabels.pseudolabel import PseudoLabel
from svp.pseudolabels.rule import Targets
from svp.pseudolabels.softmatch import SoftMatch
from svp.pseudolabels.uda import UDA

SEMI = [method for method in METHODS if method != "supervised"]


def logits_of(probs):
    return torch.tensor(probs, dtype=torch.float64).log().float()


def rows(count):
    return torch.arange(count)


def random_logits(rng, count=12, classes=5, scale=3.0):
    return torch.from_numpy(rng.normal(scale=scale, size=(count, classes)).astype(np.float32))


def test_fixmatch_counts_from_the_cutoff_on_and_nothing_is_zero_not_nan():
    weak = logits_of([[0.96, 0.04], [0.05, 0.95], [0.5, 0.5], [0.06, 0.94]])
    targets = FixMatch(0.95).targets(weak, rows(4))
    assert targets.label_M.tolist() == [0, 1, 0, 1]
    assert targets.weight_M.tolist() == [1, 1, 0, 0]
    empty = FixMatch(0.95).targets(torch.zeros(4, 2), rows(4))
    strong = torch.zeros(4, 2, requires_grad=True)
    loss = empty.loss_sum(strong)
    loss.backward()
    assert loss == 0
    assert (strong.grad == 0).all()


def test_uda_sharpens_the_targets_but_not_the_mask():
    weak = logits_of([[0.7, 0.2, 0.1], [0.85, 0.1, 0.05]])
    targets = UDA(3, cutoff=0.8, temperature=0.4).targets(weak, rows(2))
    assert targets.weight_M.tolist() == [0, 1]
    powers = torch.tensor([0.85, 0.1, 0.05], dtype=torch.float64) ** 2.5
    torch.testing.assert_close(targets.probs_MC[1], (powers / powers.sum()).float())
    # At T = 1, as in USB, they are the predictions themselves.
    plain = UDA(3, cutoff=0.8, temperature=1.0).targets(weak, rows(2))
    torch.testing.assert_close(plain.probs_MC, weak.softmax(1))
    # Cross-entropy to a soft target.
    strong = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]])
    expected = -(targets.probs_MC[1] * strong[1].log_softmax(0)).sum()
    torch.testing.assert_close(targets.loss_sum(strong), expected)


@pytest.mark.parametrize(
    ("curve", "share"),
    [("linear", 0.25), ("log", 1 - math.exp(-1.25)), ("exp", math.exp(-3.75))],
)
def test_uda_leaves_out_labels_that_are_known_too_well(curve, share):
    rule = UDA(4, cutoff=0.8, temperature=0.4, annealing=curve)
    assert rule.bound(0.25) == pytest.approx(share * 0.75 + 0.25)
    assert rule.bound(1.0) == pytest.approx(1.0, abs=0.01)
    bound = rule.bound(0.25)
    below, above = bound - 0.01, bound + 0.01
    logits = logits_of([[below, 1 - below, 1e-9, 1e-9], [above, 1 - above, 1e-9, 1e-9]])
    assert rule.labelled_weights(logits, torch.tensor([0, 0]), 0.25).tolist() == [1, 0]
    assert UDA(4, cutoff=0.8, temperature=0.4).labelled_weights(logits, rows(2), 0.25) is None


def test_freematch_follows_its_moving_averages_from_one_over_c():
    rng = np.random.default_rng(0)
    rule = FreeMatch(5, decay=0.9, fairness=0.0)
    assert rule.confidence == pytest.approx(0.2)
    confidence, mean, histogram = 0.2, np.full(5, 0.2), np.full(5, 0.2)
    for _ in range(30):
        weak = random_logits(rng)
        targets = rule.targets(weak, rows(12))
        probs = weak.softmax(1).numpy()
        confidence = 0.9 * confidence + 0.1 * probs.max(1).mean()
        mean = 0.9 * mean + 0.1 * probs.mean(0)
        histogram = 0.9 * histogram + 0.1 * np.bincount(probs.argmax(1), minlength=5) / 12
        thresholds = confidence * mean / mean.max()
        np.testing.assert_allclose(rule.thresholds(), thresholds, rtol=1e-5)
        np.testing.assert_allclose(rule.histogram_C, histogram, rtol=1e-5)
        expected = (probs.max(1) >= thresholds[probs.argmax(1)]).astype(float)
        assert targets.weight_M.tolist() == expected.tolist()


def test_freematch_fairness_is_its_formula_and_zero_where_nothing_counts():
    rng = np.random.default_rng(1)
    rule = FreeMatch(4, decay=0.5, fairness=0.3)
    rule.targets(random_logits(rng, classes=4), rows(12))
    strong = random_logits(rng, classes=4).requires_grad_()
    weight = torch.tensor([1.0, 0.0] * 6)
    targets = Targets(label_M=torch.zeros(12, dtype=torch.int64), weight_M=weight)
    term = rule.regulariser(strong, targets)
    probs = strong.detach().double().softmax(1).numpy()[weight.numpy() > 0]
    counts = np.bincount(probs.argmax(1), minlength=4)
    batch = np.divide(probs.mean(0), counts / 6, out=np.zeros(4), where=counts > 0)
    ours = (rule.probs_C / rule.histogram_C).numpy().astype(float)
    expected = 0.3 * (ours / ours.sum() * np.log(batch / batch.sum() + 1e-12)).sum()
    assert float(term.detach()) == pytest.approx(expected, rel=1e-4)
    term.backward()
    assert strong.grad.isfinite().all()
    assert strong.grad[0].abs().sum() > 0
    assert strong.grad[1].abs().sum() == 0  # does not count
    none = Targets(label_M=targets.label_M, weight_M=torch.zeros(12))
    alone = random_logits(rng, classes=4).requires_grad_()
    zero = rule.regulariser(alone, none)
    zero.backward()
    assert zero == 0
    assert (alone.grad == 0).all()


@pytest.mark.parametrize(("align", "align_labels"), [(False, False), (True, False), (True, True)])
def test_softmatch_weighs_by_a_truncated_gaussian(align, align_labels):
    rng = np.random.default_rng(2)
    rule = SoftMatch(5, decay=0.9, sigmas=2.0, align=align, align_labels=align_labels)
    assert (float(rule.mean), float(rule.variance)) == pytest.approx((0.2, 1.0))
    mean, variance, average = 0.2, 1.0, np.full(5, 0.2)
    shift = torch.tensor([2.0, 0.0, 0.0, 0.0, -2.0])  # so that aligned labels differ
    for _ in range(20):
        weak = random_logits(rng) + shift
        targets = rule.targets(weak, rows(12))
        plain = probs = weak.double().softmax(1).numpy()
        average = 0.9 * average + 0.1 * probs.mean(0)
        if align:
            probs = probs * 0.2 / average
            probs /= probs.sum(1, keepdims=True)
        top = probs.max(1)
        mean = 0.9 * mean + 0.1 * top.mean()
        variance = 0.9 * variance + 0.1 * top.var(ddof=1)
        weights = [math.exp(-(min(p - mean, 0) ** 2) * 4 / (2 * variance)) for p in top]
        np.testing.assert_allclose(targets.weight_M, weights, rtol=1e-4)
        labels = (probs if align_labels else plain).argmax(1)
        assert targets.label_M.tolist() == labels.tolist()
    assert (targets.weight_M > 0).all()
    assert (targets.weight_M <= 1).all()


def test_softmatch_with_one_image_keeps_its_variance():
    rule = SoftMatch(3, decay=0.5)
    assert rule.targets(torch.zeros(1, 3), rows(1)).weight_M.isfinite().all()
    assert rule.variance == 1


def test_pseudo_label_s_weight_grows_from_zero():
    rule = PseudoLabel(0.95, 0.4)
    assert [rule.weight(d) for d in (0.0, 0.1, 0.4, 1.0)] == pytest.approx([0, 0.25, 1, 1])
    assert PseudoLabel(0.95, 0.0).weight(0.0) == 1
    assert FixMatch(0.95).weight(0.0) == 1


def test_mixmatch_guesses_from_the_sharpened_mean_of_both_views():
    first, second = logits_of([[0.8, 0.2]]), logits_of([[0.4, 0.6]])
    targets = MixMatch(0.5, 0.4).guess(first, second)
    torch.testing.assert_close(targets.probs_MC, torch.tensor([[0.36, 0.16]]) / 0.52)
    assert targets.weight_M.tolist() == [1]


def test_mixing_is_biased_to_the_image_itself_and_mixes_targets_alike():
    count = 400
    x = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)
    target = torch.eye(count)
    mixed, mixed_target = mix(x, target, alpha=0.5, seed=3)
    own = mixed_target.diagonal()
    assert (own >= 0.5).all()
    assert own.std() > 0.05  # a ratio per image
    torch.testing.assert_close(mixed_target.sum(1), torch.ones(count))
    # Whatever was done to the targets was done to the images.
    value = mixed_target @ torch.arange(count, dtype=torch.float32)
    torch.testing.assert_close(mixed[:, 0, 0, 0], value, rtol=1e-4, atol=1e-2)
    again, _ = mix(x, target, alpha=0.5, seed=3)
    assert torch.equal(again, mixed)


def test_mixmatch_s_error_is_on_probabilities():
    logits = logits_of([[0.5, 0.5], [0.9, 0.1]])
    error = squared_error_sum(logits, torch.tensor([[1.0, 0.0], [0.9, 0.1]]))
    assert error == pytest.approx((0.25 + 0.25) / 2)


@pytest.mark.parametrize("method", SEMI)
def test_a_rule_continues_from_its_state(method):
    config = preset("small", method=method, statistics_ema=0.9)
    rng = np.random.default_rng(4)
    given = [random_logits(rng) for _ in range(6)]

    def fresh():
        return build_method(config, num_unlabelled=12, num_classes=5)

    if method == "mixmatch":
        assert fresh().state_dict() == {}
        return
    one, two = fresh(), fresh()
    for weak in given[:3]:
        one.targets(weak, rows(12))
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    for weak in given[3:]:
        ours, theirs = one.targets(weak, rows(12)), two.targets(weak, rows(12))
        assert torch.equal(ours.weight_M, theirs.weight_M)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])


def test_kept_statistics_normalise_by_the_batch_and_stay():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).train()
    x = torch.randn(8, 3, 4, 4) * 3 + 1
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with statistics_kept(network):
        inside = network(x)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(inside, network(x))
    assert not torch.equal(network.state_dict()["0.running_mean"], before["0.running_mean"])


def training(config, *, module=None, data=None, group=None):
    data = data or digits()
    encoder = TinyEncoder(module, None if module is None else 24)
    classifier = trainable_copy(encoder, 10)
    for layer in classifier.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    normalisation = Normalisation.of(encoder)
    start_head(classifier, normalisation, data.images_N3SS, data, config, seed=0)
    unlabelled = torch.from_numpy(data.unlabelled_rows)
    return Training(
        classifier,
        normalisation,
        data.images_N3SS,
        (torch.from_numpy(data.labelled_rows), torch.from_numpy(data.labels_L)),
        (unlabelled, torch.from_numpy(data.known_labels_N[data.unlabelled_rows])),
        config,
        seed=0,
        device=torch.device("cpu"),
        group=group,
    )


def small(method, **changes):
    given = {
        "method": method, "mode": "lp-ft", "steps": 4, "batch_size": 8, "uratio": 2,
        "flip": False, "supervised_share": 0.0, "eval_batch_size": 1024, "head_lr": 0.03,
        "backbone_lr": 0.03,
    }  # fmt: skip
    return preset("small", **(given | changes))


def test_pseudo_labels_leave_batch_norm_to_the_labelled_images():
    # Same labelled images, other unlabelled ones: the running statistics of the first step agree.
    data = digits()
    kept = []
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(data.unlabelled_rows)
        other = digits() if seed == 0 else type(data)(
            **{f: getattr(data, f) for f in data.__dataclass_fields__} | {"unlabelled_rows": order}
        )  # fmt: skip
        run = training(small("pseudolabel", teacher="student", ema=0.0), data=other)
        run.run_step()
        kept.append(run.classifier.state_dict()["backbone.stem.1.running_mean"])
    assert torch.equal(*kept)


@pytest.mark.parametrize("method", SEMI)
@pytest.mark.parametrize("teacher", ["student", "average"])
def test_every_method_trains_and_repeats(tmp_path, method, teacher):
    data, config = digits(), small(method, teacher=teacher, supervised_share=0.25)
    one = finetune(TinyEncoder(), data, config, output=tmp_path / "1", seed=5)
    assert one.model.probabilities(data.images_N3SS[:9]).isfinite().all()
    assert one.metrics["history"][-1]["loss_unlabelled"] >= 0
    if teacher == "student":
        two = finetune(TinyEncoder(), data, config, output=tmp_path / "2", seed=5)
        assert all(torch.equal(v, two.model.state()[n]) for n, v in one.model.state().items())


@pytest.mark.parametrize("method", ["flexmatch", "fixmatch", "uda", "pseudolabel", "softmatch"])
@pytest.mark.parametrize("mean", ["all", "counted"])
def test_nothing_confident_is_no_gradient_and_no_nan(method, mean):
    # A threshold that nothing reaches leaves the labelled loss alone.
    reach = {"cutoff": 1.0, "threshold_floor": 0.999} if method != "softmatch" else {}
    same = {"bn_mode": "frozen", "teacher": "student", "ema": 0.0}
    config = small(method, unlabelled_mean=mean, ramp_share=0.0, **same, **reach)
    module = NormFree()
    run = training(config, module=module)
    torch.nn.init.zeros_(run.classifier.head.weight)
    torch.nn.init.zeros_(run.classifier.head.bias)
    run.run_step()
    assert all(p.grad.isfinite().all() for p in run.classifier.parameters())
    plain = training(small("supervised", **same), module=module)
    torch.nn.init.zeros_(plain.classifier.head.weight)
    torch.nn.init.zeros_(plain.classifier.head.bias)
    plain.run_step()
    for one, other in zip(run.classifier.parameters(), plain.classifier.parameters(), strict=True):
        if method != "softmatch":  # where everything counts a little
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["supervised", *SEMI[:-1]])
def test_parts_add_up_to_the_step(method):
    changes = {"bn_mode": "frozen", "fairness": 0.0, "ramp_share": 0.0, "cutoff": 0.3}
    module = NormFree()
    whole = training(small(method, **changes), module=module)
    parts = training(small(method, accumulate=3, **changes), module=module)
    for _ in range(3):
        whole.run_step()
        parts.run_step()
    for one, other in zip(
        whole.classifier.parameters(), parts.classifier.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert whole.history[-1]["loss"] == pytest.approx(parts.history[-1]["loss"], rel=1e-3)


def test_parts_train_batch_norm_and_mix_too():
    for method in ("flexmatch", "mixmatch"):
        run = training(small(method, accumulate=3, teacher="student"))
        for _ in range(4):
            run.run_step()
        assert math.isfinite(run.history[-1]["loss"])
    with pytest.raises(InputError, match="accumulate must be at most"):
        small("flexmatch", accumulate=9)


def test_shares_of_a_batch_get_the_numbers_of_the_whole():
    x = digits().images_N3SS[:10]
    view = StrongView()
    whole = view(x, generator=torch.Generator().manual_seed(1))
    parts = [
        view(
            x[start:stop],
            generator=ShareDraws(
                generator=torch.Generator().manual_seed(1), start=start, total=len(x)
            ),
        )
        for start, stop in ((0, 3), (3, 10))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_reading_ahead_changes_nothing():
    data, config = digits(), small("flexmatch", supervised_share=0.5)
    labelled = (torch.from_numpy(data.labelled_rows), torch.from_numpy(data.labels_L))
    rows_U, device = torch.from_numpy(data.unlabelled_rows), torch.device("cpu")
    given = {"first_unlabelled": 2, "seed": 1, "device": device, "group": Group()}
    plain, ahead = (
        Views(data.images_N3SS, labelled, rows_U, config, ahead=ahead, **given)
        for ahead in (False, True)
    )
    for step in (0, 1, 2, 3, 7, 3):  # also steps that nobody read ahead
        one, other = plain.at(step), ahead.at(step)
        assert torch.equal(one.x_B3SS, other.x_B3SS)
        assert (one.weak_M3SS is None) == (step < 2)
        if step >= 2:
            assert torch.equal(one.other_M3SS, other.other_M3SS)
            assert torch.equal(one.every_row, other.every_row)


def test_labelled_mixup_mixes_targets_as_well():
    config = small("supervised", mixup=1.0, steps=30, ema=0.0)
    run, plain = training(config), training(small("supervised", steps=30, ema=0.0))
    for _ in range(30):
        run.run_step()
        plain.run_step()
    # Mixed targets keep the loss up where one label an image would let it fall to 0.
    assert run.history[-1]["loss"] > plain.history[-1]["loss"] + 0.05


def test_checkpointed_blocks_need_a_network_that_can():
    with pytest.raises(InputError, match="cannot compute its blocks again"):
        training(small("supervised", checkpoint_blocks=True, bn_mode="frozen"))
    with pytest.raises(InputError, match="batch-norm"):
        training(small("supervised", checkpoint_blocks=True))


def test_a_method_brings_its_published_settings():
    assert preset("small", method="uda").cutoff == 0.8
    assert preset("small", method="uda", cutoff=0.5).cutoff == 0.5
    mixmatch = preset("mixmatch-classic")
    assert (mixmatch.lambda_u, mixmatch.mixup, mixmatch.temperature) == (150, 0.5, 0.5)
    assert preset("small", method="mixmatch").lambda_u == 10
    assert preset("uda-usb").temperature == 1
    assert preset("freematch-usb").fairness == 0.01
    assert preset("freematch-classic").fairness == 0.001
    with pytest.raises(InputError, match="mixup"):
        FinetuneConfig(method="mixmatch")
