from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from resnet_pipeline.data import image_audit as module
from resnet_pipeline.data.image_audit import audit
from resnet_pipeline.data.image_files import Limits
from tests.images import jpeg


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(dtype: type = np.uint8) -> np.ndarray:
    return np.linspace(0, np.iinfo(dtype).max, 40 * 60).reshape(40, 60).astype(dtype)


def decoded(result: module.Audited) -> np.ndarray:
    assert result.replacement is not None
    image = Image.open(io.BytesIO(result.replacement))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_plain_jpegs_stay_byte_for_byte(mode, options):
    result, image = audit(jpeg(40, 60, mode=mode, **options))
    assert (result.height, result.width, result.replacement, result.refused) == (40, 60, None, False)
    assert image is not None


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF"])
def test_other_formats_under_a_jpeg_name_become_rgb_jpegs(kind):
    pixels = np.stack([gradient(), gradient()[::-1], gradient()[:, ::-1]], axis=2)
    image = Image.fromarray(pixels)
    result, _ = audit(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    tolerance = 12 if kind == "GIF" else 2.5  # a palette of 256 colours
    assert np.abs(decoded(result) - pixels).mean() < tolerance
    assert kind in result.note


def test_cmyk_palette_and_transparency_become_rgb():
    rgb = Image.fromarray(np.stack([gradient()] * 3, axis=2))
    for image, kind in ((rgb.convert("CMYK"), "JPEG"), (rgb.quantize(256), "PNG"), (rgb.convert("RGBA"), "PNG")):
        result, _ = audit(encoded(image, kind))
        assert np.abs(decoded(result) - np.asarray(rgb)).mean() < 4, image.mode


def test_sixteen_bits_are_scaled_not_cut():
    result, _ = audit(encoded(Image.fromarray(gradient(np.uint16)), "PNG"))
    assert np.abs(decoded(result)[..., 0] - gradient(np.uint16) / 257).mean() < 2


def test_exif_rotation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    result, _ = audit(jpeg(40, 60, exif=exif))
    assert (result.height, result.width, result.replacement) == (40, 60, None)


def test_one_pixel_is_an_image():
    result, _ = audit(jpeg(1, 1))
    assert (result.height, result.width, result.refused) == (1, 1, False)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", jpeg(200, 200)[:-800], jpeg(200, 200)[:20], b"GIF89a" + b"\0" * 3], ids=str
)
def test_broken_files_are_refused_with_a_reason(data):
    result, image = audit(data)
    assert result.refused and result.note and "\n" not in result.note
    assert image is None


def test_very_long_images_are_taken():
    result, _ = audit(jpeg(20, 20_000))
    assert (result.height, result.width, result.refused) == (20, 20_000, False)


@pytest.mark.slow
def test_too_many_pixels_are_refused_before_they_are_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    result, image = audit(bomb)
    assert result.refused and image is None and result.note


def test_the_limit_on_pixels_is_ours():
    result, _ = audit(jpeg(40, 60), limits=Limits(pixels=40 * 60 - 1))
    assert result.refused and "60×40" in result.note
    assert not audit(jpeg(40, 60), limits=Limits(pixels=40 * 60))[0].refused


def test_the_limit_on_a_files_bytes_is_ours():
    data = jpeg(40, 60)
    assert audit(data, limits=Limits(bytes=len(data) - 1))[0].refused
    assert not audit(data, limits=Limits(bytes=len(data)))[0].refused


def test_the_default_limits_are_those_of_the_settings():
    assert Limits() == Limits.of_settings()
    served = Limits.for_serving()
    assert served.bytes < Limits().bytes and served.pixels < Limits().pixels


def tiff(values: np.ndarray) -> bytes:
    """Return a grey TIFF of any depth."""
    return encoded(Image.fromarray(values), "TIFF")


def test_pixels_of_more_than_eight_bits_are_scaled_by_their_format():
    for brightest in (200, 4095, 65535):
        values = np.linspace(0, brightest, 40 * 60).reshape(40, 60).astype(np.uint16)
        for kind in ("PNG", "TIFF", "PPM"):
            image = decoded(audit(encoded(Image.fromarray(values), kind))[0])
            assert np.abs(image[..., 0] - values / 257).max() < 4, (brightest, kind)
            image = decoded(audit(encoded(Image.fromarray(values), kind), max_value=brightest)[0])
            assert np.abs(image[..., 0] - values / brightest * 255).max() < 4, (brightest, kind)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_that_do_not_say_what_white_is_are_refused_by_name(dtype):
    white = 1 if dtype == np.float32 else 70_000
    values = (np.linspace(0, white, 40 * 60).reshape(40, 60)).astype(dtype)
    result, image = audit(tiff(values))
    assert result.refused and image is None and "--max-value" in result.note
    shown = decoded(audit(tiff(values), max_value=white)[0])
    assert np.abs(shown[..., 0] - values / white * 255).max() < 4


