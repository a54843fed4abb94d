"""Which programs may read what a file holds, whatever it is called."""

from __future__ import annotations

import io

import pytest
from PIL import EpsImagePlugin, Image

from resnet_pipeline.data.image_audit import audit
from resnet_pipeline.data.image_files import FORMATS, ImageError, open_image
from resnet_pipeline.report.explorer import thumbnail
from tests.images import jpeg

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 40 40
%%EndComments
0 0 40 40 rectfill
showpage
%%EOF
"""


def test_an_eps_under_another_name_starts_no_ghostscript(tmp_path, monkeypatch):
    ghostscript, called = tmp_path / "gs", tmp_path / "called"
    ghostscript.write_text(f"#!/bin/sh\necho ran >> {called}\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what Pillow found of it before
    result, _ = audit(EPS)
    assert result.refused and not called.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_of_the_set_is_read(kind):
    assert not audit(red(kind))[0].refused


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "JPEG2000", "SGI", "EPS", "ICNS", "DDS"])
def test_no_other_parser_is_asked(kind):
    with Image.open(io.BytesIO(red(kind))) as image:
        assert image.format == kind  # Pillow by itself knows it
    result, _ = audit(red(kind))
    assert result.refused and "JPEG" in result.note


def red(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, kind)
    return buffer.getvalue()


def test_what_goes_wrong_within_is_one_line():
    with pytest.raises(ImageError, match="truncated"), open_image(jpeg(200, 200)[:-800]) as image:
        image.load()
    for data in (b"", b"no image"):
        with pytest.raises(ImageError) as caught, open_image(data):
            pass
        assert "\n" not in str(caught.value)


def test_a_page_of_thumbnails_asks_no_other_parser_either():
    with pytest.raises(ImageError):
        thumbnail(EPS)
