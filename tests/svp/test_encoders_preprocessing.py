"""Preprocessing equals open_clip's and timm's own transforms bit for bit."""

import numpy as np
import pytest
import timm.data
import torch
from encoder_fixtures import photograph
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision import transforms

from svp.encoders.preprocessing import Preprocessing, imagenet_preprocessing
from svp.errors import InputError

SIZES = [(32, 32), (33, 47), (640, 480), (200, 333), (225, 224), (50, 301), (301, 50), (7, 9)]


def _normalised(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    x = preprocessing(image).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (x - mean) / std


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_open_clip(mode: str, interpolation: str) -> None:
    config = PreprocessCfg(size=96, resize_mode=mode, interpolation=interpolation, fill_color=7)
    reference = image_transform_v2(config, is_train=False)
    mine = Preprocessing(
        size=96,
        resize_to=96,
        resize=mode,
        interpolation=interpolation,
        mean=tuple(config.mean),
        std=tuple(config.std),
        fill=(7, 7, 7),
    )
    for size in SIZES:
        image = photograph(*size)
        torch.testing.assert_close(_normalised(mine, image), reference(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("crop_mode", "mode"), [("center", "shortest"), ("squash", "squash"), ("border", "longest")]
)
def test_equals_timm(crop_mode: str, mode: str) -> None:
    reference = timm.data.create_transform(
        (3, 112, 112), crop_pct=0.95, crop_mode=crop_mode, interpolation="bicubic"
    )
    mean = tuple(timm.data.IMAGENET_DEFAULT_MEAN)
    mine = Preprocessing(
        size=112,
        resize_to=int(112 / 0.95),
        resize=mode,
        fill=tuple(round(255 * v) for v in mean) if mode == "longest" else (0, 0, 0),
    )
    for size in SIZES:
        image = photograph(*size)
        torch.testing.assert_close(_normalised(mine, image), reference(image), rtol=0, atol=1e-6)


def test_imagenet_evaluation() -> None:
    reference = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
    )
    image = photograph(300, 411)
    assert torch.equal(imagenet_preprocessing(224)(image), reference(image))
    thumbnail = photograph(32, 32)
    assert np.array_equal(imagenet_preprocessing(32).array(thumbnail), np.asarray(thumbnail))


def test_output_form() -> None:
    x = imagenet_preprocessing(32)(photograph(60, 40))
    assert x.shape == (3, 32, 32)
    assert x.dtype == torch.uint8
    assert x.is_contiguous()


def test_strip_does_not_explode() -> None:
    # Resized whole, these would be 224 x 13,440,000 pixels.
    for size in ((60_000, 1), (1, 60_000)):
        assert imagenet_preprocessing(224)(Image.new("RGB", size, (9, 8, 7))).shape == (3, 224, 224)


def test_float_path_differs_by_a_fraction_of_a_grey_level() -> None:
    image = photograph(301, 226)
    x_float = transforms.functional.to_tensor(image)
    x_float = transforms.functional.resize(x_float, [256], antialias=True)
    x_float = transforms.functional.center_crop(x_float, [224]).clamp(0, 1)
    x_bytes = imagenet_preprocessing(224)(image).float() / 255
    assert (x_float - x_bytes).abs().max() < 1.3 / 255
    assert (x_float - x_bytes).abs().mean() < 0.5 / 255


def test_json_round_trip() -> None:
    preprocessing = imagenet_preprocessing(224)
    assert Preprocessing.from_json(preprocessing.as_json()) == preprocessing
    with pytest.raises(InputError, match="fields"):
        Preprocessing.from_json({"size": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"resize": "stretch"},
        {"interpolation": "cubic"},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.5,)},
    ],
)
def test_wrong_values(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="must"):
        Preprocessing(**{"size": 8, "resize_to": 8, **wrong})


def test_needs_rgb() -> None:
    with pytest.raises(InputError, match="RGB"):
        imagenet_preprocessing(32)(Image.new("L", (32, 32)))
