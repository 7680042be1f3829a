"""`export`: maps in every label mode and file format, over the segmentation that they belong to."""

import json
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from scipy.special import entr
from skimage import io

from nnunet_calib import apply_temperature, cli
from tests.worlds.command_line import content
from tests.worlds.maps import assert_same_geometry, export, make_oblique, read, read_maps
from tests.worlds.predicted_folder import write_world
from tests.worlds.promises import promised

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports

ALL = ("--maps", "probabilities", "entropy", "confidence")


def expected_maps(p: np.ndarray, regions: bool) -> dict[str, np.ndarray]:
    """The maps of probabilities (C, *spatial), each with a first axis."""
    p = p.astype(np.float64)
    if regions:
        return {
            "probabilities": p,
            "entropy": (entr(p) + entr(1 - p)).mean(0, keepdims=True),
            "confidence": np.maximum(p, 1 - p),
        }
    return {"probabilities": p, "entropy": entr(p).sum(0, keepdims=True), "confidence": p.max(0, keepdims=True)}


def largest(kind: str, p: np.ndarray, regions: bool) -> float:
    return 1.0 if kind != "entropy" else np.log(2) if regions else np.log(len(p))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("mode", ["labels", "regions_ignore"])
def test_maps(tmp_path, mode, ending):
    """The values of the .npz, with size, spacing, origin and direction of an oblique segmentation."""
    cases = write_world(tmp_path, mode, ending, range(2))
    for name in cases:
        make_oblique(tmp_path / "pred" / f"{name}{ending}")
    before = content(tmp_path)
    folder = export(tmp_path, *ALL)
    after = content(tmp_path)
    assert {k: after[k] for k in before} == before
    regions = mode.startswith("regions")
    classes = ["any", "dark"] if regions else ["background", "bright", "dark"]
    of_classes = {"probabilities", "confidence"} if regions else {"probabilities"}
    files = {f"{kind}/{name}/{c}{ending}" for kind in of_classes for name in classes for c in cases}
    files |= {f"{kind}/{c}{ending}" for kind in {"entropy", "confidence"} - of_classes for c in cases}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {"maps.json", *files}
    for name, case in cases.items():
        for file in files:
            if file.endswith(f"{name}{ending}"):
                assert_same_geometry(folder / file, tmp_path / "pred" / f"{name}{ending}")
        for kind, expected in expected_maps(case.probabilities, regions).items():
            np.testing.assert_allclose(read_maps(folder, kind, name, ending), expected, atol=2e-6)
        p = read_maps(folder, "probabilities", name, ending)
        np.testing.assert_array_equal(p, case.probabilities)
        if not regions:
            np.testing.assert_allclose(p.sum(0), 1, atol=1e-6)


def test_two_axes(tmp_path):
    """A 2D image that SimpleITK reads stays one, with a third axis for the classes in the layout 4d."""
    (case,) = write_world(tmp_path, ending=".nii.gz", seeds=[0]).values()
    segmentation = tmp_path / "pred" / "case.0.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(segmentation))[:, :, 3], str(segmentation))
    make_oblique(segmentation)
    np.savez(tmp_path / "pred" / "case.0.npz", probabilities=case.probabilities[:, 3:4])
    folder = export(tmp_path)
    assert_same_geometry(folder / "probabilities" / "dark" / "case.0.nii.gz", segmentation, 2)
    np.testing.assert_array_equal(read_maps(folder, "probabilities", "case.0"), case.probabilities[:, 3])
    export(tmp_path, "--layout", "4d", "-o", str(tmp_path / "4d"))
    assert_same_geometry(tmp_path / "4d" / "probabilities" / "case.0.nii.gz", segmentation, 3)
    np.testing.assert_array_equal(read(tmp_path / "4d" / "probabilities" / "case.0.nii.gz"), case.probabilities[:, 3])


