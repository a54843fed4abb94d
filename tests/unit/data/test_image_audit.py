from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from resnet_pipeline.data import image_audit as module
from resnet_pipeline.data.image_audit import audit
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


def test_too_many_pixels_are_refused_before_they_are_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    result, image = audit(bomb)
    assert result.refused and image is None and result.note


def test_the_limit_on_pixels_is_ours(monkeypatch):
    monkeypatch.setattr(module, "MOST_PIXELS", 40 * 60 - 1)
    result, _ = audit(jpeg(40, 60))
    assert result.refused and "60×40" in result.note


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
