"""`--calibrator`: which calibrator is fitted, which one judges the cases, and what says so."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from nnunet_calib import CaseStatistics, cli
from nnunet_calib.commands.arguments import CALIBRATORS
from nnunet_calib.posthoc import KINDS, from_json
from nnunet_calib.posthoc.logits import calibrated, log_probabilities
from tests.worlds.maps import export, read_maps
from tests.worlds.predicted_folder import arguments, run, write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports
FACTORS = np.reshape((0.5, 1.0, 2.0), (-1, 1, 1, 1))


def write_predictions(folder, seeds):
    """Predictions whose logits of each class were multiplied by a factor of its own."""
    cases = write_world(folder, seeds=seeds)
    for name, case in cases.items():
        z = np.log(np.maximum(case.probabilities, 1e-20)).astype(np.float64)
        p = softmax((z - z.mean(0)) * FACTORS, axis=0).astype(np.float32)
        np.savez_compressed(folder / "pred" / f"{name}.npz", probabilities=p)
    return cases


def read_json(folder, name):
    return json.loads((folder / "pred" / "calibration" / name).read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Predictions to fit on, with vector scaling fitted, and others to judge by it."""
    folder = tmp_path_factory.mktemp("predictions")
    write_predictions(folder / "tune", range(13))
    write_predictions(folder / "test", range(13, 15))
    assert cli.main(arguments(folder / "tune", "fit", "--calibrator", "vector")) == 0
    return folder


def test_kinds():
    """The option offers the kinds that there are, the temperature first."""
    assert (*KINDS,) == CALIBRATORS


def test_fit(world, tmp_path, capsys):
    """`fit` writes the calibrator beside a temperature.json that does not change, and says what becomes of the Dice."""
    command = arguments(world / "tune", "fit", "-o", str(tmp_path))
    assert cli.main([*command, "--calibrator", "vector"]) == 0
    lines = capsys.readouterr().out.splitlines()
    content = json.loads((tmp_path / "calibrators.json").read_text())
    entry = content["calibrators"]["vector"]
    found = from_json(entry["fit"])
    assert lines[0].startswith(f"{found.words()}, from 13 cases; NLL {entry['fit']['nll_before']:.4f} -> ")
    assert f"is {entry['dice']['before']:.4f} before it and {entry['dice']['after']:.4f} after it" in lines[1]
    assert lines[2:] == [str(tmp_path / "temperature.json"), str(tmp_path / "calibrators.json")]
    assert entry["dice"]["after"] > entry["dice"]["before"]
    w = np.array(found.factors)
    assert w[0] > w[1] > w[2]
    assert 0 < max(entry["fit"]["factor_errors"]) < 0.2
    assert (len(content["cases"]), content["in_sample"]) == (13, None)

    with_vector = (tmp_path / "temperature.json").read_bytes()
    assert cli.main(command) == 0
    assert (tmp_path / "temperature.json").read_bytes() == with_vector
    assert (tmp_path / "calibrators.json").is_file()


def test_other_cases(world, tmp_path, capsys):
    """A calibrators.json of other cases does not stay beside their temperature."""
    assert cli.main([*arguments(world / "test", "fit", "-o", str(tmp_path)), "--calibrator", "classwise"]) == 0
    assert "classwise: 3 of the classes or regions have too few voxels, and take T" in capsys.readouterr().out
    assert cli.main(arguments(world / "tune", "fit", "-o", str(tmp_path))) == 0
    assert not (tmp_path / "calibrators.json").exists()
    assert "removed from" in capsys.readouterr().err


def test_evaluate(world, tmp_path, capsys):
    """Each case is judged by a calibrator of the kind that was fitted without it, and the summary says which."""
    folder = tmp_path / "results"
    command = [*arguments(world / "tune", "evaluate", "-o", str(folder)), "--no-figures"]
    assert cli.main([*command, "--calibrator", "vector"]) == 0
    output = capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    kept = read_json(world / "tune", "calibrators.json")["calibrators"]["vector"]
    assert {name: summary["temperature"][name] for name in kept["fit"]} == kept["fit"]
    assert json.loads((folder / "calibrators.json").read_text())["calibrators"]["vector"] == kept
    assert (folder / "temperature.json").read_text() == (
        world / "tune" / "pred" / "calibration" / "temperature.json"
    ).read_text()
    used = set()
    for row in summary["metric_per_case"]:
        used.add(calibrator := from_json(row))
        case = CaseStatistics.load(folder / "cases" / f"{row['case']}.npz")
        expected = case.with_temperature(calibrator).histograms.nll.sum() / row["voxels"]
        assert row["calibrated"]["image"]["nll"] == pytest.approx(expected)
    assert len(used) == 5
    assert from_json(kept["fit"]) not in used
    assert summary["definitions"]["calibrated"].startswith("each case with vector scaling fitted on other cases")
    assert "ACE T=1" in output
    assert "ACE w z + b" in output
    assert f"{from_json(kept['fit']).words()} for all cases; each case is judged by one" in output
    assert summary["notes"][-1] in output
    assert f"{kept['dice']['after']:.4f} after it" in summary["notes"][-1]


def test_given(world, capsys):
    """The calibrator of other cases judges these, and is applied to their maps."""
    file = world / "tune" / "pred" / "calibration" / "calibrators.json"
    calibrator = from_json(json.loads(file.read_text())["calibrators"]["vector"]["fit"])
    summary = run(world / "test", "evaluate", "--temperature", str(file), "--calibrator", "vector")
    assert [from_json(row) for row in summary["metric_per_case"]] == [calibrator] * 2
    assert summary["definitions"]["calibrated"].startswith("each case with the given vector scaling")
    assert f"{calibrator.words()} as given" in capsys.readouterr().out
    assert not (world / "test" / "pred" / "calibration" / "calibrators.json").exists()
    folder = export(world / "test", "--temperature", str(file), "--calibrator", "vector")
    assert from_json(json.loads((folder / "maps.json").read_text())) == calibrator
    p = np.load(world / "test" / "pred" / "case.13.npz")["probabilities"]
    expected = calibrated(log_probabilities(p), calibrator)
    np.testing.assert_allclose(read_maps(folder, "probabilities", "case.13"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "FILE"], "expected one of the kinds in FILE, got no --calibrator: name vector with"),
        (
            ["--temperature", "FILE", "--calibrator", "classwise"],
            "expected a calibrator of kind classwise in FILE, got",
        ),
        (["--temperature", "1.5", "--calibrator", "vector"], "got the number 1.5: name the file that nnunet_calib fit"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_refused(world, capsys, command, options, message):
    """In one sentence that says what to type."""
    file = str(world / "tune" / "pred" / "calibration" / "calibrators.json")
    typed = [command, "-i", str(world / "test" / "pred"), *(file if text == "FILE" else text for text in options)]
    typed += ["-gt", str(world / "test" / "labels")] if command == "evaluate" else []
    assert cli.main(typed) == 2
    error = capsys.readouterr().err
    assert message.replace("FILE", file) in error
    assert len(error.splitlines()) == 1


def test_refused_without_file(world, capsys):
    """`export` takes no calibrator from the folder itself, whose cases it would have been fitted to."""
    assert cli.main(["export", "-i", str(world / "test" / "pred"), "--calibrator", "vector"]) == 2
    assert "expected --temperature with --calibrator vector, got none" in capsys.readouterr().err
