"""Named decoders: reduced scale keeps what the resize needs, and the identity says which."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import photograph, small_folder
from PIL import Image

from svp.data.decode import DECODER, decode_image, plain_jpeg
from svp.data.opening import open_source
from svp.encoders.decoders import MARGIN, decoder_identity, image_decoder
from svp.encoders.encoder import open_encoder
from svp.encoders.images import decode_pool
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.spec import parse_spec
from svp.errors import InputError
from svp.study.study import absolute_spec

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def jpeg(width: int, height: int, orientation: int = 1, mode: str = "RGB") -> bytes:
    # Smooth, as photographs are: noise of single pixels is what a reduced scale drops.
    coarse = photograph(width // 8, height // 8, seed=1)
    image = coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "to", "decoded"),
    [
        ((640, 480), 30, (80, 60)),
        ((640, 480), 32, (160, 120)),  # an eighth would leave 60, less than twice 32
        ((640, 480), 61, (320, 240)),
        ((640, 480), 224, (640, 480)),
        ((33, 31), 32, (33, 31)),
    ],
)
def test_scale_leaves_twice_the_resize(
    size: tuple[int, int], to: int, decoded: tuple[int, int]
) -> None:
    needed = Preprocessing(size=to, resize_to=to).scaled_need(MARGIN)
    assert decode_image(jpeg(*size), needed=needed).size == decoded


def test_images_on_their_side_are_scaled_by_their_upright_size() -> None:
    preprocessing = Preprocessing(size=32, resize_to=32)
    wide = decode_image(jpeg(800, 400), needed=preprocessing.scaled_need(MARGIN))
    turned = decode_image(jpeg(800, 400, 6), needed=preprocessing.scaled_need(MARGIN))
    assert turned.size == wide.size[::-1]
    assert turned.size == (100, 200)


def test_other_formats_are_decoded_whole() -> None:
    out = io.BytesIO()
    photograph(400, 300).save(out, "PNG")
    decoder = image_decoder("pillow-reduced", Preprocessing(size=32, resize_to=32), "cpu")
    assert decoder(out.getvalue()).size == (400, 300)


def test_reduced_images_are_nearly_the_whole_ones() -> None:
    preprocessing = Preprocessing(size=32, resize_to=32)
    data = jpeg(800, 600)
    whole, reduced = (
        preprocessing.array(image_decoder(name, preprocessing, "cpu")(data)).astype(int)
        for name in ("pillow", "pillow-reduced")
    )
    change = np.abs(whole - reduced)
    assert 0 < change.max() <= 4
    assert change.mean() < 0.5


def test_damaged_images_stay_failures(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(jpeg(400, 300)[:4000])
    (tmp_path / "whole.jpg").write_bytes(jpeg(400, 300))
    preprocessing = Preprocessing(size=16, resize_to=16)
    images, kept, failures = decode_pool(
        open_source(tmp_path),
        ["cut.jpg", "whole.jpg"],
        preprocessing,
        decoder=image_decoder("pillow-reduced", preprocessing, "cpu"),
    )
    assert kept.tolist() == [1]
    assert failures[0].kind == "corrupt"
    assert images.shape == (1, 3, 16, 16)


def test_the_identity_names_the_decoder(tmp_path: Path) -> None:
    small_folder(tmp_path / "encoder")
    plain = open_encoder(str(tmp_path / "encoder"))
    reduced = open_encoder(f"{tmp_path / 'encoder'}+pillow-reduced")
    assert plain.identity["decoder"] == DECODER
    assert reduced.identity["decoder"] == {
        **DECODER,
        "jpeg_scale": "reduced",
        "jpeg_margin": MARGIN,
    }
    assert reduced.id != plain.id
    assert open_encoder(str(tmp_path / "encoder"), decoder="pillow-reduced").id == reduced.id
    assert open_encoder(f"{tmp_path / 'encoder'}+pillow").id == plain.id
    assert reduced.replica("cpu").decoder == "pillow-reduced"


def test_specs_with_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_spec("timm:resnet50+nvjpeg").decoder == "nvjpeg"
    assert parse_spec("timm:resnet50+nvjpeg").model == "resnet50"
    assert parse_spec("timm:resnet50").decoder is None
    assert parse_spec("timm:a+b").model == "a+b"
    (tmp_path / "w.pt").touch()
    spec = parse_spec(f"byol:resnet18@{tmp_path / 'w.pt'}#online+pillow-reduced")
    assert (spec.branch, spec.decoder) == ("online", "pillow-reduced")
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("timm:x@w.pt+nvjpeg") == f"timm:x@{tmp_path / 'w.pt'}+nvjpeg"
    assert absolute_spec("w.pt+nvjpeg") == f"{tmp_path / 'w.pt'}+nvjpeg"
    with pytest.raises(InputError, match="decoder must be one of"):
        open_encoder("timm:resnet18", decoder="opencv")  # type: ignore[arg-type]


def test_what_a_gpu_may_decode() -> None:
    assert plain_jpeg(jpeg(40, 32)) == ((40, 32), 1)
    assert plain_jpeg(jpeg(40, 32, 6)) == ((40, 32), 6)
    assert plain_jpeg(jpeg(40, 32, mode="L")) == ((40, 32), 1)
    assert plain_jpeg(jpeg(40, 32) + b"\0\0") == ((40, 32), 1)
    assert plain_jpeg(jpeg(40, 32, mode="CMYK")) is None
    assert plain_jpeg(jpeg(40, 32)[:-40]) is None
    assert plain_jpeg(jpeg(40, 32), max_pixels=100) is None
    assert plain_jpeg(b"\xff\xd8\xff broken \xff\xd9") is None
    assert plain_jpeg(b"") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_nvjpeg_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="nvjpeg must have a CUDA device"):
        decoder_identity("nvjpeg")
    with pytest.raises(InputError, match="nvjpeg must have a GPU"):
        image_decoder("nvjpeg", Preprocessing(size=8, resize_to=8), "cpu")


@pytest.mark.gpu
@needs_gpu
def test_nvjpeg_reads_what_pillow_reads(tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=32, resize_to=32)
    for number in range(20):
        (tmp_path / f"{number:02d}.jpg").write_bytes(jpeg(400, 300 + number, 1 + number % 8))
    photograph(60, 50).save(tmp_path / "20.png")
    (tmp_path / "21.jpg").write_bytes(jpeg(400, 300)[:4000])
    (tmp_path / "22.jpg").write_bytes(jpeg(64, 48, mode="CMYK"))
    uris = sorted(path.name for path in tmp_path.iterdir())
    seen = [
        decode_pool(
            open_source(tmp_path),
            uris,
            preprocessing,
            decoder=image_decoder(name, preprocessing, "cuda"),
        )
        for name in ("pillow", "nvjpeg")
    ]
    assert seen[0][1].tolist() == seen[1][1].tolist()
    assert seen[0][2].keys() == seen[1][2].keys() == {21}
    change = (seen[0][0].int() - seen[1][0].int()).abs()
    assert change.max() <= 8
    assert decoder_identity("nvjpeg")["jpeg"] == "nvjpeg"
