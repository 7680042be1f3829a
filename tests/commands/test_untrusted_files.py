"""Names and sizes in the files of others: nothing outside of the folders is read, and nothing absurd is unpacked."""

import json
import os
import pickle
import re
import tracemalloc
from functools import partial

import numpy as np
import pytest

from nnunet_calib import CaseStatistics
from nnunet_calib.figures.drawn_results import Results
from nnunet_calib.nnunet.pickled_properties import image_spacing
from nnunet_calib.nnunet.prediction_folder import find_predictions
from nnunet_calib.nnunet.saved_probabilities import SavedProbabilities
from nnunet_calib.results.crossval import merge_folds
from nnunet_calib.results.judged_cases import load_case
from nnunet_calib.results.layout import case_file
from nnunet_calib.results.measured_folds import find_folds
from tests.worlds.trained_fold import change_json

ELSEWHERE = ["../../other", "/etc/passwd", "..", "a\\b", "C:x", "a\0b"]
PLAIN = "to be a plain name without folders, found"


def refused(work, *parts):
    """Expect a sentence with these parts."""
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))) as error:
        work()
    assert "\n" not in str(error.value)


def test_names_in_folds(model):
    """Cases and datasets become paths."""
    file = model.calibration(1) / "summary.json"
    valid = json.loads(file.read_text())
    rows, identity = valid["metric_per_case"], valid["model"]
    for name in ELSEWHERE:
        for place, changed in (
            ("metric_per_case[0].case", {"metric_per_case": [rows[0] | {"case": name}]}),
            ("missing_cases[0]", {"missing_cases": [name]}),
            ("model.dataset", {"model": identity | {"dataset": name}}),
        ):
            file.write_text(json.dumps(valid | changed))
            refused(lambda: find_folds(model.model_folder, [0, 1]), f"expected {place} {PLAIN}", f"in {file}: ")
        file.write_text(json.dumps(valid))
        model.write_splits(val1=[name])
        told = f"expected the content[1].val[0] {PLAIN}"
        refused(lambda: find_folds(model.model_folder, [0, 1]), told, f"in {model.splits}: ")
        model.write_splits()
    assert len(find_folds(model.model_folder, [0, 1])) == 2


def test_names_in_a_report(model):
    """Cases become paths there, too; a fold is a number."""
    folder = merge_folds(model.model_folder, [0, 1, 2])
    valid = json.loads((folder / "summary.json").read_text())
    for name in ELSEWHERE:
        for entry, told in (({"case": name}, f"case {PLAIN}"), ({"fold": name}, "fold to be a whole number, found")):
            rows = [valid["metric_per_case"][0] | entry]
            (folder / "summary.json").write_text(json.dumps(valid | {"metric_per_case": rows}))
            refused(lambda: Results.read(folder), f"expected metric_per_case[0].{told}")


def test_statistics_of_another_case(model):
    """A file under a wrong name would be counted twice."""
    file = case_file(model.calibration(0), "case.1")
    CaseStatistics.load(case_file(model.calibration(0), "case.0")).save(file)
    told = f"expected the statistics of case case.1, found those of 'case.0' in {file}: measure the case again"
    refused(lambda: load_case(model.calibration(0), "case.1"), told)
    refused(lambda: merge_folds(model.model_folder, [0, 1]), told)


@pytest.fixture
def predictions(tmp_path):
    """A folder of one prediction, of which only the archive is real."""
    p = np.full((2, 1, 4, 5), 0.5, np.float32)
    np.savez_compressed(tmp_path / "a.npz", probabilities=p)
    (tmp_path / "a.nii.gz").touch()
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset | {"numTraining": 1}))
    return tmp_path


@pytest.mark.parametrize("ending", ["/../../x.nii.gz", "/x", "..", "\\x"])
def test_file_ending(predictions, ending):
    """It becomes a part of every path that is written."""
    change_json(predictions / "dataset.json", file_ending=ending)
    refused(lambda: find_predictions(predictions, None), f"expected file_ending {PLAIN}", "dataset.json")


@pytest.mark.parametrize("key", ["dataset_name", "plans_name"])
def test_names_in_plans(predictions, key):
    """They are folders of nnU-Net."""
    plans = {"dataset_name": "d", "plans_name": "p", "image_reader_writer": "SimpleITKIO", "configurations": {}}
    (predictions / "plans.json").write_text(json.dumps(plans | {key: "../x"}))
    refused(lambda: find_predictions(predictions, None), f"expected {key} {PLAIN}", "plans.json")


