"""The report as a browser sees it: one page, no network, scripts that run."""

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from reprise.launch.config import ConfigError
from reprise.launch.run import execute
from reprise.launch.tables.report import report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SMALL = ["replicas=2", "study.rounds=3", "study.pairs_per_round=[100]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        execute("paper/theory_convergence", [*SMALL, f"seed={seed}"], folder / f"seed-{seed}")
    return folder


def browse(page, *arguments):
    """What headless Chromium says of the page."""
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}",
         *arguments,
         page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_page_holds_everything_and_loads_nothing(runs, tmp_path):
    page = tmp_path / "report.html"
    report([runs], page, [("A table", "| a | b |\n| --- | --- |\n| </script> | 2 |\n")])
    text = page.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    data = json.loads(re.search(r"const data = (.*);\n", text)[1].replace("<\\/", "</"))
    assert [run["state"] for run in data["runs"]] == ["finished", "finished"]
    assert all(run["problems"] == [] and run["pictures"] for run in data["runs"])
    assert len(data["runs"][0]["cells"]["curves"]) == 2 * 4
    assert text.count("</script>") == 1  # what a table or a completion says cannot end the script


def test_a_damaged_run_is_named(runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs / "seed-0", copy)
    file = copy / "summary.json"
    file.write_text(file.read_text().replace('"study": "rounds"', '"study": "other"'))
    report([copy], tmp_path / "report.html")
    assert "seal does not match" in (tmp_path / "report.html").read_text()


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        report([tmp_path], tmp_path / "report.html")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
def test_a_browser_draws_it(runs, tmp_path):
    page = tmp_path / "report.html"
    report([runs], page)
    seen = browse(page, "--dump-dom").stdout
    assert 'data-ready="yes"' in seen  # the script ran to its end
    holder = re.search(r'<div id="curves">(.*?)</svg>', seen, re.S)[1]
    drawn = re.findall(r'<path d="(M[^"]+)"', holder)
    assert len(drawn) == 2 and all(path.count("L") >= 6 for path in drawn)  # 2 methods x 3 steps
    assert "runs/" in seen or "seed-0" in seen

    picture = tmp_path / "page.png"
    browse(page, "--window-size=1000,1600", f"--screenshot={picture}")
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert (width, height) == (1000, 1600)
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=int)
    blue = np.abs(pixels - [0x00, 0x72, 0xB2]).sum(axis=2) < 40  # the first curve's colour
    assert blue.sum() > 300
    assert Path(picture).stat().st_size > 20_000
