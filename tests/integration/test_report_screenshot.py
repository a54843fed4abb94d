"""The report in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from resnet_pipeline.report import write_report
from tests.sample_report import sample_report

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