@pytest.mark.parametrize("layout", ["files", "4d"])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_readers(tmp_path, reader, layout):
    """Whatever a reader does to the axes: the most probable class is the segmentation, voxel by voxel of the file."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    write_world(tmp_path, seeds=[0])
    segmentation = tmp_path / "pred" / "case.0.nii.gz"
    make_oblique(segmentation)
    plans = tmp_path / "pred" / "plans.json"
    plans.write_text(json.dumps(json.loads(plans.read_text()) | {"image_reader_writer": reader}))
    labels, _ = recursive_find_reader_writer_by_name(reader)().read_seg(str(segmentation))
    p = np.where(labels == np.arange(3)[:, None, None, None], 0.8, 0.1).astype(np.float32)
    np.savez(tmp_path / "pred" / "case.0.npz", probabilities=p)
    folder = export(tmp_path, "--layout", layout)
    if layout == "4d":
        file = folder / "probabilities" / "case.0.nii.gz"
        assert_same_geometry(file, segmentation, 4)
        maps = read(file)
    else:
        assert_same_geometry(folder / "probabilities" / "dark" / "case.0.nii.gz", segmentation)
        maps = read_maps(folder, "probabilities", "case.0")
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps.argmax(0), read(segmentation))
    assert {*np.unique(maps)} == {np.float32(0.1), np.float32(0.8)}


@pytest.mark.parametrize("mode", ["labels", "regions"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integers(tmp_path, mode, dtype):
    """Within half a step of the value, which maps.json says how to get; 0 and 1 are exact."""
    (case,) = write_world(tmp_path, mode, seeds=[0]).values()
    p = case.probabilities
    p[:, 0, 0] = 0
    p[0, 0, 0] = 1
    np.savez(tmp_path / "pred" / "case.0.npz", probabilities=p)
    folder = export(tmp_path, *ALL, "--dtype", dtype)
    about = json.loads((folder / "maps.json").read_text())
    steps = {"uint8": 255, "uint16": 65535}[dtype]
    regions = mode == "regions"
    for kind, expected in expected_maps(p, regions).items():
        step = largest(kind, p, regions) / steps
        assert about["maps"][kind]["step"] == pytest.approx(step)
        assert f"value / {steps}" in about["maps"][kind]["value"]
        found = read_maps(folder, kind, "case.0")
        np.testing.assert_allclose(found, expected, atol=step * 0.501 + 1e-7)
        assert np.abs(found - expected).max() > step * 0.4
    np.testing.assert_array_equal(read_maps(folder, "probabilities", "case.0")[:, 0, 0], p[:, 0, 0])


@pytest.mark.parametrize("mode", ["labels", "regions"])
def test_temperature(tmp_path, mode):
    """As a number and as a file; it is in maps.json."""
    cases = write_world(tmp_path, mode, seeds=[0])
    (tmp_path / "t.json").write_text(json.dumps({"temperature": 1.7}))
    export(tmp_path, "--temperature", "1.7", "-o", str(tmp_path / "a"))
    number = tmp_path / "a"
    export(tmp_path, "--temperature", str(tmp_path / "t.json"), "-o", str(tmp_path / "b"))
    assert content(number) == content(tmp_path / "b")
    assert json.loads((number / "maps.json").read_text())["temperature"] == 1.7
    for name, case in cases.items():
        expected = apply_temperature(case.probabilities, 1.7, regions=mode == "regions")
        np.testing.assert_allclose(read_maps(number, "probabilities", name), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["labels", "regions"])
def test_certain_background(tmp_path, mode):
    """What nnU-Net writes outside its crop stays certain at any temperature."""
    (case,) = write_world(tmp_path, mode, seeds=[0]).values()
    case.probabilities[:, 0] = 0
    if mode == "labels":
        case.probabilities[0, 0] = 1
    np.savez(tmp_path / "pred" / "case.0.npz", probabilities=case.probabilities)
    folder = export(tmp_path, *ALL, "--temperature", "19")
    np.testing.assert_array_equal(read_maps(folder, "probabilities", "case.0")[:, 0], case.probabilities[:, 0])
    assert {*read_maps(folder, "entropy", "case.0")[:, 0].ravel()} == {0}
    assert {*read_maps(folder, "confidence", "case.0")[:, 0].ravel()} == {1}
    expected = apply_temperature(case.probabilities[:, 1:], 19.0, regions=mode == "regions")
    np.testing.assert_allclose(read_maps(folder, "probabilities", "case.0")[:, 1:], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png(tmp_path, dtype):
    """Natural images: integers, with the size of the segmentation."""
    cases = write_world(tmp_path, "labels", ".png", range(2))
    folder = export(tmp_path, *ALL, "--dtype", dtype)
    step = {"uint8": 1 / 255, "uint16": 1 / 65535}[dtype]
    for name, case in cases.items():
        for i, label in enumerate(("background", "bright", "dark")):
            image = io.imread(folder / "probabilities" / label / f"{name}.png")
            assert image.dtype == dtype
            np.testing.assert_allclose(image * step, case.probabilities[i, 0], atol=step * 0.501)


@pytest.mark.parametrize(("ending", "reader"), [(".tif", "Tiff3DIO"), (".tif", "NaturalImage2DIO")])
@pytest.mark.parametrize("layout", ["files", "4d"])
def test_tiff(tmp_path, ending, reader, layout):
    """TIFF takes float32 and four axes; the file with the spacing of 3D images goes with them."""
    (case,) = write_world(tmp_path, "labels", ending, [0]).values()
    p, segmentation = case.probabilities, tmp_path / "pred" / "case.0.tif"
    if reader == "NaturalImage2DIO":
        plans = tmp_path / "pred" / "plans.json"
        plans.write_text(json.dumps(json.loads(plans.read_text()) | {"image_reader_writer": reader}))
        p = p[:, :1]
        np.savez(tmp_path / "pred" / "case.0.npz", probabilities=p)
        tifffile.imwrite(segmentation, tifffile.imread(segmentation)[0])
        segmentation.with_suffix(".json").unlink()
    folder = export(tmp_path, "--layout", layout)
    files = (
        [folder / "probabilities" / "case.0.tif"]
        if layout == "4d"
        else [folder / "probabilities" / label / "case.0.tif" for label in ("background", "bright", "dark")]
    )
    arrays = [tifffile.imread(file) for file in files]
    arrays = arrays[0] if layout == "4d" else np.stack(arrays)
    np.testing.assert_array_equal(arrays, p if reader == "Tiff3DIO" else p[:, 0])
    for file in files:
        assert file.with_suffix(".json").is_file() == (reader == "Tiff3DIO")
        if reader == "Tiff3DIO":
            assert json.loads(file.with_suffix(".json").read_text()) == {"spacing": list(case.spacing)}


class Trap:
    """Ends the test when it is unpickled."""

    def __reduce__(self):
        """Raises."""
        return (pytest.fail, ("a pickle was read",))


def test_no_pickle(tmp_path):
    """The .pkl beside the .npz is not opened, in this process or in others."""
    write_world(tmp_path)
    for i in range(3):
        (tmp_path / "pred" / f"case.{i}.pkl").write_bytes(pickle.dumps(Trap()))
    export(tmp_path)
    expected = content(tmp_path / "pred" / "maps")
    assert cli.main(["export", "-i", str(tmp_path / "pred"), "-np", "2", "-o", str(tmp_path / "two")]) == 0
    assert content(tmp_path / "two") == expected


@pytest.mark.parametrize("mode", ["labels", "regions_ignore"])
def test_masks(tmp_path, mode, capsys):
    """Those of the probabilities as they are, whatever temperature the maps have; in the segmentation's geometry."""
    cases, regions = write_world(tmp_path, mode, seeds=range(2)), mode.startswith("regions")
    keys = ["(1, 2)", "2"] if regions else ["0", "1", "2"]
    names = ["any", "dark"] if regions else ["background", "bright", "dark"]
    heads = {"keys": keys, "names": names, "regions": [[1, 2], [2]] if regions else None}
    heads["ignore_label"] = 3 if mode.endswith("ignore") else None
    file = tmp_path / "thresholds.json"
    file.write_text(json.dumps(promised(heads, {keys[-2]: (0.6, 0.3), keys[-1]: (0.4, None)})))
    for name in cases:
        make_oblique(tmp_path / "pred" / f"{name}.nii.gz")
    export(tmp_path, "--masks", str(file), "--temperature", "2")
    assert "no mask, since the file has no threshold for it: recall 0.95 of dark" in capsys.readouterr().err
    folder = tmp_path / "pred" / "masks"
    expected = {("recall_0.8", -2): 0.6, ("recall_0.95", -2): 0.3, ("recall_0.8", -1): 0.4}
    assert len([*folder.rglob("*.nii.gz")]) == len(expected) * len(cases)
    assert json.loads((folder / "masks.json").read_text())["promise"] == "A promise."
    for name, case in cases.items():
        for (level, head), threshold in expected.items():
            mask = folder / level / names[head] / f"{name}.nii.gz"
            np.testing.assert_array_equal(read(mask), case.probabilities[head] >= threshold)
            assert_same_geometry(mask, tmp_path / "pred" / f"{name}.nii.gz")
    heads["names"][-1] = "another"
    file.write_text(json.dumps(promised(heads, {keys[-1]: (0.4, 0.3)})))
    assert cli.main(["export", "-i", str(tmp_path / "pred"), "--masks", str(file), "-o", str(tmp_path / "new")]) == 2
    assert "choose thresholds with nnunet_calib thresholds of this model" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
