import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_finetune import NormFree, TinyEncoder, digits

from svp.errors import InputError
from svp.finetune.config import FinetuneConfig
from svp.finetune.model import Normalisation, trainable_copy
from svp.finetune.optimiser import build_optimiser, set_rate
from svp.finetune.presets import PRESETS, preset
from svp.finetune.sampling import Passes
from svp.finetune.schedule import rate_factor


def test_settings_need_no_torch():
    code = "import sys, svp.finetune.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_can_be_overridden(name):
    assert preset(name, batch_size=3).batch_size == 3
    steps = preset(name, steps=7)
    assert (steps.steps, steps.epochs) == (7, None)
    epochs = preset(name, epochs=7)
    assert (epochs.steps, epochs.epochs) == (None, 7)


def test_published_settings():
    ft, lp_ft = preset("asvp-cifar10"), preset("asvp-cifar10", mode="lp-ft")
    assert (ft.head_lr, ft.backbone_lr, ft.epochs, ft.batch_size) == (0.1, 0.1, 130, 128)
    assert (lp_ft.head_lr, lp_ft.backbone_lr, lp_ft.epochs) == (0.1, 0.01, 120)
    assert lp_ft.weight_decay == 0
    classic = preset("flexmatch-classic")
    assert (classic.batch_size, classic.uratio, classic.steps, classic.ema) == (64, 7, 2**20, 0.999)
    usb = preset("flexmatch-usb")
    assert (usb.batch_size, usb.uratio, usb.steps, usb.layer_decay) == (8, 1, 204_800, 0.5)


def test_unknown_names_list_near_ones():
    with pytest.raises(InputError, match=r"Did you mean asvp-cifar10"):
        preset("asvp-cifar")
    with pytest.raises(InputError, match=r"Did you mean batch_size\?"):
        preset(batchsize=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "both"}, {"steps": None}, {"epochs": 3}, {"batch_size": 0}, {"ema": 1.0},
        {"cutoff": 0.0}, {"cutout": 0.6}, {"milestones": (0.8, 0.6)}, {"clip_norm": 0.0},
        {"head_lr": -1.0}, {"teacher": "average", "ema": 0.0}, {"probe_l2": 0.0},
        {"supervised_share": 1.0},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong)) if "teacher" not in wrong else "ema"):
        FinetuneConfig(**wrong)


def test_schedules():
    cosine = FinetuneConfig(schedule="cosine")
    assert rate_factor(0, 100, cosine) == 1
    assert rate_factor(100, 100, cosine) == pytest.approx(0.1951, abs=1e-4)
    step = FinetuneConfig(schedule="step", milestones=(0.6, 0.8))
    assert [rate_factor(s, 50, step) for s in (0, 29, 30, 40)] == pytest.approx([1, 1, 0.1, 0.01])
    restarts = FinetuneConfig(schedule="restarts", restart_steps=500)
    starts = [s for s in range(4000) if rate_factor(s, 4000, restarts) == 1]
    assert starts == [0, 500, 1500, 3500]
    warm = FinetuneConfig(schedule="warmup-cosine", warmup_steps=10)
    assert rate_factor(0, 110, warm) == pytest.approx(0.1)
    assert rate_factor(10, 110, warm) == 1
    assert rate_factor(110, 110, warm) == pytest.approx(0)


def test_asvp_counts_partial_batches_as_steps():
    config = preset("asvp-cifar10")
    assert config.total_steps(200) == 130 * math.ceil(200 / 128)
    assert dataclasses.replace(config, mode="lp").total_steps(200) == 0


def test_passes_visit_every_row_once_and_any_batch_can_be_asked_for_first():
    passes = Passes(10, 3, "x")
    stream = np.concatenate([passes.batch(step, 4) for step in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert np.array_equal(Passes(10, 3, "x").batch(3, 4), stream[12:16])
    assert not np.array_equal(Passes(10, 4, "x").batch(0, 10), stream[:10])
    assert np.array_equal(np.sort(Passes(2, 0).batch(7, 6)), [0, 0, 0, 1, 1, 1])


def test_rates_of_head_backbone_and_blocks():
    config = FinetuneConfig(head_lr=1.0, backbone_lr=0.1, layer_decay=0.5, weight_decay=0.01)
    classifier = trainable_copy(TinyEncoder(NormFree(), 24), 10)
    optimiser = build_optimiser(classifier, config)
    set_rate(optimiser, 0.5)
    rates = {
        name: (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for name, parameter in classifier.named_parameters()
        if any(parameter is one for one in group["params"])
    }
    assert rates["head.weight"] == (0.5, 0.01)
    assert rates["head.bias"] == (0.5, 0.0)
    assert rates["backbone.blocks.4.weight"] == (0.05, 0.01)
    assert rates["backbone.blocks.1.weight"] == (0.05 * 0.5**3, 0.0)
    assert rates["backbone.blocks.0.weight"] == (0.05 * 0.5**4, 0.01)
    with pytest.raises(InputError, match="layer_decay"):
        build_optimiser(trainable_copy(TinyEncoder(torch.nn.Conv2d(3, 4, 1), 4), 10), config)


def test_normalisation_is_read_off_the_encoder():
    encoder = TinyEncoder()
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    ours = Normalisation.of(encoder)(x.float() / 255)
    torch.testing.assert_close(ours, encoder.normalise(x), rtol=1e-5, atol=1e-5)
    encoder.normalise = lambda x_u8: (x_u8.float() / 255) ** 2
    with pytest.raises(InputError, match="affine"):
        Normalisation.of(encoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"ids": d.ids[:-1]}, "ids must name"),
        (lambda d: {"class_names": ("one",)}, "at least 2"),
        (lambda d: {"labelled_rows": d.labelled_rows[:0], "labels_L": d.labels_L[:0]}, "empty"),
        (lambda d: {"unlabelled_rows": d.labelled_rows}, "overlap"),
        (lambda d: {"held_out_rows": d.held_out_rows + 10_000}, "must lie in"),
        (lambda d: {"labels_L": d.labels_L[:-1]}, "one class per row"),
        (lambda d: {"labels_L": d.labels_L + 5}, "labels_L must lie in"),
        (lambda d: {"images_N3SS": d.images_N3SS.float()}, "uint8"),
        (lambda d: {"known_labels_N": d.known_labels_N[:-1]}, "known_labels_N"),
    ],
)
def test_data_that_does_not_fit_is_refused(change, message):
    data = digits()
    with pytest.raises(InputError, match=message):
        dataclasses.replace(data, **change(data))
