"""The report in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from resnet_pipeline.jobs.explore import explorer_data
from resnet_pipeline.report.explorer import write_explorer
from resnet_pipeline.report.page import write_report
from tests.sample_report import sample_report
from tests.unit.report.test_explorer import scores_of

pytestmark = pytest.mark.integration

OPTIONS = [
    f"--{name}"
    for name in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "hide-scrollbars", "disable-dev-shm-usage",
    )
]  # fmt: skip


@pytest.fixture
def browser(tmp_path):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine to look at the report with")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        profile = tmp_path / f"profile{len(list(tmp_path.iterdir()))}"
        return subprocess.run(
            [program, *OPTIONS, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )

    return run


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_is_drawn_and_fits(browser, tmp_path, width):
    page = write_report(sample_report(), tmp_path / "report.html")
    browser(f"--window-size={width},2400", f"--screenshot={tmp_path / 'page.png'}", page.as_uri())
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    background = pixels[2, 2]
    drawn = (np.abs(pixels - background).sum(2) > 30).mean()
    assert 0.01 < drawn < 0.6, "neither blank nor black"
    # the curves: pixels of each network's colour
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert (np.abs(pixels - color).sum(2) < 40).sum() > 100, color


@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_sticks_out_to_the_side(browser, tmp_path, width):
    page = write_report(sample_report(), tmp_path / "report.html")
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
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
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
