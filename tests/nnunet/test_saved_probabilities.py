"""Probabilities of .npz files: integers that save room, and such as are none of a softmax."""

import json

import numpy as np
import pytest

from nnunet_calib import cli
from nnunet_calib.nnunet.saved_probabilities import of_steps
from tests.worlds.command_line import sentence
from tests.worlds.odd_cases import refusal, write_case
from tests.worlds.predicted_folder import run, write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports


def save(folder, cases, dtype):
    """The probabilities of `write_world` in another type, integers as `export --dtype` writes them."""
    kind = np.dtype(dtype)
    for name, made in cases.items():
        p = made.probabilities
        p = np.rint(p * np.iinfo(kind).max) if kind.kind == "u" else p
        np.savez_compressed(folder / "pred" / f"{name}.npz", probabilities=p.astype(kind))


@pytest.mark.parametrize("mode", ["labels", "regions"])
@pytest.mark.parametrize(("dtype", "error"), [("u1", 2e-3), ("u2", 2e-4), (">u2", 2e-4), ("f2", 2e-4), (">f4", 0)])
def test_types(tmp_path, mode, dtype, error):
    """The same numbers but for the rounding, which a probability of 0 does not make infinite."""
    for name in ("a", "b"):
        cases = write_world(tmp_path / name, mode)
    save(tmp_path / "a", cases, dtype)
    a, b = (run(tmp_path / name) for name in "ab")
    ours, theirs = (s["metrics"]["uncalibrated"]["image"] for s in (a, b))
    assert ours["nll"] == pytest.approx(theirs["nll"], abs=max(error, 1e-9), rel=1e-3)
    for key, errors in theirs["per_class"].items():
        assert ours["per_class"][key]["ece"] == pytest.approx(errors["ece"], abs=max(error, 1e-9))
    if error < 1e-3:
        t, other = (s["temperature"]["temperature"] for s in (a, b))
        assert t == pytest.approx(other, rel=0.03 if error else 1e-9)


def test_told(tmp_path, capsys):
    """Integers leave the temperature uncertain, which is said once."""
    cases = write_world(tmp_path)
    save(tmp_path, cases, "u1")
    run(tmp_path)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "uint8" in line]
    assert "3 .npz" in line
    assert "save float32" in line


def test_export(tmp_path):
    """Maps of integers in the same type are these integers."""
    cases = write_world(tmp_path)
    save(tmp_path, cases, "u1")
    import SimpleITK as sitk

    assert cli.main(["export", "-i", str(tmp_path / "pred"), "-np", "1", "--dtype", "uint8"]) == 0
    for name, made in cases.items():
        stored = np.rint(made.probabilities * 255)
        for channel, label in enumerate(("background", "bright", "dark")):
            file = tmp_path / "pred" / "maps" / "probabilities" / label / f"{name}.nii.gz"
            mapped = sitk.GetArrayFromImage(sitk.ReadImage(file)).astype(int)
            assert np.abs(mapped - stored[channel]).max() <= 1  # where the three do not add up to 255


def test_steps():
    """Zeros get an eighth of a step between them, the others keep their share; regions keep clear of 0 and 1."""
    p = of_steps(np.array([[255, 100], [0, 155], [0, 0]], np.uint8), 255, regions=False)
    np.testing.assert_allclose(p.sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(p[:, 0] * 255.125, [255, 0.0625, 0.0625], rtol=1e-5)
    p = of_steps(np.array([[0, 1, 65535]], np.uint16), 65535, regions=True)
    np.testing.assert_allclose(p, np.array([[0.125, 1, 65534.875]]) / 65535, rtol=1e-6)
    many = np.zeros((118, 1), np.uint8)
    many[:50] = 5  # each may be up to half a step more or less
    assert of_steps(many, 255, regions=False).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"of 3 classes that sum to 1 in each voxel, got a sum of 0\.3922"):
        of_steps(np.array([[60], [40], [0]], np.uint8), 255, regions=False)


@pytest.mark.parametrize("dtype", ["f4", "f2", "u1"])
@pytest.mark.parametrize("what", ["half", "twice", "sigmoid"])
def test_no_softmax(tmp_path, capsys, what, dtype):
    """Neither measured, whatever a temperature would make of it, nor written as maps."""
    made = write_world(tmp_path, seeds=range(2))["case.1"]
    p = made.probabilities
    p = {"half": p / 2, "twice": np.minimum(2 * p, 1), "sigmoid": p / (p + p.max(0) / 2)}[what]
    p = np.rint(p * 255) if dtype == "u1" else p
    np.savez(tmp_path / "pred" / "case.1.npz", probabilities=p.astype(dtype))
    text = refusal(tmp_path, capsys)
    assert "case case.1 (" in text
    assert "expected probabilities of 3 classes that sum to 1 in each voxel, got a sum of " in text
    assert "what comes from a sigmoid is of regions, which dataset.json must name" in text
    for temperature in ("1", "2"):
        command = ["export", "-i", str(tmp_path / "pred"), "-np", "1", "--temperature", temperature]
        assert cli.main([*command, "-o", str(tmp_path / f"maps{temperature}")]) == 2
        text = sentence(capsys.readouterr().err.splitlines()[-1])
        assert "case case.1: expected probabilities of 3 classes that sum to 1" in text


def test_half_precision_of_many_classes(tmp_path):
    """118 classes whose float16 all round the same way: the worst that rounding can do passes."""
    write_world(tmp_path, seeds=range(2))
    file = tmp_path / "pred" / "dataset.json"
    labels = {"background": 0} | {f"organ {i}": i for i in range(1, 118)}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": labels}))
    step = 2.0**-17  # between float16 from 2**-7 on
    for i, sign in enumerate((1, -1)):
        p = np.full((118, 3, 4, 5), 2.0**-7 + (10 + 0.499 * sign) * step)
        p[0] = 1 - p[1:].sum(0)
        p = p.astype(np.float16)
        assert abs(p.astype(np.float64).sum(0) - 1).max() > 2e-4
        write_case(tmp_path, f"case.{i}", p, np.full((3, 4, 5), i, np.uint8))
    assert run(tmp_path)["metric_per_case"][1]["voxels"] == 60
