"""`predict`: nnU-Net's segmentations byte for byte, and maps that say what its .npz would."""

import csv
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.special import entr, expit, logit, softmax

from nnunet_calib import apply_temperature, cli
from tests.worlds.maps import assert_same_geometry, read, read_maps
from tests.worlds.nnunet_world import LABEL_MODES
from tests.worlds.predicting import MARKS, files

pytestmark = MARKS

ALL = ("--maps", "probabilities", "entropy", "confidence")
CORNERS = np.ones((3, 3, 3))
both_heads = pytest.mark.parametrize("world", ["labels", "regions"], indirect=True)


def is_regions(deployed) -> bool:
    return LABEL_MODES[deployed.world.dataset.split("_", 1)[1]][1] is not None


def segmentation_of(p: np.ndarray, regions: bool) -> np.ndarray:
    """What nnU-Net makes of probabilities."""
    if not regions:
        return p.argmax(0)
    segmentation = np.zeros(p.shape[1:], int)
    for channel, label in enumerate((1, 2)):
        segmentation[p[channel] > 0.5] = label
    return segmentation


def with_temperature(p: np.ndarray, temperature: float, regions: bool) -> np.ndarray:
    """Of nnU-Net's .npz; outside its crop nothing changes."""
    outside = (p == 0).sum(0) == (len(p) if regions else len(p) - 1)
    return np.where(outside, p, apply_temperature(p, temperature, regions=regions))


def assert_segmentations_of(folder, reference) -> None:
    """The same bytes as nnU-Net's own prediction."""
    ours, theirs = (
        {name: content for name, content in files(f).items() if name.endswith(".nii.gz") and "/" not in name}
        for f in (folder, reference)
    )
    assert len(theirs) == 2
    assert ours == theirs


def assert_table_of(folder, name: str, maps: dict, segmentation: np.ndarray, image) -> None:
    """The rows of cases.csv say of a case what its maps and its segmentation do."""
    heads = json.loads((folder / "maps.json").read_text())["heads"]
    with (folder / "cases.csv").open(newline="") as file:
        rows = {row["structure"]: row for row in csv.DictReader(file) if row["case"] == name}
    ml = np.prod(sitk.ReadImage(str(image)).GetSpacing()) / 1000
    labels = heads["regions"] or [[int(key)] for key in heads["keys"]]
    assert [*rows] == [key for key in heads["keys"] if key != "0"]
    for key, region, p in zip(heads["keys"], labels, maps["probabilities"].astype(np.float64), strict=True):
        if key == "0":
            continue
        inside, row = np.isin(segmentation, region), rows[key]
        assert int(row["segmented_voxels"]) == inside.sum()
        assert float(row["segmented_ml"]) == pytest.approx(inside.sum() * ml, rel=1e-4)
        assert float(row["expected_voxels"]) == pytest.approx(p.sum(), rel=1e-4)
        assert float(row["expected_ml"]) == pytest.approx(p.sum() * ml, rel=1e-4)
        assert row["low_ml"] == row["high_ml"] == ""  # of a fold there is no interval
        assert float(row["expected_dice"]) == pytest.approx(2 * p[inside].sum() / (inside.sum() + p.sum()), rel=1e-4)
        if inside.any():
            assert float(row["mean_entropy"]) == pytest.approx(maps["entropy"][0][inside].mean(), rel=1e-3)
        else:
            assert row["mean_entropy"] == ""


def assert_lesions_of(folder, name: str, maps: dict, segmentation: np.ndarray, image) -> None:
    """The rows of lesions.csv are the connected components of a case's segmentation, where ITK has them."""
    heads, image = json.loads((folder / "maps.json").read_text())["heads"], sitk.ReadImage(str(image))
    with (folder / "lesions.csv").open(newline="") as file:
        found = [[*map(float, [*row.values()][4:])] for row in csv.DictReader(file) if row["case"] == name]
    expected = []
    for head, key in enumerate(heads["keys"]):
        if key == "0":
            continue
        parts, number = ndimage.label(
            np.isin(segmentation, heads["regions"][head] if heads["regions"] else int(key)), CORNERS
        )
        p, start = maps["probabilities"][head].astype(np.float64), len(expected)
        for n in range(1, number + 1):
            inside = parts == n
            centre = np.argwhere(inside).mean(0)[::-1].tolist()
            sizes = inside.sum(), p[inside].sum()
            ml = np.prod(image.GetSpacing()) / 1000
            place = image.TransformContinuousIndexToPhysicalPoint(centre)
            expected.append([*sizes, sizes[0] * ml, sizes[1] * ml, p[inside].mean(), p[inside].max(), *place])
        expected[start:] = sorted(expected[start:], key=lambda row: -row[4])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@both_heads
