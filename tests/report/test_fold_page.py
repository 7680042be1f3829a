"""The report: one file that says what the summary says, and needs nothing else."""

import base64
import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest

from nnunet_calib.figures.case_pictures import colour_bar
from nnunet_calib.figures.fold_figures import FIGURES
from nnunet_calib.figures.style import new_figure
from nnunet_calib.metrics.catalogue import RANKINGS
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.report import fold_page as report_page
from nnunet_calib.report.fold_page import write_report
from nnunet_calib.report.page import data_uri
from tests.figures.test_fold_figures import NAMES, cases, write_cases

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """What is in a page; fails where an element is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.sources, self.words, self.rows = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        """Remember it."""
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, found in (("href", self.links), ("id", self.ids), ("src", self.sources)):
            if name in values:
                found.append(values[name])

    def handle_endtag(self, tag):
        """It must be the innermost one."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Text of cells, and all text."""
        if self.open and {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        """All of it, with single spaces."""
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A measured fold of four cases."""
    folder = tmp_path_factory.mktemp("fold")
    write_cases(folder, cases(4))
    return folder


@pytest.fixture
def one_figure(monkeypatch):
    """For tests of the rest of the page, since figures take seconds."""
    spec = replace(FIGURES[0], draw=lambda *_: new_figure(1)[0])
    monkeypatch.setattr(report_page, "FIGURES", (spec,))


def report(folder, tmp_path, **options):
    """The page."""
    options = {"image_of": lambda case: None} | options
    write_report(folder, tmp_path / "report.html", **options)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("one_figure")
def test_numbers(folder, tmp_path):
    """Headline and rows are the numbers of summary.json; each case is there, and links to its slice."""
    dice = {"case0": 0.87654, "case2": float("nan")}
    page = report(folder, tmp_path, dice=dice, commands=["nnunet_calib report <x>"])
    summary = json.loads((folder / "summary.json").read_text())
    before, after = (summary["metrics"][stage]["image"] for stage in ("uncalibrated", "calibrated"))
    limits = summary["intervals"]["calibrated"]["image"]
    ace = next(row for row in page.rows if row[0] == "ACE")
    assert ace[1].split()[0] == f"{before['foreground_mean']['ace']:.4f}"
    low, high = limits["foreground_mean"]["ace"]
    assert ace[2].split() == [f"{after['foreground_mean']['ace']:.4f}", f"{low:.4f}", "to", f"{high:.4f}"]
    nll = next(row for row in page.rows if row[0] == "NLL")
    assert nll[1].split()[0] == f"{before['nll']:.4f}"
    assert f"{100 * (after['nll'] / before['nll'] - 1):+.1f} %" in nll[3]
    for row in summary["metric_per_case"]:
        (cells,) = (cells for cells in page.rows if cells[0] == row["case"])
        classes = row["uncalibrated"]["image"]["per_class"]
        assert cells[2] == f"{np.mean([classes[c]['ece'] for c in '12']):.4f}"
        assert cells[1] == {"case0": "0.877"}.get(row["case"], "-")
        assert f"case-{row['case']}" in page.ids
    assert f"T = {summary['temperature']['temperature']:.3f}" in page.text
    assert "nnunet_calib report <x>" in page.text  # escaped, or the parser would have met an element
    assert all(word in page.text for word in ("expected calibration error", *NAMES[1:3]))
    assert "fold 0, 4 cases" in page.text


@pytest.mark.usefixtures("one_figure")
def test_merged_folds(folder, tmp_path):
    """The page of a cross-validation says which folds it is of."""
    summary = json.loads((folder / "summary.json").read_text())
    summary["temperature"]["folds"] = [0, 3]
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "summary.json").write_text(json.dumps(summary))
    assert "folds 0, 3, 4 cases" in report(copy, tmp_path).text


@pytest.mark.usefixtures("one_figure")
def test_uncertainty_against_error(folder, tmp_path):
    """Of the whole image with intervals, and of the boundary in words; files of older versions have none of it."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = {row[0]: row for row in report(folder, tmp_path).rows}
    for name, title in (("confidence_auroc", "AUROC of 1 - confidence"), ("entropy_auroc", "AUROC of entropy")):
        before, after = (summary["metrics"][stage] for stage in ("uncalibrated", "calibrated"))
        assert rows[title][1].split()[0] == f"{before['image'][name]:.4f}"
        assert rows[title][2].split()[0] == f"{after['image'][name]:.4f}"
        at = before["boundary"][name], after["boundary"][name]
        assert "At the boundary: {:.4f}, with temperature {:.4f}.".format(*at) in rows[title][3]
    for kind in ("metrics", "intervals"):
        for scopes in summary[kind].values():
            for values in scopes.values():
                for name in RANKINGS:
                    del values[name]
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "summary.json").write_text(json.dumps(summary))
    assert not {row[0] for row in report(copy, tmp_path).rows if "AUROC" in row[0]}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Return the folder of a page with every figure, the page, and the cases whose image was asked for."""
    asked, place = [], tmp_path_factory.mktemp("whole")
    return place, report(folder, place, image_of=asked.append), asked


def test_figures(whole):
    """Each with a caption, as vectors that lie within a column; the worst cases show the image; maps have colours."""
    _, page, asked = whole
    svg = [source for source in page.sources if source.startswith("data:image/svg+xml;base64,")]
    assert len(svg) == len(FIGURES)
    captions = [spec.caption.format(effect=Temperature.effect) for spec in FIGURES]
    assert all(
        spec.title in page.text and caption in page.text for spec, caption in zip(FIGURES, captions, strict=True)
    )
    for source in svg:
        assert re.search(rb'width="249\.\d*pt"', base64.b64decode(source.split(",")[1]))  # 88 mm
    assert asked.count("case0") == 2  # for its own slice and as one of the worst four
    assert data_uri(colour_bar(), "image/png") in page.sources


def test_complete_in_itself(whole):
    """Nothing is loaded from elsewhere, and each link leads to a place of the page."""
    place, page, _ = whole
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert [link for link in page.links if not link.startswith("#")] == ["data:,"]
    assert {unquote(link)[1:] for link in page.links if link.startswith("#")} <= {*page.ids}
    text = (place / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href|url|@import)[=( \"']+https?:", text)
    assert sorted(path.name for path in place.iterdir()) == ["report.html"]


@pytest.mark.usefixtures("one_figure")
def test_same_bytes(folder, tmp_path):
    """The same files give the same page."""
    for name in "ab":
        write_report(folder, tmp_path / name, image_of=lambda case: None)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.usefixtures("one_figure")
def test_size(folder, tmp_path, monkeypatch):
    """Slices fill a page up to a limit, the worst cases first; the page says how many there are without."""
    monkeypatch.setattr(report_page, "PICTURES_MIB", 0.002)
    page = report(folder, tmp_path)
    linked = [link for link in page.links if link.startswith("#case-")]
    assert 0 < len(linked) < 4
    assert f"{4 - len(linked)} cases with smaller ACE have no picture here" in page.text


@pytest.mark.usefixtures("one_figure")
def test_image(folder, tmp_path):
    """Images are shown where there are some, and the page says what it shows."""
    assert "the label map (no image was found)" in report(folder, tmp_path).text
    rng = np.random.default_rng(0)
    seen = report(folder, tmp_path, image_of=lambda case: rng.random((1, 9, 9, 6)))
    assert "the image with the segmentation" in seen.text


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize("change", ["in_sample", "at_bound", "missing"])
def test_warnings(folder, tmp_path, change):
    """What makes numbers less worth is said."""
    summary = json.loads((folder / "summary.json").read_text())
    if change == "missing":
        summary["missing_cases"] = ["lost_7"]
    else:
        summary["temperature"][change] = True
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "summary.json").write_text(json.dumps(summary))
    said = {"in_sample": "trained on", "at_bound": "do not use it", "missing": "Not measured: lost_7."}[change]
    assert said not in report(folder, tmp_path).text
    assert said in report(copy, tmp_path).text


@pytest.mark.usefixtures("one_figure")
def test_damaged(folder, tmp_path):
    """A lost case file ends it before anything is written."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "cases" / "case1.npz").unlink()
    with pytest.raises(FileNotFoundError):
        write_report(copy, tmp_path / "report.html", image_of=lambda case: None)
    assert not (tmp_path / "report.html").exists()


