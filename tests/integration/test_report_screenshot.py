"""The report, the error explorer and the contact sheet in a real browser, by day and by night."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from resnet_pipeline.jobs.data import show_dataset
from resnet_pipeline.jobs.explore import explorer_data
from resnet_pipeline.jobs.recipes import kept_costs
from resnet_pipeline.recipes import recipe_names
from resnet_pipeline.report.explorer import write_explorer
from resnet_pipeline.report.page import write_report
from resnet_pipeline.report.reproduction import Costs
from resnet_pipeline.report.reproduction_page import write_page
from resnet_pipeline.workspace import Workspace
from tests.sample_kept import sample_kept
from tests.sample_report import sample_report
from tests.unit.report.test_explorer import scores_of

pytestmark = pytest.mark.integration

DARK = "--blink-settings=preferredColorScheme=0"


def picture(file: Path) -> npt.NDArray[np.int64]:
    """Return a screenshot's pixels [H, W, 3]."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def luminance(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return relative luminance, 0 black to 1 white, without the gamma (Rec. 709's weights)."""
    return pixels @ (0.2126, 0.7152, 0.0722) / 255


def report(folder: Path) -> Path:
    return write_report(sample_report(), folder / "report.html")


def reproduction(folder: Path) -> Path:
    costs = Costs(kept_costs(), dict.fromkeys(recipe_names(), 7200.0), "1xa100")
    return write_page(folder, sample_kept(), costs)


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_is_drawn_and_fits(browser, tmp_path, width):
    page = write_report(sample_report(), tmp_path / "report.html")
    browser(f"--window-size={width},2400", f"--screenshot={tmp_path / 'page.png'}", page.as_uri())
    pixels = picture(tmp_path / "page.png")
    assert pixels.shape[1] == width
    background = pixels[2, 2]
    drawn = (np.abs(pixels - background).sum(2) > 30).mean()
    assert 0.01 < drawn < 0.6, "neither blank nor black"
    # the curves: pixels of each network's colour
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert (np.abs(pixels - color).sum(2) < 40).sum() > 100, color


@pytest.mark.parametrize("page", [report, reproduction])
@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_sticks_out_to_the_side(browser, tmp_path, page, width):
    page = page(tmp_path)
    probe = tmp_path / "probe.html"
    measure = "<script>document.title = document.documentElement.scrollWidth + '/' + innerWidth</script></body>"
    probe.write_text(page.read_text().replace("</body>", measure))
    dump = browser(f"--window-size={width},900", "--dump-dom", probe.as_uri()).stdout
    scroll, inner = map(int, re.search(r"<title>(\d+)/(\d+)</title>", dump).groups())
    assert scroll <= inner == width


@pytest.mark.parametrize("width", [1200, 500])
def test_the_error_explorer_is_drawn_fits_sorts_and_runs_no_class_s_name(browser, tmp_path, digits, width, monkeypatch):
    hostile = (
        "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">Unbreakably"
        + "long" * 20
    )
    monkeypatch.setattr(digits, "manifest", replace(digits.manifest, class_words={"3": hostile}))
    data = explorer_data(digits, scores_of(digits), title="Errors", models=["a"])
    page = write_explorer(data, tmp_path / "errors.html")
    browser(f"--window-size={width},1800", f"--screenshot={tmp_path / 'page.png'}", page.as_uri())
    pixels = picture(tmp_path / "page.png")
    assert (pixels[2, 2] == 255).all(), "a light page"
    assert 0.02 < (pixels.sum(2) < 600).mean() < 0.6
    assert (np.abs(pixels - (0xB8, 0x4A, 0x00)).sum(2) < 40).sum() > 500, "the bars of wrong guesses"
    probe = """<script>
      const broken = [...document.images].filter(image => !(image.complete && image.naturalWidth)).length;
      document.querySelectorAll("th button")[1].click();
      const first = Number(document.getElementById("table").tBodies[0].rows[0].cells[1].textContent);
      document.title += `:${document.documentElement.scrollWidth}:${innerWidth}:${broken}:${first}`;
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", probe))
    dump = browser(f"--window-size={width},900", "--dump-dom", page.as_uri()).stdout
    title, scroll, inner, broken, first = re.search(r"<title>(.*)</title>", dump)[1].split(":")
    assert title == "Errors" and int(scroll) <= int(inner) == width and int(broken) == 0
    assert int(first) == max(row.images for row in data.classes)


def test_the_error_explorer_is_drawn_at_once_not_by_its_script(browser, tmp_path, digits):
    # what a script changes after the page is loaded may or may not be on a print
    data = explorer_data(digits, scores_of(digits), title="Errors", models=["a"], mistakes=6)
    page = write_explorer(data, tmp_path / "errors.html")
    bare = tmp_path / "bare.html"
    script = re.compile(r"<script>.*?</script>", re.DOTALL)
    bare.write_text(script.sub("", page.read_text()))
    # the document after its load, not two prints: those differ by what Chromium has decoded in time
    drawn, written = (script.sub("", browser("--dump-dom", file.as_uri()).stdout) for file in (page, bare))
    assert drawn == written and written.count("<img") > 10


@pytest.mark.parametrize("page", ["report", "explorer", "reproduction"])
def test_a_page_is_dark_on_a_dark_screen_and_light_on_paper(browser, tmp_path, digits, page):
    file = tmp_path / "page.html"
    if page == "report":
        write_report(sample_report(), file)
    elif page == "reproduction":
        file = reproduction(tmp_path)
    else:
        write_explorer(explorer_data(digits, scores_of(digits), title="Errors", models=["a"], mistakes=6), file)
    browser(DARK, "--window-size=1200,2600", f"--screenshot={tmp_path / 'dark.png'}", file.as_uri())
    light = luminance(picture(tmp_path / "dark.png"))
    assert light[2, 2] < 0.1 and np.median(light) < 0.15, "a dark page"
    assert (light > 0.7).mean() > 0.002, "with light text"
    # the figures too: their axes are drawn in a grey that both backgrounds show, and no part of them is black on black
    svg = file.read_text().split("<svg")[1]
    assert "stroke: #000000" not in svg and "#80868b" in svg
    prints = []
    for number, options in enumerate(([], [DARK])):
        paper = tmp_path / f"{number}.pdf"
        browser(*options, "--no-pdf-header-footer", f"--print-to-pdf={paper}", file.as_uri())
        # but for the time, and Chromium's own numbers of the page's elements, which differ from print to print
        prints.append(re.sub(rb"\(D:[^)]*\)|\(node\d+\)", b"", paper.read_bytes()))
    assert prints[0] == prints[1] and len(prints[0]) > 10_000


def test_the_contact_sheet_shows_images_and_the_crops_that_dali_cut(browser, tmp_path, photo_set):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "photos").symlink_to(photo_set.path)
    sheet = show_dataset(Workspace.of(tmp_path), "photos", count=3, output=tmp_path / "sheet.png")
    browser("--window-size=1500,400", f"--screenshot={tmp_path / 'page.png'}", sheet.as_uri())
    pixels = picture(tmp_path / "page.png")
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2_000, "pictures, not areas of one colour"
    outlined = (np.abs(pixels - (255, 40, 40)).sum(2) < 12).sum(0)
    assert (outlined > 20).sum() >= 6, "a window of two upright lines in each of three images"
    dump = browser("--dump-dom", sheet.as_uri()).stdout
    assert re.search(r"<img[^>]*sheet\.png", dump)