@pytest.mark.parametrize("deployed", ["2d", "3d_fullres"], indirect=True)
def test_maps(deployed):
    """Those of nnU-Net's .npz with the fold's temperature, in the geometry of the oblique image, crop included."""
    folder, regions = deployed.predict(*ALL, "--lesions"), is_regions(deployed)
    reference, probabilities = deployed.reference()
    assert_segmentations_of(folder, reference)
    assert [p.name for p in folder.rglob("*") if p.suffix in (".npz", ".pkl")] == []
    about = json.loads((folder / "maps" / "maps.json").read_text())
    assert about["temperature"] == {"0": 1.8}
    assert about["temperature_from"] == {"0": "fold_0/validation/calibration/temperature.json"}
    for name, p in probabilities.items():
        expected = with_temperature(p, 1.8, regions)
        maps = {kind: read_maps(folder / "maps", kind, name) for kind in ALL[1:]}
        np.testing.assert_allclose(maps["probabilities"], expected, rtol=1e-5, atol=1e-6)
        assert np.abs(expected - p).max() > 0.01
        e = expected.astype(np.float64)
        if regions:
            np.testing.assert_allclose(maps["entropy"][0], (entr(e) + entr(1 - e)).mean(0), atol=1e-5)
            np.testing.assert_allclose(maps["confidence"], np.maximum(e, 1 - e), atol=1e-6)
        else:
            np.testing.assert_allclose(maps["probabilities"].sum(0), 1, atol=1e-6)
            np.testing.assert_allclose(maps["entropy"][0], entr(e).sum(0), atol=1e-5)
            np.testing.assert_allclose(maps["confidence"][0], e.max(0), atol=1e-6)
        segmentation = read(folder / f"{name}.nii.gz")
        np.testing.assert_array_equal(segmentation_of(maps["probabilities"], regions), segmentation)
        outside = (slice(None), slice(0, 2))  # nnU-Net crops the zero border
        assert {*maps["probabilities"][0][outside[1]].ravel()} == {0.0 if regions else 1.0}
        assert {*maps["entropy"][outside].ravel()} == {0.0}
        assert {*maps["confidence"][outside].ravel()} == {1.0}
        image = deployed.images / f"{name}_0000.nii.gz"
        for path in (folder / "maps").rglob(f"{name}.nii.gz"):
            assert_same_geometry(path, image)
        assert_table_of(folder / "maps", name, maps, segmentation, image)
        assert_lesions_of(folder / "maps", name, maps, segmentation, image)


def write_limits(file, key: str, low: float, high: float) -> None:
    """The expected.json of a cross-validation that has an interval for one structure."""
    of = {"cases": 30, "mean": 0.0, "low": low, "high": high, "covered": 0.9}
    volumes = {key: dict.fromkeys(("segmented", "uncalibrated", "calibrated"), of)}
    content = {"level": 0.9, "promise": "", "notes": [], "volumes": volumes, "dice": {}, "metric_per_case": []}
    file.write_text(json.dumps(content))