@pytest.mark.parametrize("value", [np.nan, -0.5, 1.5, np.inf])
def test_values_beyond_black_and_white_are_refused_not_cut(value):
    values = np.full((40, 60), 0.5, np.float32)
    values[7, 9] = value
    result, _ = audit(tiff(values), max_value=1)
    assert result.refused and f"{value:g}" in result.note


def test_another_white_does_not_touch_images_of_eight_bits():
    assert audit(jpeg(40, 60), max_value=4095)[0] == audit(jpeg(40, 60))[0]


def test_sixteen_bit_colours_are_refused_where_another_white_is_named():
    colours = encoded(Image.fromarray(gradient()).convert("RGB"), "PNG")
    deep = png16(np.stack([gradient(np.uint16)] * 3, axis=2))
    assert audit(colours, png=True, max_value=4095)[0].replacement is None
    assert audit(deep, png=True)[0] == module.Audited(60, 40)  # DALI scales it
    assert audit(deep, png=True, max_value=4095)[0].refused


def png16(pixels: np.ndarray) -> bytes:
    """Return a PNG of RGB values of 16 bits, uint16 [H, W, 3]; Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


@pytest.mark.slow
def test_statistics_of_a_large_image_are_exact_and_take_little_memory():
    side = 2_000
    pixels = np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)
    sums = module.PixelSums((224, 224))
    tracemalloc.start()
    sums.add(pixels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    flat = pixels.reshape(-1, 3).astype(np.int64)
    assert (sums.rgb == flat.sum(0)).all() and (sums.outer == flat.T @ flat).all()
    assert most < 4 * pixels.nbytes  # in float64 alone it would be 8 times


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_is_called_png_and_is_one_stays_byte_for_byte(mode):
    image = Image.fromarray(np.stack([gradient()] * 3, axis=2)).convert(mode)
    assert audit(encoded(image, "PNG"), png=True)[0].replacement is None
    assert audit(encoded(image, "PNG"), png=False)[0].replacement is not None


def test_what_is_called_png_loses_nothing_when_it_is_converted():
    rgb = np.stack([gradient(), gradient()[::-1], gradient()[:, ::-1]], axis=2)
    palette = Image.fromarray(rgb).quantize(256)
    cases = [
        (encoded(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        (encoded(Image.fromarray(rgb).convert("RGBA"), "PNG"), rgb),
        (encoded(Image.fromarray(rgb), "BMP"), rgb),
    ]
    for data, pixels in cases:
        result, _ = audit(data, png=True)
        replaced = Image.open(io.BytesIO(result.replacement))
        assert (replaced.format, replaced.mode) == ("PNG", "RGB") and "converted to an RGB PNG" in result.note
        np.testing.assert_array_equal(np.asarray(replaced), pixels)


def test_larger_images_are_made_smaller_and_only_those():
    data = jpeg(300, 400)
    result, image = audit(data, max_shorter_side=150)
    assert (result.height, result.width, result.resized) == (150, 200, True) == (image.height, image.width, True)
    assert decoded(result).shape == (150, 200, 3)
    assert audit(data, max_shorter_side=300)[0] == audit(data)[0]
    grey, _ = audit(jpeg(300, 400, mode="L"), max_shorter_side=150)
    assert Image.open(io.BytesIO(grey.replacement)).mode == "L"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"quality": 100}])
def test_an_audit_without_pixels_says_the_same_of_every_broken_jpeg(options):
    whole = jpeg(171, 203, **options)
    assert audit(whole, pixels=False) == (audit(whole)[0], None)
    draw, refused = np.random.default_rng(0), 0
    for _ in range(150):
        data = bytearray(whole)
        place = int(draw.integers(2, len(data) - 2))
        match draw.integers(4):
            case 0:
                del data[place:]
            case 1:
                data[place] ^= 1 << int(draw.integers(8))
            case 2:
                del data[place : place + int(draw.integers(1, 400))]
            case 3:
                data[place : place + 2] = bytes([0xFF, draw.choice([0xD9, 0xD8, 0xC4, 0xDA, 0xD0])])
        found = audit(bytes(data))[0]
        assert audit(bytes(data), pixels=False)[0] == found
        refused += found.refused
    assert 30 < refused < 140


def test_an_audit_without_pixels_computes_few_of_them(monkeypatch):
    scales = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (scales.append(self.size), load(self))[1])
    assert audit(jpeg(160, 240), pixels=False)[0] == module.Audited(240, 160)
    assert audit(jpeg(3, 5), pixels=False)[0] == module.Audited(5, 3)
    assert audit(jpeg(160, 240), pixels=False, max_shorter_side=80)[0].resized
    assert scales[0] == (30, 20) and scales[2] == (240, 160)
