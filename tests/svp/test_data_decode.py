"""Pixels of every mode Pillow writes, and refusals of everything that is not a whole image."""

import io
import pickle
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from svp.data import DECODER, DecodeError, decode_image
from svp.errors import InputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data, **limits):
    image = decode_image(data, **limits)
    assert image.mode == "RGB"
    return np.asarray(image)


def textured(mode="RGB", size=(48, 40)):
    rng = np.random.Generator(np.random.PCG64(7))
    x_HW3 = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(x_HW3).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_keep_their_pixels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = textured("L" if kind == "GIF" else "RGB")
    np.testing.assert_array_equal(pixels(encode(image, kind, **options)), image.convert("RGB"))


def test_jpeg_agrees_with_pillow():
    data = encode(textured(), "JPEG", quality=90)
    np.testing.assert_array_equal(pixels(data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_grey_and_one_bit_become_three_equal_channels():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        x_HW3 = pixels(encode(grey, kind))
        np.testing.assert_array_equal(x_HW3, np.asarray(grey)[..., None].repeat(3, axis=2))
    bit = Image.new("1", (9, 3), 0)
    bit.putpixel((4, 1), 1)
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        x_HW3 = pixels(encode(bit, kind))
        assert x_HW3[1, 4].tolist() == [255, 255, 255]
        assert int(x_HW3.sum()) == 3 * 255


def test_transparency_is_composited_on_white():
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert pixels(encode(rgba, kind, **options))[0].tolist() == [
            [255, 0, 0],
            [255, 255, 255],
            [127, 127, 127],
        ]
    la = Image.new("LA", (2, 1))
    la.putdata([(10, 255), (10, 0)])
    assert pixels(encode(la))[0].tolist() == [[10] * 3, [255] * 3]


def test_palettes_with_and_without_transparency():
    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette.putdata([0, 1, 2])
    assert pixels(encode(palette))[0].tolist() == [list(RED), list(GREEN), list(BLUE)]
    assert pixels(encode(palette, transparency=1))[0].tolist() == [list(RED), [255] * 3, list(BLUE)]
    by_entry = encode(palette, transparency=bytes([255, 128, 0]))
    assert pixels(by_entry)[0].tolist() == [list(RED), [127, 255, 127], [255] * 3]
    assert pixels(encode(palette, "GIF", transparency=2))[0, 2].tolist() == [255] * 3


def test_a_transparent_colour_is_white():
    for mode, colour, other in (("RGB", (1, 2, 3), (9, 9, 9)), ("L", 7, 8)):
        image = Image.new(mode, (2, 1), other)
        image.putpixel((0, 0), colour)
        x_W3 = pixels(encode(image, transparency=colour))[0]
        assert x_W3[0].tolist() == [255] * 3
        assert x_W3[1].tolist() == (list(other) if mode == "RGB" else [other] * 3)


def test_sixteen_bit_grey_is_scaled_and_never_clipped():
    values = np.array([[0, 128, 129, 257, 32_768, 65_534, 65_535]], dtype=np.uint16)
    expected = [0, 0, 1, 1, 128, 255, 255]
    for kind in ("PNG", "TIFF", "PPM"):
        assert pixels(encode(Image.fromarray(values), kind))[0, :, 0].tolist() == expected
    big_endian = Image.fromarray(values.astype(">u2"))
    assert big_endian.mode == "I;16B"
    assert pixels(encode(big_endian, "TIFF"))[0, :, 0].tolist() == expected


def test_a_transparent_sixteen_bit_grey_is_white():
    image = Image.fromarray(np.array([[257, 514]], dtype=np.uint16))
    assert pixels(encode(image, transparency=257))[0, :, 0].tolist() == [255, 2]


def test_wide_integers_and_floats_have_one_fixed_scale_or_are_refused():
    wide = Image.fromarray(np.array([[0, 257, 65_535]], dtype=np.int32))
    assert pixels(encode(wide, "TIFF"))[0, :, 0].tolist() == [0, 1, 255]
    floats = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    assert pixels(encode(floats, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    for value, kind in (
        (65_536, np.int32),
        (-1, np.int32),
        (1.5, np.float32),
        (np.nan, np.float32),
    ):
        image = Image.fromarray(np.array([[0, value]], dtype=kind))
        with pytest.raises(DecodeError, match="no defined brightness") as caught:
            decode_image(encode(image, "TIFF"))
        assert caught.value.kind == "corrupt"


def test_cmyk_jpeg_has_the_inverted_inks_of_adobe():
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in data[:200]
    np.testing.assert_allclose(pixels(data)[8, 8], RED, atol=3)
    tiff = encode(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "TIFF")
    assert pixels(tiff)[0, 0].tolist() == [0, 255, 255]


def test_other_colour_spaces():
    x_HW3 = pixels(encode(Image.new("YCbCr", (16, 16), (76, 85, 255)), "TIFF"))
    np.testing.assert_allclose(x_HW3[8, 8], (254, 0, 0), atol=2)
    lab = pixels(encode(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"))
    np.testing.assert_allclose(lab[0, 0], WHITE, atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(orientation, kind):
    corners = Image.new("RGB", (32, 16), WHITE)
    corners.paste(RED, (0, 0, 16, 8))
    corners.paste(BLUE, (16, 8, 32, 16))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corners.transpose(undo[orientation]) if orientation > 1 else corners
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encode(stored, kind, exif=exif, **options.get(kind, {}))
    np.testing.assert_allclose(pixels(data).astype(int), np.asarray(corners), atol=6)


def test_damaged_exif_is_no_obstacle_and_warns_of_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description that is longer than what remains"
    data = encode(textured(), "JPEG", exif=exif, quality=95)
    start = data.index(b"Exif\0\0") + 6
    for cut in (8, 10, 14, 20, 26, 40):
        damaged = bytearray(data)
        length = cut + 8
        segment_start = start - 10
        end = segment_start + 2 + struct.unpack_from(">H", data, segment_start + 2)[0]
        damaged[segment_start:end] = (
            data[segment_start : segment_start + 2]
            + struct.pack(">H", length)
            + data[start - 6 : start + cut]
        )
        assert decode_image(bytes(damaged)).mode == "RGB"


def test_damaged_tiff_metadata_warns_of_nothing():
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[270] = "a description"
    data = bytearray(encode(textured("L"), "TIFF", tiffinfo=directory))
    at = data.index(struct.pack("<HH", 270, 2))
    data[at + 4 : at + 12] = struct.pack("<LL", 5_000, 2**31 - 10)  # far beyond the file
    np.testing.assert_array_equal(pixels(bytes(data)), textured("L").convert("RGB"))


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert pixels(data)[4, 4].tolist() == list(RED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_an_image_cut_off_anywhere_is_corrupt(kind):
    data = encode(textured("L" if kind == "GIF" else "RGB"), kind)
    # Behind the last pixel some formats have checksums and marks that nothing follows.
    stop = len(data) - {"PNG": 20, "GIF": 2}.get(kind, 0)
    for cut in sorted({*range(0, stop, max(1, stop // 60)), stop - 1}):
        with pytest.raises(DecodeError) as caught:
            decode_image(data[:cut])
        assert caught.value.kind == "corrupt", cut
        assert caught.value.reason


def test_a_flipped_byte_never_escapes_as_another_error():
    rng = np.random.Generator(np.random.PCG64(3))
    for kind in ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM"):
        data = encode(textured("L" if kind == "GIF" else "RGB", (12, 10)), kind)
        for at in rng.integers(0, len(data), 150).tolist():
            broken = bytearray(data)
            broken[at] ^= int(rng.integers(1, 256))
            try:
                assert decode_image(bytes(broken)).mode == "RGB"
            except DecodeError as error:
                assert "\n" not in error.reason  # noqa: PT017 - either outcome is right


def test_limits_on_bytes_and_pixels():
    data = encode(textured())
    with pytest.raises(DecodeError, match="more than the limit of 10") as caught:
        decode_image(data, max_bytes=10)
    assert caught.value.kind == "too_large"
    assert decode_image(data, max_pixels=48 * 40).size == (48, 40)
    with pytest.raises(DecodeError, match="48 x 40 pixels") as caught:
        decode_image(data, max_pixels=48 * 40 - 1)
    assert caught.value.kind == "too_large"


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    header = bytearray(encode(Image.new("1", (8, 8))))
    for width, height in ((15_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)):
        ihdr = b"IHDR" + struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
        header[12:33] = ihdr + struct.pack(">L", zlib.crc32(ihdr))
        with pytest.raises(DecodeError) as caught:
            decode_image(bytes(header), max_pixels=100_000_000)
        assert caught.value.kind == "too_large"
    gif = bytearray(encode(Image.new("L", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    with pytest.raises(DecodeError) as caught:
        decode_image(bytes(gif))
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize(
    ("data", "meaning"),
    [
        (b"", "empty"),
        (b"   \n <!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
        (b"%PDF-1.7", "PDF"),
        (b"\x00\x01\x02\x03 nothing", "00 01 02 03"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "begins with"),
        (b"RIFF\x04\0\0\0WAVE", "."),
        (b"BM", "."),
        (b"P6", "."),
    ],
)
def test_what_is_no_image_is_named(data, meaning):
    with pytest.raises(DecodeError, match=meaning) as caught:
        decode_image(data)
    assert caught.value.kind == "corrupt"


def test_truncated_images_cannot_be_allowed_behind_our_back(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES must be False"):
        decode_image(encode(textured()))


def test_decoding_is_thread_safe():
    kinds = {kind: encode(textured("L"), kind) for kind in ("PNG", "TIFF", "GIF", "BMP")}
    expected = np.asarray(textured("L").convert("RGB"))
    with ThreadPoolExecutor(8) as executor:
        for x_HW3 in executor.map(pixels, list(kinds.values()) * 50):
            np.testing.assert_array_equal(x_HW3, expected)


def test_an_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(DecodeError("too_large", "a reason")))
    assert (error.kind, error.reason, str(error)) == ("too_large", "a reason", "a reason")


def test_the_decoder_names_policy_and_library():
    assert DECODER["policy"] == 1
    assert DECODER["library"] == "pillow"
    assert DECODER["version"].count(".") == 1


def test_reading_images_imports_no_torch():
    code = "import sys, svp.data; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