@both_heads
def test_pooled(deployed):
    """Merged folds: the logits of nnU-Net's ensemble divided by the one temperature."""
    deployed.add_fold()
    file = deployed.merge(2.5)
    key = "2"  # in labels and regions alike
    write_limits(file.with_name("expected.json"), key, np.log(0.5), np.log(3))
    folder = deployed.predict("-f", "0", "1")
    with (folder / "maps" / "cases.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            volume = float(row["expected_ml"])
            expected = [volume / 2, 3 * volume] if row["structure"] == key else []
            found = [float(row[name]) for name in ("low_ml", "high_ml") if row[name]]
            assert found == pytest.approx(expected, rel=1e-4)
    reference, probabilities = deployed.reference(folds=(0, 1))
    assert_segmentations_of(folder, reference)
    about = json.loads((folder / "maps" / "maps.json").read_text())
    assert about["temperature"] == {"0": 2.5, "1": 2.5}
    for name, p in probabilities.items():
        expected = with_temperature(p, 2.5, is_regions(deployed))
        np.testing.assert_allclose(read_maps(folder / "maps", "probabilities", name), expected, rtol=1e-5, atol=1e-6)


@both_heads
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_each_fold_with_its_temperature(deployed, average):
    """The definition, from nnU-Net's .npz of each fold; the segmentation is still that of nnU-Net's ensemble."""
    deployed.add_fold()
    deployed.set_temperature(0.7, 1)
    regions, temperatures = is_regions(deployed), (1.8, 0.7)
    kinds = ("probabilities", "mutual_information", "variance")
    folder = deployed.predict("-f", "0", "1", "--average", average, "--save_probabilities", "--maps", *kinds)
    reference, probabilities = deployed.reference(folds=(0, 1))
    assert_segmentations_of(folder, reference)
    ours, theirs = (np.load(f / "case.1.npz")["probabilities"] for f in (folder, reference))
    np.testing.assert_array_equal(ours, theirs)
    about = json.loads((folder / "maps" / "maps.json").read_text())
    assert about["temperature"] == {"0": 1.8, "1": 0.7}
    assert about["average"] == average
    of_folds = [deployed.reference(f"fold{f}", (f,))[1] for f in (0, 1)]
    for name, mean in probabilities.items():
        ps = [of_fold[name].astype(np.float64) for of_fold in of_folds]
        scaled = [with_temperature(p, t, regions) for p, t in zip(ps, temperatures, strict=True)]
        assert_disagreement(folder / "maps", name, scaled, regions)
        if average == "probabilities":
            expected, atol = np.mean(scaled, 0), 1e-6
        else:  # nnU-Net's .npz of a fold come from logits that were rounded to half precision, ours only here
            eps = 1e-12
            logits = [(logit(np.clip(p, eps, 1 - eps)) if regions else np.log(np.maximum(p, eps))) for p in ps]
            z = np.mean([z / t for z, t in zip(logits, temperatures, strict=True)], 0)
            expected, atol = (expit(z) if regions else softmax(z, 0)), 2e-3
        found = read_maps(folder / "maps", "probabilities", name)
        inside = (slice(None), slice(4, 24))
        np.testing.assert_allclose(found[inside], expected[inside], atol=atol)
        assert np.abs(found - mean).max() > 0.02


def assert_disagreement(folder, name: str, folds: list[np.ndarray], regions: bool) -> None:
    """By its definition, of the calibrated probabilities of each fold, whatever the other maps average."""

    def entropy(p: np.ndarray) -> np.ndarray:
        return (entr(p) + entr(1 - p)).mean(0) if regions else entr(p).sum(0)

    folds = [p.astype(np.float64) for p in folds]
    information = entropy(np.mean(folds, 0)) - np.mean([entropy(p) for p in folds], 0)
    np.testing.assert_allclose(read_maps(folder, "mutual_information", name)[0], information, atol=1e-5)
    np.testing.assert_allclose(read_maps(folder, "variance", name), np.var(folds, 0), atol=1e-6)
    assert information.max() > 0.01


def test_integers(deployed):
    """As `export` makes them of nnU-Net's .npz, up to a rounding."""
    folder = deployed.predict(*ALL, "--dtype", "uint8", "--layout", "4d")
    reference, probabilities = deployed.reference()
    export = ["export", "-i", str(reference), "--temperature", "1.8", "-np", "1", *ALL, "--dtype", "uint8"]
    assert cli.main([*export, "--layout", "4d"]) == 0
    for name, p in probabilities.items():
        for kind in ALL[1:]:
            ours, theirs = (read(f / "maps" / kind / f"{name}.nii.gz").astype(int) for f in (folder, reference))
            assert ours.max() > 100
            assert np.abs(ours - theirs).max() <= 1
            assert (ours != theirs).mean() < 1e-3
        found = read(folder / "maps" / "probabilities" / f"{name}.nii.gz") / 255
        np.testing.assert_allclose(found, with_temperature(p, 1.8, False), atol=0.501 / 255)


def test_no_temperature(deployed):
    """With --temperature 1 the maps are nnU-Net's probabilities, and no temperature need be there."""
    deployed.temperature_file().unlink()
    folder = deployed.predict("--temperature", "1")
    for name, p in deployed.reference()[1].items():
        np.testing.assert_allclose(read_maps(folder / "maps", "probabilities", name), p, rtol=1e-6, atol=1e-7)


def test_workers_and_parts(deployed):
    """The same files from nnU-Net's worker processes, in two parts, where a third has nothing to do."""
    folder = deployed.predict(*ALL)
    for part, exporting in (("0", "2"), ("1", "1"), ("2", "1")):
        several = ("-npp", "1", "-nps", exporting, "-num_parts", "3", "-part_id", part)
        deployed.predict(*ALL, *several, output="parts")
    ours, parts = (files(f) for f in (folder, deployed.root / "parts"))
    del ours["predict_from_raw_data_args.json"], parts["predict_from_raw_data_args.json"]
    assert ours == parts


def test_model_folder(deployed, monkeypatch):
    """A model that lies elsewhere, named by its folder, gives the same segmentations and maps."""
    expected = deployed.predict()
    received = shutil.copytree(deployed.folder, deployed.root / "received")
    monkeypatch.delenv("nnUNet_results")
    command = deployed.command(output="other")
    start = command.index("-d")
    command[start : command.index("-f")] = ["-m", str(received)]
    assert cli.main(command) == 0
    other = deployed.root / "other"
    assert files(other / "maps") == files(expected / "maps")
    for segmentation in expected.glob("*.nii.gz"):
        assert (other / segmentation.name).read_bytes() == segmentation.read_bytes()
