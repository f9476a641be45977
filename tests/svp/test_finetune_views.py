import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from svp.augment.cutout import GREY, cutout
from svp.augment.fixmatch import StrongView, WeakView
from svp.augment.randaugment import OPERATIONS, rand_augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=24, size=32, seed=3):
    return torch.rand(count, 3, size, size, generator=generator(seed))


def test_there_are_the_fourteen_published_operations():
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [8, 33])
def test_each_operation_stays_in_range_at_any_strength(name, size):
    x = pictures(11, size)
    strength = torch.linspace(0, 1, 11)
    y = OPERATIONS[name](x.clone(), strength)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    assert y.min() >= -1e-6
    assert y.max() <= 1 + 1e-6
    alone = torch.cat([OPERATIONS[name](x[i : i + 1], strength[i : i + 1]) for i in range(11)])
    torch.testing.assert_close(y, alone, rtol=0, atol=1e-5)  # images do not mix


def pillow(x_CSS):
    return Image.fromarray((x_CSS * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("auto-contrast", lambda image, s: ImageOps.autocontrast(image)),
        ("brightness", lambda image, s: ImageEnhance.Brightness(image).enhance(0.05 + 0.9 * s)),
        ("colour", lambda image, s: ImageEnhance.Color(image).enhance(0.05 + 0.9 * s)),
        ("contrast", lambda image, s: ImageEnhance.Contrast(image).enhance(0.05 + 0.9 * s)),
        ("equalize", lambda image, s: ImageOps.equalize(image)),
        ("posterize", lambda image, s: ImageOps.posterize(image, 4 + int(4 * s))),
        ("sharpness", lambda image, s: ImageEnhance.Sharpness(image).enhance(0.05 + 0.9 * s)),
        ("solarize", lambda image, s: ImageOps.solarize(image, int(np.ceil(255 * s)))),
    ],
)
def test_colour_operations_are_those_of_pillow(name, reference):
    # A smooth picture of few tones: rounding to 8 bits is then all that may differ.
    ramp = torch.linspace(0.1, 0.8, 32)
    x = torch.stack([ramp.expand(32, 32), ramp.expand(32, 32).T, (ramp.expand(32, 32) + 0.1)])
    x = tensor(pillow(x))
    strength = 0.37
    ours = OPERATIONS[name](x[None].clone(), torch.tensor([strength]))[0]
    theirs = tensor(reference(pillow(x), strength))
    assert (ours - theirs).abs().max() <= 1.6 / 255


@pytest.mark.parametrize(
    ("name", "strength", "matrix"),
    [
        ("shear-x", 0.9, (1, 0.24, 0, 0, 1, 0)),
        ("shear-y", 0.9, (1, 0, 0, 0.24, 1, 0)),
        ("translate-x", 0.75, (1, 0, 0.15 * 32, 0, 1, 0)),
        ("translate-y", 0.75, (1, 0, 0, 0, 1, 0.15 * 32)),
    ],
)
def test_geometric_operations_are_those_of_pillow(name, strength, matrix):
    x = tensor(pillow(pictures(1)[0]))
    ours = OPERATIONS[name](x[None].clone(), torch.tensor([strength]))[0]
    image = pillow(x).transform((32, 32), Image.Transform.AFFINE, matrix)
    same = (ours - tensor(image)).abs().amax(dim=0) < 1 / 255
    assert same.float().mean() > 0.97  # a pixel exactly between two may fall to either


def test_a_seed_decides_a_view_and_the_global_state_does_not():
    x, view = pictures(), StrongView()
    one = view(x, generator=generator(1))
    torch.rand(3)
    assert torch.equal(one, view(x, generator=generator(1)))
    assert not torch.equal(one, view(x, generator=generator(2)))


@pytest.mark.parametrize("view", [WeakView(), WeakView(crop="resized"), StrongView()])
def test_views_take_bytes_and_floats_alike(view):
    bytes_in = (pictures() * 255).round().to(torch.uint8)
    before = bytes_in.clone()
    from_bytes = view(bytes_in, generator=generator())
    from_floats = view(bytes_in.float() / 255, generator=generator())
    torch.testing.assert_close(from_bytes, from_floats, rtol=0, atol=1e-6)
    assert torch.equal(bytes_in, before)
    assert from_bytes.dtype == torch.float32
    assert from_bytes.min() >= -1e-6
    assert from_bytes.max() <= 1 + 1e-6


def test_without_flip_no_image_is_mirrored():
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)

    def falling(view):
        y = view(ramp, generator=generator())
        return (y[:, 0, 16, -5] < y[:, 0, 16, 5]).sum()

    assert falling(WeakView(flip=False)) == 0
    assert 16 < falling(WeakView()) < 48


def test_rand_augment_keeps_images_in_their_place(monkeypatch):
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda x, strength: x + 1)
    x = pictures(40)
    torch.testing.assert_close(rand_augment(x, generator=generator(), operations=3), x + 3)


def test_rand_augment_without_operations_changes_nothing():
    x = pictures()
    assert torch.equal(rand_augment(x, generator=generator(), operations=0), x)
    assert rand_augment(x[:0], generator=generator()).shape == (0, 3, 32, 32)


def test_operations_are_drawn_uniformly(monkeypatch):
    drawn = dict.fromkeys(OPERATIONS, 0)
    for name in OPERATIONS:

        def counted(x, strength, name=name):
            drawn[name] += len(x)
            return x

        monkeypatch.setitem(OPERATIONS, name, counted)
    rand_augment(torch.zeros(14_000, 3, 1, 1), generator=generator())
    assert sum(drawn.values()) == 3 * 14_000
    assert min(drawn.values()) > 2_700
    assert max(drawn.values()) < 3_300


def test_cutout_hides_at_most_a_quarter_with_grey():
    x = torch.full((200, 3, 32, 32), -1.0)
    y = cutout(x, generator=generator())
    hidden = y[:, 0] != -1
    share = hidden.float().mean(dim=(1, 2))
    assert share.max() <= (17 / 32) ** 2
    assert 0.02 < share.mean() < 0.12
    row = hidden.any(dim=2).sum(dim=1)
    col = hidden.any(dim=1).sum(dim=1)
    assert torch.equal(row * col, hidden.sum(dim=(1, 2)))  # one rectangle
    grey = torch.tensor(GREY)
    assert torch.equal(y.permute(0, 2, 3, 1)[hidden], grey.expand(int(hidden.sum()), 3))
    assert torch.equal(cutout(x, generator=generator(), largest=0), x)
