import colorsys

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from svp.augment.byol import BYOLViews, ViewsConfig, views_32, views_224, views_digits
from svp.augment.color import (
    Jitter,
    color_jitter,
    random_blur,
    random_grey,
    random_solarise,
    shift_hue,
)
from svp.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=seeded(9))


def test_hue_turns_as_in_the_standard_library(images):
    turn = torch.tensor([0.0, 0.1, -0.1, 1 / 3, 0.5])
    out = shift_hue(images, turn)
    for i in range(5):
        h, s, v = colorsys.rgb_to_hsv(*images[i, :, 3, 4].tolist())
        expected = torch.tensor(colorsys.hsv_to_rgb((h + turn[i].item()) % 1, s, v))
        torch.testing.assert_close(out[i, :, 3, 4], expected, atol=1e-5, rtol=0)


def test_hue_leaves_grey_alone():
    grey = torch.full((1, 3, 2, 2), 0.4)
    torch.testing.assert_close(shift_hue(grey, torch.tensor([0.3])), grey)


@pytest.mark.parametrize(
    ("name", "adjust"),
    [
        ("brightness", reference.adjust_brightness),
        ("contrast", reference.adjust_contrast),
        ("saturation", reference.adjust_saturation),
    ],
)
def test_single_jitters_match_torchvision_for_some_factor(images, name, adjust):
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "p": 1.0}
    out = color_jitter(images[:1], Jitter(**{**none, name: 0.5}), generator=seeded(3))
    factors = torch.linspace(0.5, 1.5, 2001).tolist()
    best = min((adjust(images[:1], f) - out).abs().max().item() for f in factors)
    assert best < 2e-3
    assert (out - images[:1]).abs().max() > 0.02


def test_jitter_spares_images_by_chance_and_stays_in_range(images):
    many = images[:1].expand(400, 3, 16, 16)
    out = color_jitter(many, Jitter(p=0.5), generator=seeded(1))
    spared = (out - many).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 0.4 < spared.float().mean() < 0.6
    assert out.min() >= 0
    assert out.max() <= 1


def test_grey_and_solarise(images):
    grey = random_grey(images, generator=seeded(), p=1.0)
    torch.testing.assert_close(grey, reference.rgb_to_grayscale(images, 3), atol=1e-3, rtol=0)
    solarised = random_solarise(images, generator=seeded(), p=1.0)
    assert torch.equal(solarised, torch.where(images >= 0.5, 1 - images, images))
    assert torch.equal(random_solarise(images, generator=seeded(), p=0.0), images)


def test_blur_matches_torchvision(images):
    out = random_blur(images, generator=seeded(), p=1.0, sigma=(1.5, 1.5))
    expected = reference.gaussian_blur(images, [9, 9], [1.5, 1.5])
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)
    some = random_blur(images, generator=seeded(2), p=0.5, sigma=(1.5, 1.5))
    changed = (some != images).flatten(1).any(dim=1)
    assert 0 < changed.sum() < len(images)
    assert torch.equal(random_blur(images, generator=seeded(), p=0.0), images)


@pytest.mark.parametrize("config", [views_224(), views_32(), views_digits()])
def test_views_are_deterministic_different_and_in_range(config):
    images = torch.rand(1, 3, 16, 16, generator=seeded(4)).expand(8, 3, 16, 16)
    views = BYOLViews(config, 16)
    one, two = views(images, generator=seeded(1))
    again, _ = views(images, generator=seeded(1))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert len({tuple(image.flatten().tolist()) for image in one}) == 8
    for view in (one, two):
        assert view.shape == images.shape
        assert view.min() >= 0
        assert view.max() <= 1


def test_digits_are_never_mirrored_nor_coloured():
    config = views_digits()
    assert config.flip_p == 0
    grey = torch.rand(4, 1, 8, 8, generator=seeded(4)).expand(4, 3, 8, 8)
    for view in BYOLViews(config, 8)(grey, generator=seeded(1)):
        torch.testing.assert_close(view[:, 0], view[:, 2])


def test_bad_settings_are_explained():
    with pytest.raises(InputError, match="crop_scale"):
        ViewsConfig(crop_scale=(0.5, 0.2))
    with pytest.raises(InputError, match="solarise_p"):
        ViewsConfig(solarise_p=(0.0, 2.0))
    with pytest.raises(InputError, match="hue"):
        Jitter(hue=0.7)
