"""`evaluate --lesions`: found and false lesions of predictions against label maps."""

import json

import numpy as np
import pytest
from scipy import ndimage

from nnunet_calib import apply_temperature, cli
from nnunet_calib.figures import fold_figures
from nnunet_calib.report import fold_page
from nnunet_calib.results.layout import ENDINGS
from tests.worlds.command_line import sentence
from tests.worlds.predicted_folder import REGIONS, arguments, write_labels, write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports

CORNERS = np.ones((3, 3, 3))
FILES = {"lesions.json", *(f"lesions.{ending}" for ending in ENDINGS)}


def expected(case, region: tuple[int, ...], head: int, regions: bool) -> dict[str, int]:
    """Count the lesions of a structure another way: component by component, in whole arrays."""
    valid = case.labels != case.ignore_label
    p = case.probabilities[head]
    ours, predicted = ndimage.label(((p > 0.5) if regions else case.probabilities.argmax(0) == head) & valid, CORNERS)
    theirs, true = ndimage.label(np.isin(case.labels, region) & valid, CORNERS)
    met = [theirs[ours == n].any() for n in range(1, predicted + 1)]
    found = [ours[theirs == n].any() for n in range(1, true + 1)]
    return {"predicted": predicted, "true": true, "false": predicted - sum(met), "found": sum(found)}


@pytest.mark.parametrize("mode", ["ignore", "regions_ignore"])
def test_lesions(tmp_path, mode, capsys, monkeypatch):
    """Ignored voxels belong to none; the numbers of each structure are those of counting, and p is calibrated."""
    cases, regions = write_world(tmp_path, mode, size=26), mode.startswith("regions")
    labels = cases["case.0"].labels
    labels[labels != 3] = 0  # what is predicted there is false
    write_labels(tmp_path / "labels" / "case.0.nii.gz", cases["case.0"])
    for module in (fold_figures, fold_page):
        monkeypatch.setattr(module, "FIGURES", ())  # the others take seconds
    assert cli.main(arguments(tmp_path, "evaluate", "--lesions")) == 0
    assert "mean_p" in capsys.readouterr().out
    folder = tmp_path / "pred" / "calibration"
    assert {path.name for path in folder.iterdir()} >= FILES
    summary = json.loads((folder / "summary.json").read_text())
    rows = {row["case"]: row for row in json.loads((folder / "lesions.json").read_text())["metric_per_case"]}
    keys = {"(1, 2)": REGIONS[0], "2": REGIONS[1]} if regions else {"1": (1,), "2": (2,)}
    for key, region in keys.items():
        head = [*keys].index(key) + (not regions)
        counts = [expected(case, region, head, regions) for case in cases.values()]
        total = {name: sum(count[name] for count in counts) for name in counts[0]}
        of = summary["lesions"]["structures"][key]
        assert (of["true"], of["predicted"]) == (total["true"], total["predicted"])
        assert min(total["found"], total["false"]) > 0
        assert of["sensitivity"] == pytest.approx(total["found"] / total["true"])
        assert of["false_per_case"] == pytest.approx(total["false"] / len(cases))
        for name, case in cases.items():
            values = rows[name]["structures"][key]["predicted"]
            (row,) = (row for row in summary["metric_per_case"] if row["case"] == name)
            p = apply_temperature(case.probabilities, row["temperature"], regions=regions)[head]
            largest = max(values["calibrated"]["max_p"])
            classes = case.probabilities.argmax(0)
            inside = (case.probabilities[head] > 0.5 if regions else classes == head) & (case.labels != 3)
            assert largest == pytest.approx(p[inside].max(), rel=1e-4)
            assert max(values["uncalibrated"]["max_p"]) == pytest.approx(case.probabilities[head][inside].max())
    assert cli.main(["report", "-i", str(tmp_path / "pred")]) == 0
    assert "Found and false lesions" in (folder / "report.html").read_text()

    assert cli.main(arguments(tmp_path, "evaluate", "--no-figures")) == 0
    assert not {path.name for path in folder.iterdir()} & FILES  # they were of other numbers


def test_several_raters(tmp_path, capsys):
    """A lesion cannot be found for one rater and missed for another."""
    write_world(tmp_path, seeds=[0])
    (tmp_path / "third").mkdir()
    for file in (tmp_path / "labels").iterdir():
        (tmp_path / "third" / file.name).write_bytes(file.read_bytes())
    labels = ["-gt", str(tmp_path / "labels"), str(tmp_path / "third")]
    assert cli.main(["evaluate", "-i", str(tmp_path / "pred"), *labels, "--lesions", "-np", "1"]) == 2
    assert "expected one folder of label maps with --lesions, got 2" in sentence(capsys.readouterr().err)
    assert not (tmp_path / "pred" / "calibration").exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ((), "predictions that evaluate has measured (-i): name one of the two"),
        (("-i", "pred", "-d", "4"), "name one of the two"),
        (("-i", "pred", "--calibrator", "vector"), "-i without --calibrator, got vector"),
        (("-i", "pred"), "summary.json, found none: make it with nnunet_calib evaluate"),
    ],
)
def test_no_report(more, text, capsys):
    """A report needs either a model or predictions."""
    assert cli.main(["report", *more]) == 2
    assert text in sentence(capsys.readouterr().err)
