from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resnet_pipeline.report.contact_sheet import _SIDE, Example, _outlined, contact_sheet

RED, BLUE, FILL = (255, 40, 40), (0, 0, 200), (9, 90, 9)


def example(window, *, image_size=(448, 224), crop=(50, 60, 70)):
    return Example(
        image=Image.new("RGB", image_size, BLUE), window=window, crop=Image.new("RGB", (8, 8), crop), caption="a  b"
    )


def test_the_window_is_outlined_in_the_image_s_scale():
    shown = np.asarray(_outlined(example((100, 200, 80, 120)), FILL))
    assert shown.shape == (112, 224, 3), "half its size"
    rows, columns = np.nonzero((shown == RED).all(2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (50, 89, 100, 159)
    assert (shown[60, 120] == BLUE).all(), "only its border is drawn"


def test_a_window_over_the_edge_gets_the_background_there():
    shown = np.asarray(_outlined(example((-4, -4, 32, 32), image_size=(32, 32)), FILL))
    scale = _SIDE / 36
    assert (shown[int(2 * scale), int(34 * scale)] == FILL).all()
    assert (shown[int(20 * scale), int(20 * scale)] == BLUE).all()


@pytest.mark.parametrize("size", [(1, 500), (5000, 1), (1, 1)])
def test_a_window_in_a_line_of_pixels_is_outlined_too(size):
    shown = np.asarray(_outlined(example((0, 0, 1, 1), image_size=size), FILL))
    assert max(shown.shape[:2]) == _SIDE and (shown == RED).all(2).any()


@pytest.mark.slow
def test_every_example_is_on_the_sheet_with_its_crop_beside_it():
    colours = [(10 * i, 5, 250 - 10 * i) for i in range(7)]
    sheet = contact_sheet([example((0, 0, 99, 99), crop=c) for c in colours], title="t", background=FILL)
    found = {tuple(colour) for colour in np.asarray(sheet).reshape(-1, 3)}
    assert set(colours) <= found
    counts = [(np.asarray(sheet) == c).all(2).sum() for c in colours]
    assert counts == [_SIDE * _SIDE] * 7
