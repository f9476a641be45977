import dataclasses

import numpy as np
import pytest
import torch
from tiny_finetune import NormFree, TinyEncoder, digits

from svp.errors import InputError
from svp.finetune.data import module_digest
from svp.finetune.model import Head, Normalisation, trainable_copy
from svp.finetune.outputs import load_model
from svp.finetune.presets import preset
from svp.finetune.probe import solve_probe, start_head
from svp.finetune.run import finetune
from svp.finetune.training import Training


def tiny(**changes):
    given = {
        "steps": 3,
        "batch_size": 8,
        "uratio": 2,
        "flip": False,
        "eval_batch_size": 1024,
        "mode": "lp-ft",
        "head_lr": 0.03,
        "backbone_lr": 0.03,
        "supervised_share": 0.0,
    }
    return preset("small", **(given | changes))


def same_model(one, other):
    return all(torch.equal(value, other.state()[name]) for name, value in one.state().items())


def test_the_encoder_is_never_modified(tmp_path):
    encoder = TinyEncoder()
    before, grads = (
        module_digest(encoder.module),
        [p.requires_grad for p in encoder.module.parameters()],
    )
    finetune(encoder, digits(), tiny(), output=tmp_path, seed=0)
    assert module_digest(encoder.module) == before
    assert [p.requires_grad for p in encoder.module.parameters()] == grads
    assert not encoder.module.training


def test_probing_changes_nothing_of_the_backbone_buffers_included(tmp_path):
    encoder = TinyEncoder()
    before = module_digest(encoder.module)
    result = finetune(encoder, digits(), tiny(mode="lp"), output=tmp_path, seed=0)
    assert module_digest(result.model.backbone) == before


def test_lp_ft_starts_at_the_logits_of_the_probe(tmp_path):
    encoder, data = TinyEncoder(), digits()
    probe = finetune(encoder, data, tiny(mode="lp"), output=tmp_path / "lp", seed=0)
    start = finetune(encoder, data, tiny(mode="lp-ft", steps=0), output=tmp_path / "ft", seed=0)
    x = data.images_N3SS[:50]
    assert torch.equal(start.model.logits(x), probe.model.logits(x))
    moved = finetune(encoder, data, tiny(mode="lp-ft"), output=tmp_path / "moved", seed=0)
    assert not torch.equal(moved.model.logits(x), probe.model.logits(x))
    right = probe.model.logits(data.images_N3SS[data.labelled_rows]).argmax(1).numpy()
    assert (right == data.labels_L).mean() > 0.9


def test_the_probe_is_at_its_optimum_in_the_features_own_space():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(60, 7, generator=rng) * torch.tensor([1, 10, 100, 1, 1, 1, 0.0]) + 5
    y = torch.randint(3, (60,), generator=rng)
    weight, bias = (t.double().requires_grad_(True) for t in solve_probe(x, y, 4, l2=0.6))
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    std = torch.where(std > 1e-12, std, 1.0)
    loss = torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, y)
    penalty = (weight * std).square().sum() + (bias + weight @ mean).square().sum()
    (loss + 0.005 * penalty).backward()
    assert (weight.grad / std).abs().max() < 1e-3  # float32 rounding of the result is what is left
    assert bias.grad.abs().max() < 1e-5
    assert weight.isfinite().all()  # class 3 has no label, feature 6 no variance
    assert bias.isfinite().all()


@pytest.mark.parametrize("method", ["supervised", "flexmatch"])
def test_frozen_batch_norm_keeps_statistics_to_the_bit(tmp_path, method):
    encoder = TinyEncoder()
    for mode, equal in (("frozen", True), ("train", False)):
        config = tiny(method=method, bn_mode=mode, mode="ft")
        result = finetune(encoder, digits(), config, output=tmp_path / mode, seed=0)
        tuned, start = result.model.backbone.state_dict(), encoder.module.state_dict()
        running = [n for n in start if "running" in n or "num_batches" in n]
        assert running
        assert all(torch.equal(tuned[n], start[n]) for n in running) == equal
        assert not torch.equal(tuned["stem.0.weight"], start["stem.0.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "supervised"},
        {"method": "flexmatch", "teacher": "average"},
        {"method": "flexmatch", "teacher": "student", "precision": "bf16"},
        {"method": "flexmatch", "optimiser": "adamw", "schedule": "restarts", "ema": 0.0,
         "teacher": "student"},
        {"method": "supervised", "label_smoothing": 0.1, "clip_norm": 1.0, "schedule": "step"},
    ],
)  # fmt: skip
def test_a_seed_decides_the_model_to_the_bit(tmp_path, changes):
    data, config = digits(), tiny(**changes)
    encoder = TinyEncoder(NormFree(), 24) if changes["method"] == "supervised" else TinyEncoder()
    one = finetune(encoder, data, config, output=tmp_path / "1", seed=5)
    torch.rand(7)
    before = torch.get_rng_state()
    two = finetune(encoder, data, config, output=tmp_path / "2", seed=5)
    assert torch.equal(before, torch.get_rng_state())
    other = finetune(encoder, data, config, output=tmp_path / "3", seed=6)
    assert same_model(one.model, two.model)
    assert not same_model(one.model, other.model)


