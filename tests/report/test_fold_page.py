"""The report: one file that says what the summary says, and needs nothing else."""

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest

from nnunet_calib import CaseStatistics
from nnunet_calib.decisions.expected_of_folds import write_expected
from nnunet_calib.figures.case_pictures import colour_bar
from nnunet_calib.figures.fold_figures import FIGURES
from nnunet_calib.figures.style import new_figure
from nnunet_calib.metrics.bin_sums import BinSums
from nnunet_calib.metrics.catalogue import RANKINGS
from nnunet_calib.metrics.errors import NUM_BINS
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.report import fold_page as report_page
from nnunet_calib.report import fold_words
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
        self.downloads = {}
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
        if "download" in values:
            self.downloads[values["download"]] = values["href"]
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


def csv_rows(page, name):
    """The rows of a CSV file that a page offers."""
    kind, content = page.downloads[name].split(",")
    assert kind == "data:text/csv;base64"
    return [*csv.DictReader(io.StringIO(base64.b64decode(content).decode("utf-8-sig")))]


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
def test_verdict(folder, tmp_path):
    """The first lines say how far off the probabilities are, for which structure most, and what to type."""
    made, summary = cases(4), json.loads((folder / "summary.json").read_text())
    model = {"dataset": "Dataset004_Made", "trainer": "nnUNetTrainerNACL", "plans": "nnUNetPlans", "fold": 0}
    summary["model"] |= model | {"configuration": "2d"}
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "summary.json").write_text(json.dumps(summary))
    text = report(copy, tmp_path).text
    sums = BinSums.of(CaseStatistics.merge(made), NUM_BINS, "image")
    inside, voxels = (values[1:3, 17:19].sum() for values in (sums.positives, sums.counts))
    assert (
        f"where it says 85 to 95 %, the structure is there in {100 * inside / voxels:.0f} % of the voxels (95" in text
    )
    ace = {key: summary["pooled"]["uncalibrated"]["image"]["per_class"][key]["ace"] for key in "12"}
    worst = max(ace, key=ace.get)
    assert f"{NAMES[int(worst)]}: the probabilities are off by {100 * ace[worst]:.1f}, with temperature by" in text
    t = f"T = {summary['temperature']['temperature']:.3f}"
    assert f"Calibrate with {t}: nnunet_calib bake -d Dataset004_Made -c 2d -tr nnUNetTrainerNACL" in text
    summary["temperature"]["standard_error"] = 10.0
    (copy / "summary.json").write_text(json.dumps(summary))
    assert f"Use the probabilities as they are: {t} would hardly change them" in report(copy, tmp_path).text
    summary["temperature"] |= {"at_bound": True}
    (copy / "summary.json").write_text(json.dumps(summary))
    assert "Do not use its temperature" in report(copy, tmp_path).text


@pytest.mark.usefixtures("one_figure")
def test_verdict_from_files(folder, tmp_path):
    """Chosen thresholds and a recommended calibrator are named; without a model, the command for predictions."""
    assert "nnunet_calib export -i PRED --temperature temperature.json" in report(folder, tmp_path).text
    copy = shutil.copytree(folder, tmp_path / "copy")
    summary = json.loads((folder / "summary.json").read_text())
    summary["model"] |= dict.fromkeys(("dataset", "trainer", "plans", "configuration"), "x") | {"fold": 0}
    (copy / "summary.json").write_text(json.dumps(summary))
    fitted = json.loads((folder / "temperature.json").read_text()) | {"recommended": "vector", "calibrators": {}}
    (copy / "calibrators.json").write_text(json.dumps(fitted))
    levels = [{"of": "recall", "level": n, "structures": {"1": {"threshold": n / 4, "cases": 9}}} for n in (0.8, 0.9)]
    content = {"model": summary["model"], "heads": summary["heads"], "promise": "", "definitions": {}, "levels": levels}
    (copy / "thresholds.json").write_text(json.dumps(content))
    text = report(copy, tmp_path).text
    assert "--calibrator vector is recommended there" in text
    assert "masks that hold 90 % of a structure" in text
    assert "before calibration (bright 0.225)" in text


@pytest.mark.usefixtures("one_figure")
def test_cases_to_look_at(judged, tmp_path, monkeypatch):
    """By rising expected Dice, with the true one beside it; the page has some rows, the CSV file all and each digit."""
    monkeypatch.setattr(fold_words, "LOOKED_AT", 5)
    page = report(judged, tmp_path)
    rows = csv_rows(page, "cases_to_look_at.csv")
    expected = json.loads((judged / "expected.json").read_text())["metric_per_case"]
    of = {(row["case"], NAMES[int(key)]): s for row in expected for key, s in row["structures"].items()}
    order = sorted(of, key=lambda at: of[at]["calibrated"]["expected_dice"])
    assert [(row["case"], row["structure"]) for row in rows] == order
    for row, at in zip(rows, order, strict=True):
        assert float(row["expected Dice, T"]) == of[at]["calibrated"]["expected_dice"]
        assert row["true Dice"] == ("" if of[at]["dice"] is None else repr(of[at]["dice"]))
        assert float(row["true voxels"]) == of[at]["true_voxels"]
    shown = [cells for cells in page.rows if len(cells) == len(rows[0]) and cells[1] in NAMES]
    assert [tuple(cells[:2]) for cells in shown] == order[:5]
    assert shown[0][2] == f"{of[order[0]]['calibrated']['expected_dice']:.3f}"


