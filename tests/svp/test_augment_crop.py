import pytest
import torch
import torch.nn.functional as F

from svp.augment.crop import horizontal_flip, pad_crop, random_resized_crop


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(6, 3, 12, 12, generator=seeded(9))


def test_a_crop_of_everything_is_the_image(images):
    out = random_resized_crop(images, generator=seeded(), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    torch.testing.assert_close(out, images, atol=1e-5, rtol=0)


def test_a_flip_of_everything_is_the_mirror_image(images):
    out = random_resized_crop(
        images, generator=seeded(), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=1.0
    )
    torch.testing.assert_close(out, images.flip(3), atol=1e-5, rtol=0)
    assert torch.equal(horizontal_flip(images, generator=seeded(), p=1.0), images.flip(3))
    assert torch.equal(horizontal_flip(images, generator=seeded(), p=0.0), images)


def test_crops_have_the_asked_areas_and_ratios_and_lie_inside():
    # Pixels that hold their own coordinates turn a crop into a reading of its box.
    side, n = 64, 500
    line = (torch.arange(side) + 0.5) / side
    ramp = torch.stack([line.expand(side, side), line[:, None].expand(side, side)])
    out = random_resized_crop(
        ramp.expand(n, 2, side, side), generator=seeded(1), scale=(0.2, 0.8), ratio=(0.5, 2.0)
    )
    inner = slice(16, 48)
    per_width = side / 31  # 31 of the 64 steps across a box lie between the two readings
    w = (out[:, 0, 32, inner.stop - 1] - out[:, 0, 32, inner.start]) * per_width
    h = (out[:, 1, inner.stop - 1, 32] - out[:, 1, inner.start, 32]) * per_width
    area, ratio = w * h, w / h
    assert area.min() > 0.2 - 0.01
    assert area.max() < 0.8 + 0.01
    assert ratio.min() > 0.5 - 0.02
    assert ratio.max() < 2.0 + 0.05
    assert ratio.log().mean().abs() < 0.05
    assert out.min() >= line[0] - 1e-6
    assert out.max() <= line[-1] + 1e-6
    # A box of width w has its centre in [w/2, 1 - w/2].
    centre = out[:, 0, 32, 31:33].mean(dim=1)
    assert (centre >= w / 2 - 0.02).all()
    assert (centre <= 1 - w / 2 + 0.02).all()


def test_a_ratio_that_never_fits_falls_back_to_the_largest_centred_box():
    image = torch.rand(1, 1, 8, 8, generator=seeded(3))
    out = random_resized_crop(image, generator=seeded(), scale=(1.0, 1.0), ratio=(2.0, 2.0))
    expected = F.interpolate(image[:, :, 2:6], size=(8, 8), mode="bilinear")
    torch.testing.assert_close(out[:, :, 2:-2], expected[:, :, 2:-2], atol=1e-5, rtol=0)


def test_pad_crop_equals_padding_and_cutting(images):
    out = pad_crop(images, generator=seeded(5), pad=3)
    shifts = torch.randint(7, (6, 2), generator=seeded(5))
    padded = F.pad(images, (3, 3, 3, 3), mode="reflect")
    for i, (dy, dx) in enumerate(shifts.tolist()):
        assert torch.equal(out[i], padded[i, :, dy : dy + 12, dx : dx + 12])


def test_pad_crop_takes_bytes_and_flips():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    out = pad_crop(images, generator=seeded(), pad=0, flip_p=1.0)
    assert out.dtype == torch.uint8
    assert torch.equal(out, images.flip(3))


@pytest.mark.parametrize("augment", [random_resized_crop, horizontal_flip, pad_crop])
def test_the_generator_decides_and_images_differ(augment):
    same = torch.rand(1, 3, 12, 12, generator=seeded(2)).expand(16, 3, 12, 12)
    before = torch.get_rng_state()
    out = augment(same, generator=seeded(7))
    assert torch.equal(out, augment(same, generator=seeded(7)))
    assert not torch.equal(out, augment(same, generator=seeded(8)))
    assert len({tuple(image.flatten().tolist()) for image in out}) > 1
    assert torch.equal(torch.get_rng_state(), before)