def test_the_order_of_rows_does_not_matter(tmp_path):
    data = digits()
    flipped = dataclasses.replace(
        data,
        labelled_rows=data.labelled_rows[::-1].copy(),
        labels_L=data.labels_L[::-1].copy(),
        unlabelled_rows=data.unlabelled_rows[::-1].copy(),
    )
    one = finetune(TinyEncoder(), data, tiny(), output=tmp_path / "1", seed=0)
    two = finetune(TinyEncoder(), flipped, tiny(), output=tmp_path / "2", seed=0)
    assert same_model(one.model, two.model)


@pytest.mark.parametrize("method", ["supervised", "flexmatch"])
@pytest.mark.parametrize(
    "case",
    [
        {"labels": 1, "unlabelled": 300},  # fewer labels than a batch, nine classes absent
        {"labels": 18, "unlabelled": 5, "absent": 3},  # fewer unlabelled images than a batch
        {"labels": 40, "unlabelled": 1, "held_out": 0},
    ],
)
def test_little_of_everything(tmp_path, method, case):
    data = digits(**case)
    result = finetune(TinyEncoder(), data, tiny(method=method), output=tmp_path, seed=0)
    probs = result.model.probabilities(data.images_N3SS[:9])
    assert probs.isfinite().all()
    assert (result.evaluation is None) == (case.get("held_out") == 0)


@pytest.mark.parametrize("module", [None, NormFree()])
def test_weak_views_alone_give_the_same_gradient_where_images_do_not_mix(module):
    encoder = TinyEncoder(module, None if module is None else 24)
    data = digits()
    gradients = []
    for mixes in (True, False):
        config = tiny(bn_mode="frozen", mode="lp-ft", ema=0.0, teacher="student", head_lr=1.0)
        classifier = trainable_copy(encoder, 10)
        for layer in classifier.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        normalisation = Normalisation.of(encoder)
        start_head(classifier, normalisation, data.images_N3SS, data, config, seed=0)
        rows = torch.from_numpy(data.unlabelled_rows)
        training = Training(
            classifier,
            normalisation,
            data.images_N3SS,
            (torch.from_numpy(data.labelled_rows), torch.from_numpy(data.labels_L)),
            (rows, torch.full_like(rows, -1)),
            config,
            seed=0,
            device=torch.device("cpu"),
        )
        training._losses._mixes = mixes
        training.run_step()
        gradients.append([p.grad for p in classifier.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_given_head_is_taken_over(tmp_path):
    encoder, data = TinyEncoder(), digits()
    head = Head(weight_Cd=torch.randn(10, 128), bias_C=torch.zeros(10), unit_features=True)
    config = tiny(mode="ft", steps=0)
    result = finetune(encoder, data, config, output=tmp_path, seed=0, head=head)
    x = data.images_N3SS[:20]
    with torch.no_grad():
        z = torch.nn.functional.normalize(encoder.module(encoder.normalise(x)), dim=1)
    torch.testing.assert_close(result.model.logits(x), z @ head.weight_Cd.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(load_model(tmp_path).logits(x), result.model.logits(x))
    wrong = Head(weight_Cd=torch.zeros(9, 128), bias_C=torch.zeros(9))
    with pytest.raises(InputError, match="head must have shape"):
        finetune(encoder, data, config, output=tmp_path / "x", seed=0, head=wrong)
    with pytest.raises(InputError, match="mode is ft"):
        finetune(encoder, data, tiny(mode="lp"), output=tmp_path / "y", seed=0, head=head)


def test_a_diverging_run_says_so(tmp_path):
    config = tiny(method="supervised", head_lr=1e30, backbone_lr=1e30, steps=6)
    with pytest.raises(InputError, match="loss must stay finite"):
        finetune(TinyEncoder(), digits(), config, output=tmp_path, seed=0)
    assert not (tmp_path / "metrics.json").exists()


def test_flexmatch_without_unlabelled_images_is_refused(tmp_path):
    data = dataclasses.replace(digits(), unlabelled_rows=np.empty(0, dtype=np.int64))
    with pytest.raises(InputError, match="must have unlabelled images"):
        finetune(TinyEncoder(), data, tiny(), output=tmp_path, seed=0)
    finetune(TinyEncoder(), data, tiny(include_labelled=True), output=tmp_path, seed=0)


def test_unlabelled_images_help_on_few_labels(tmp_path):
    data = digits(labels=20, unlabelled=1200, held_out=400, seed=1)
    accuracy = {}
    for method in ("supervised", "flexmatch"):
        config = tiny(method=method, mode="ft", steps=150, batch_size=16, uratio=4, ema=0.95,
                      supervised_share=0.27)  # fmt: skip
        result = finetune(TinyEncoder(), data, config, output=tmp_path / method, seed=1)
        assert result.evaluation is not None
        accuracy[method] = result.evaluation.accuracy
    assert accuracy["flexmatch"] >= accuracy["supervised"] + 0.03  # about 0.90 against 0.79