def test_probabilities_bomb(tmp_path):
    """60 MB of zeros in 60 kB, of a case of 20 voxels: its grid is compared before anything is unpacked."""
    np.savez_compressed(tmp_path / "a.npz", probabilities=np.zeros((3, 40, 500, 500), np.float16))
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    labels = np.zeros((1, 4, 5), np.uint8)
    tracemalloc.start()
    try:
        refused(
            lambda: CaseStatistics.from_probabilities(SavedProbabilities(tmp_path / "a.npz", regions=False), labels),
            "expected probabilities (C, *spatial) on the grid of the labels, (1, 4, 5), got (3, 40, 500, 500)",
        )
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


def test_properties(tmp_path):
    """The spacing that nnU-Net's readers store, as lists or NumPy's; a pickle that names a function is not run."""
    file = tmp_path / "a.pkl"
    for spacing in ([1, 2.5, 3], (1.0, 2.5, 3.0), np.array([1, 2.5, 3]), [np.float32(1), np.float64(2.5), np.int64(3)]):
        for protocol in range(3, 6):
            file.write_bytes(pickle.dumps({"spacing": spacing, "box": np.zeros((3, 2), np.int16)}, protocol))
            assert image_spacing(tmp_path / "a.npz") == [1, 2.5, 3]
    file.write_bytes(pickle.dumps({"spacing": Touch(tmp_path / "made")}))
    told = "it holds posix.mknod, whose code would run"
    refused(lambda: image_spacing(tmp_path / "a.npz"), f"properties of the image, found {file} unreadable (", told)
    assert not (tmp_path / "made").exists()
    for spacing in ([], [1, 0, 1], [1, float("nan")], "abc", None):
        file.write_bytes(pickle.dumps({"spacing": spacing}))
        refused(lambda: image_spacing(tmp_path / "a.npz"), f"{file} unreadable (")


def spacing_of(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    return image_spacing(tmp_path / "a.npz")


def test_numpy_is_not_rebuilt(tmp_path):
    """A file that asks for NumPy's own float64, and for another order of its bytes, changes nothing in the process."""
    spacing = np.array([1, 2.5, 3])
    asked = pickle.dumps({"type": np.dtype("f8"), "spacing": spacing}, 3)
    damaged = asked.replace(b"\x89\x88\x87", b"\x89\x89\x87", 1)  # dtype("f8", align=False, copy=True): no copy
    assert damaged != asked
    damaged = damaged.replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>", 1)
    assert spacing_of(tmp_path, damaged) == spacing.view(">f8").tolist()
    assert (spacing.dtype.byteorder, spacing.tolist()) == ("=", [1, 2.5, 3])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x80\x04}r\x00\xca\x9a;.", "it numbers object 1000000000 in 9 bytes"),
        (b"\x80\x04\x8e\x00\x00\x00\x00\x00\x10\x00\x00.", "expected 17592186044416 bytes"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x00\x10\x00\x00.", "expected 17592186044416 bytes"),
    ],
)
def test_memory_of_a_damaged_pickle(tmp_path, content, told):
    """A file cannot ask for more memory than it has bytes: neither as a count of objects nor as a length."""
    tracemalloc.start()
    try:
        refused(lambda: spacing_of(tmp_path, content), told)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_numbers_of_a_damaged_pickle(tmp_path):
    """Neither objects nor text are numbers, nor is half a number."""
    for array in (np.array(["a"]), np.array([None]), np.array([1 + 1j]), np.ones(2, "M8[s]"), np.ones(2, "f4,i2")):
        for protocol in (4, 5):
            content = pickle.dumps({"spacing": array}, protocol)
            refused(partial(spacing_of, tmp_path, content), "unreadable (")
    half = pickle.dumps({"spacing": np.array([1.0, 2.0])}, 3).replace(b"C\x10", b"C\x0c", 1)
    half = half.replace(bytes(6) + b"\xf0\x3f" + bytes(7) + b"@", bytes(6) + b"\xf0\x3f" + bytes(3) + b"@", 1)
    refused(lambda: spacing_of(tmp_path, half), "unreadable (", "buffer size")
    for dtype in (">f8", "<f4", "i2", "u1"):
        assert spacing_of(tmp_path, pickle.dumps({"spacing": np.array([1, 2, 3], dtype)})) == [1, 2, 3]