@pytest.mark.usefixtures("one_figure")
def test_csv(folder, tmp_path):
    """Each table has a file with the numbers of summary.json."""
    page = report(folder, tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    ace = next(row for row in csv_rows(page, "errors.csv") if row["whole image"] == "ACE")
    limits = summary["intervals"]["calibrated"]["image"]["foreground_mean"]["ace"]
    found = float(ace["T = 1"]), float(ace["with temperature, low"]), float(ace["with temperature, high"])
    assert found == (summary["metrics"]["uncalibrated"]["image"]["foreground_mean"]["ace"], *limits)
    rows = csv_rows(page, "cases.csv")
    assert [float(row["NLL, T = 1"]) for row in rows] == [
        row["uncalibrated"]["image"]["nll"] for row in summary["metric_per_case"]
    ]
    assert [row["value"] for row in csv_rows(page, "models.csv") if row["name"].startswith("nnunet_calib")]


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
def judged(folder, tmp_path_factory):
    """The same fold with its expected Dice beside nnU-Net's; one case has none."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("judged") / "fold")
    write_expected(copy, {f"case{i}": {"1": 0.9 - 0.1 * i, "2": 0.5} for i in range(3)})
    return copy


@pytest.fixture(scope="module")
def whole(judged, tmp_path_factory):
    """Return the folder of a page with every figure, the page, and the cases whose image was asked for."""
    asked, place = [], tmp_path_factory.mktemp("whole")
    return place, report(judged, place, image_of=asked.append), asked


def test_figures(whole):
    """Each with a caption, as vectors that lie within a column; the worst cases show the image; maps have colours."""
    _, page, asked = whole
    svg = [source for source in page.sources if source.startswith("data:image/svg+xml;base64,")]
    assert len(svg) == len(FIGURES) + 1  # and that of the expected Dice and volumes
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
    assert {link.split(",")[0] for link in page.links if not link.startswith("#")} == {"data:", "data:text/csv;base64"}
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


def chromium(page, tmp_path, *options):
    """Open a page in a browser without a window."""
    always = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    return subprocess.run(
        [CHROMIUM, *always, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


MEASURE = """<script>
const box = e => e.getBoundingClientRect(), measured = [...document.querySelectorAll("table, figure, img, pre, dl, p")];
const outcome = JSON.stringify([
  measured.filter(e => box(e).right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80)),
  measured.filter(e => e.tagName === "IMG" && box(e).height > HEIGHT).map(e => e.alt),
  [...document.querySelectorAll("td, th")].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent),
  innerWidth]);
parent.document.body.dataset.outcome = outcome;
</script></body>"""


def check_print(page, tmp_path):
    """Print a page; each sheet must be A4, and nothing wider or higher than what the margins leave of it."""
    chromium(page, tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "page.pdf").read_bytes())
    assert boxes
    for box in boxes:
        assert [float(side) * 25.4 / 72 for side in box] == pytest.approx([210, 297], abs=0.5)
    text = page.read_text(encoding="utf-8")
    margin = int(re.search(r"@page { size: A4; margin: (\d+)mm; }", text)[1])
    width, height = ((side - 2 * margin) * 96 / 25.4 for side in (210, 297))
    # the same rules on a screen as wide as the sheet, where they can be measured
    assert "@media print {" in text
    text = text.replace("@media print {", "@media all {").replace("</body>", MEASURE.replace("HEIGHT", f"{height:.0f}"))
    (tmp_path / "sheet.html").write_text(text, encoding="utf-8")
    frame = tmp_path / "sheet_frame.html"
    frame.write_text(
        f'<iframe style="width: {width:.0f}px; height: {height:.0f}px; border: 0" src="sheet.html"></iframe>'
    )
    done = chromium(frame, tmp_path, "--window-size=1280,1200", "--allow-file-access-from-files", "--dump-dom")
    wide, high, cut, inner = json.loads(html.unescape(re.search(r'data-outcome="([^"]*)"', done.stdout)[1]))
    assert inner == round(width)
    assert (wide, high, cut) == ([], [], [])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_print(whole, tmp_path):
    """On A4; a table that does not fit is found."""
    check_print(whole[0] / "report.html", tmp_path)
    text = (whole[0] / "report.html").read_text(encoding="utf-8")
    (tmp_path / "wide.html").write_text(text.replace("<table", '<table style="width: 900px"'), encoding="utf-8")
    with pytest.raises(AssertionError, match="<table"):
        check_print(tmp_path / "wide.html", tmp_path)


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
    done = chromium(page, tmp_path, "--window-size=1280,900", "--allow-file-access-from-files", "--dump-dom")
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
