"""Folders of predictions that are made here, in every label mode and in several file formats."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile
from scipy.special import expit, logit, softmax
from skimage import io

from nnunet_calib import CaseStatistics, cli
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.measuring.voxel_sample import VoxelSample
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.nnunet_world import LABEL_MODES

SPACING = (3.0, 0.8, 0.8)
READERS = {".png": "NaturalImage2DIO", ".tif": "Tiff3DIO"}
TEMPERATURE = 1.6
REGIONS = ((1, 2), (2,))


@dataclass(frozen=True)
class Made:
    """A case as it is written."""

    probabilities: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, ...]
    regions: tuple[tuple[int, ...], ...] | None
    ignore_label: int | None

    def measure(self) -> CaseStatistics:
        """Measured without files."""
        return CaseStatistics.from_probabilities(
            self.probabilities, self.labels, regions=self.regions, ignore_label=self.ignore_label, spacing=self.spacing
        )


def make_case(mode: str, seed: int, ending: str, size: int = 14) -> Made:
    """Labels drawn from known probabilities, which are then made over-confident by TEMPERATURE."""
    shape = (size, size + 1) if ending == ".png" else (size - 2, size, size + 1)
    case = synthetic_case(seed, shape)
    labels, p = case.labels.copy(), case.probabilities.astype(np.float64)
    if mode.startswith("regions"):
        p = expit(logit(np.clip(np.stack([p[1] + p[2], p[2]]), 1e-9, 1 - 1e-7)) * TEMPERATURE)
    else:
        p = softmax(np.log(p) * TEMPERATURE, axis=0)
    if mode.endswith("ignore"):
        labels[:3] = 3
    if ending == ".png":  # nnU-Net's arrays have three axes
        labels, p = labels[None], p[:, None]
    spacing = (999, 1, 1) if ending == ".png" else SPACING
    return Made(
        p.astype(np.float32),
        labels,
        spacing,
        REGIONS if mode.startswith("regions") else None,
        3 if mode.endswith("ignore") else None,
    )


def write_labels(path: Path, case: Made) -> None:
    """A label map in the format that the name says."""
    if path.suffix == ".png":
        io.imsave(path, case.labels[0], check_contrast=False)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, case.labels)
        path.with_suffix(".json").write_text(json.dumps({"spacing": case.spacing}))
    else:
        volume = sitk.GetImageFromArray(case.labels)
        volume.SetSpacing(case.spacing[::-1])
        sitk.WriteImage(volume, path)


def write_world(folder: Path, mode="labels", ending=".nii.gz", seeds=range(3), size=14) -> dict[str, Made]:
    """folder/pred, as nnUNetv2_predict leaves it, and folder/labels."""
    cases = {f"case.{seed}": make_case(mode, seed, ending, size) for seed in seeds}
    for name in ("pred", "labels"):
        (folder / name).mkdir(parents=True)
    for name, case in cases.items():
        np.savez_compressed(folder / "pred" / f"{name}.npz", probabilities=case.probabilities)
        write_labels(folder / "labels" / f"{name}{ending}", case)
        write_labels(folder / "pred" / f"{name}{ending}", case)
    labels, order = LABEL_MODES[mode]
    dataset = {"channel_names": {"0": "synthetic"}, "labels": labels, "file_ending": ending, "name": "made here"}
    dataset |= {} if order is None else {"regions_class_order": order}
    plans = {
        "dataset_name": "Dataset900_made",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": READERS.get(ending, "SimpleITKIO"),
        "label_manager": "LabelManager",
    }
    (folder / "pred" / "dataset.json").write_text(json.dumps(dataset))
    (folder / "pred" / "plans.json").write_text(json.dumps(plans))
    (folder / "pred" / "predict_from_raw_data_args.json").write_text("{}")
    return cases


def arguments(folder: Path, command="evaluate", *more: str) -> list[str]:
    """What is typed for the folders of `write_world`."""
    return [command, "-i", str(folder / "pred"), "-gt", str(folder / "labels"), "-np", "1", *more]


def run(folder: Path, command="evaluate", *more: str) -> dict:
    """Run a command that must succeed; the file that it writes."""
    more = (*more, "--no-figures") if command == "evaluate" else more
    assert cli.main(arguments(folder, command, *more)) == 0
    name = "summary.json" if command == "evaluate" else "temperature.json"
    return json.loads((folder / "pred" / "calibration" / name).read_text())


def assert_same(ours: CaseStatistics, expected: CaseStatistics, rtol: float = 0) -> None:
    """Counts and the sample exactly, sums to a relative difference."""
    for f in fields(Histograms):
        a, b = (getattr(s.histograms, f.name) for s in (ours, expected))
        np.testing.assert_allclose(a, b, rtol=rtol if a.dtype.kind == "f" else 0, err_msg=f.name)
    for f in fields(VoxelSample):
        np.testing.assert_array_equal(getattr(ours.sample, f.name), getattr(expected.sample, f.name), err_msg=f.name)