CLICK = """<script>
const column = [...document.querySelectorAll("#cases th")].findIndex(
  th => th.textContent.trim().replaceAll("\\u00a0", " ") === "ACE, T = 1");
const button = document.querySelectorAll("#cases th button")[column];
const names = () => [...document.querySelectorAll("#cases tbody tr")].map(row => row.cells[0].textContent.trim());
button.click(); const falling = names(); button.click();
const wide = document.documentElement.scrollWidth > window.innerWidth;
const small = [...document.querySelectorAll("p, td, th, figcaption, dd, dt")].filter(
  e => parseFloat(getComputedStyle(e).fontSize) < 14).length;
// text of 7 points in a figure of 88 mm is 9.3 pixels high where the figure has its own size
const shrunk = [...document.querySelectorAll(".figures img")].filter(
  e => e.getBoundingClientRect().width < e.getAttribute("width")).length;
document.querySelector("#cases a").click();
const found = document.querySelector(".cases figure:target");
const outcome = JSON.stringify([falling, names(), wide, small, shrunk, found !== null, innerWidth]);
(window === parent ? document : parent.document).body.dataset.outcome = outcome;
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(folder, whole, tmp_path, width):
    """Without a console error; a click sorts by falling, a second by rising ACE, a case leads to its slice.

    No text is small or cut off, and no figure smaller than it was drawn.
    """
    text = (whole[0] / "report.html").read_text(encoding="utf-8").replace("</body>", CLICK)
    page = tmp_path / "clicked.html"
    page.write_text(text, encoding="utf-8")
    if width < 500:  # a window of Chromium is not narrower, but a frame in it is
        page = tmp_path / "frame.html"
        page.write_text(f'<iframe style="width: {width}px; height: 800px; border: 0" src="clicked.html"></iframe>')
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1280,900",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--allow-file-access-from-files",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    falling, rising, wide, small, shrunk, found, inner = json.loads(
        html.unescape(re.search(r'data-outcome="([^"]*)"', done.stdout)[1])
    )
    rows = json.loads((folder / "summary.json").read_text())["metric_per_case"]
    ace = {row["case"]: [row["uncalibrated"]["image"]["per_class"][c]["ace"] for c in "12"] for row in rows}
    expected = sorted(ace, key=lambda case: np.mean(ace[case]))
    assert (rising, falling) == (expected, expected[::-1])
    assert inner == width
    assert (wide, small, shrunk, found) == (False, 0, 0, True)
