"""The documents: their Python runs, their commands are understood, their links lead somewhere."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import nnunet_calib
from nnunet_calib import CaseStatistics, cli, losses
from nnunet_calib.synthetic import synthetic_case
from tests.worlds import command_options, metric_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, *languages):
    """What stands in the fences of a page."""
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def name(page):
    """For messages."""
    return page.relative_to(ROOT).as_posix()


def write_predictions(case):
    """What the tutorial has before it opens a map: an image, its label map, probabilities as .npz and as an image."""
    files = {
        "images/hippocampus_023_0000": case.image,
        "nnUNet_raw/Dataset004_Hippocampus/labelsTr/hippocampus_023": case.labels,
        "calibrated/maps/probabilities/Anterior/hippocampus_023": case.probabilities[1],
    }
    for file, array in files.items():
        Path(file).parent.mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), f"{file}.nii.gz")
    for folder in ("plain", "baked"):
        Path(folder).mkdir()
        np.savez_compressed(f"{folder}/hippocampus_023.npz", probabilities=case.probabilities)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """What the snippets take for granted: a case, a batch, and the case's file."""
    monkeypatch.chdir(tmp_path)
    case = synthetic_case(0, (12, 12, 8))
    image = np.asarray(case.image, np.float32)[None]
    statistics = CaseStatistics.from_probabilities(case.probabilities, case.labels)
    for folder in ("cases", "calibration/cases"):
        Path(folder).mkdir(parents=True)
        statistics.save(f"{folder}/hippocampus_023.npz")
    write_predictions(case)
    return {
        "probabilities": case.probabilities,
        "labels": case.labels,
        "image": image,
        "case": statistics,
        "logits": torch.randn(2, 3, 8, 8, 8, requires_grad=True),
        "target": torch.randint(3, (2, 1, 8, 8, 8)),
    }


@pytest.mark.filterwarnings("ignore")  # nnU-Net's imports
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python(page, world):
    """The snippets of a page run one after the other."""
    for snippet in blocks(page, "python"):
        exec(compile(snippet, name(page), "exec"), world)


def commands(page):
    """Our commands in a page's shell lines, without comments; a backslash at the end joins lines."""
    for text in blocks(page, "bash", "sh", "console", ""):
        for line in text.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].removeprefix("$ ").strip()
            if words.startswith("nnunet_calib ") and "..." not in words and "|" not in words:
                yield words


@pytest.mark.parametrize("page", [page for page in PAGES if [*commands(page)]], ids=name)
def test_commands(page, monkeypatch):
    """Each parses, with its options, as the command line does it."""
    parser = cli._parser()
    for command in commands(page):
        arguments = [re.sub(r"\$\(.*?\)|\$\{?\w+\}?", "1", word) for word in shlex.split(command)[1:]]
        try:
            parser.parse_args(arguments)
        except SystemExit as ending:
            if ending.code != 0:  # as it is after --help
                pytest.fail(f"{name(page)}: {command}")


def anchors(page):
    """Those that GitHub makes of the headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page):
    """Files exist, and so do the headings that links lead to."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{name(page)}: {target}"
        assert not anchor or anchor in anchors(path), f"{name(page)}: {target}"


def test_every_page_is_found():
    """README, or a page that it leads to, links each page of docs/."""
    found, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        found.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        new |= {path for link in links if (path := (page.parent / link).resolve()).is_file()} - found
    assert {name(page) for page in PAGES} - {name(page) for page in found} == set()


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda module: module.__name__.rsplit(".", 1)[-1])
def test_readme_names_each_command(command):
    """No command is left out of its table."""
    word = command.__name__.rsplit(".", 1)[-1]
    assert f"`nnunet_calib {word}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_reliability_names_tests_that_exist():
    """Each row of its tables names a test, and each test that it names is one."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.endswith("| test |")]
    named = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
    assert len(rows) > 40
    for row in rows:
        assert named.search(row), row
        for file, test in named.findall(row):
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), row


def test_options_are_those_of_the_parsers():
    """docs/commands.md has each command, with each option as --help tells it."""
    page = command_options.PAGE.read_text(encoding="utf-8")
    assert page == command_options.with_tables(page), "run python -m tests.worlds.command_options"
    assert [found[1] for found in command_options.TABLE.findall(page)] == [*command_options.parsers()]


def test_metrics_are_those_of_the_catalogue():
    """docs/metrics.md has each metric, with its definition as files have it."""
    page = metric_table.PAGE.read_text(encoding="utf-8")
    assert len(metric_table.TABLE.findall(page)) == 1
    assert page == metric_table.with_table(page), "run python -m tests.worlds.metric_table"


@pytest.mark.parametrize("module", [nnunet_calib, losses], ids=lambda module: module.__name__)
def test_public_names_are_documented(module):
    """docs/python.md names what the package offers for import."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    assert {*module.__all__} - words == set()


def test_documented_names_exist():
    """What docs/python.md lists in its table can be imported."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(nnunet_calib[\w.]+)`", page, re.MULTILINE)
    assert len(named) >= 10
    for path in named:
        module, _, last = path.rpartition(".")
        owner = importlib.import_module(module)
        if not hasattr(owner, last):
            importlib.import_module(path)


def test_every_page_is_in_the_index():
    """docs/README.md lists each page."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()
