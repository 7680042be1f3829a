"""The table of predicted cases: made of the files of the cases, whatever other parts have written."""

import csv
import math

import numpy as np
import pytest

from nnunet_calib.decisions.conformal import LogInterval
from nnunet_calib.io import atomic_files
from nnunet_calib.nnunet.deployment import case_table
from nnunet_calib.nnunet.deployment.case_table import COLUMNS, LESION_COLUMNS, CaseTable
from nnunet_calib.results.heads import Heads

HEADS = Heads(("0", "1", "2"), ("background", "organ", "tumour, big"), None, None)


class Reader:
    """Reads the same segmentation whatever the file."""

    def __init__(self, labels, spacing, **geometry):
        self.labels, self.properties = labels, {"spacing": spacing, **geometry}

    def read_seg(self, file):
        """As nnU-Net's readers return it."""
        return self.labels[None].astype(np.float32), self.properties


def write(table: CaseTable, case: str, p: np.ndarray, crop=None) -> None:
    sums, geometry = table.start(table.folder / f"{case}.nii.gz", crop)
    for z in range(p.shape[1]):
        sums.add(slice(z, z + 1), p[:, z : z + 1])
    table.write(case, sums, geometry)


@pytest.fixture
def world(tmp_path):
    """A table with an interval for one structure, and probabilities of the crop."""
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 5, 6), int)
    labels[1:3, 1:4, 1:5] = rng.integers(0, 2, (2, 3, 4))  # no tumour
    p = rng.dirichlet((3, 1, 1), (2, 3, 4)).transpose(3, 0, 1, 2).astype(np.float32)
    limits = {"1": LogInterval(math.log(0.8), math.log(1.5))}
    return CaseTable(tmp_path, HEADS, Reader(labels, (2.0, 1.0, 0.5)), limits, "expected.json"), p, labels


def rows(table: CaseTable, name: str = "cases.csv") -> list[dict[str, str]]:
    with table.assemble().with_name(name).open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_rows(world):
    """Inside the crop, in ml by the spacing; what is not known is empty."""
    table, p, labels = world
    crop = (slice(1, 3), slice(1, 4), slice(1, 5))
    write(table, "b", p, crop)
    write(table, "a", p, crop)
    found = rows(table)
    assert [(row["case"], row["name"]) for row in found] == [
        (case, name) for case in "ab" for name in ("organ", "tumour, big")
    ]
    organ, tumour = found[:2]
    assert [*organ] == [*COLUMNS]
    assert float(organ["segmented_ml"]) == pytest.approx((labels == 1).sum() / 1000)
    expected = p[1].sum() / 1000
    assert [float(organ[name]) for name in ("expected_ml", "low_ml", "high_ml")] == pytest.approx(
        [expected, 0.8 * expected, 1.5 * expected], rel=1e-5
    )
    assert (tumour["segmented_voxels"], tumour["mean_entropy"], tumour["low_ml"]) == ("0", "", "")
    assert tumour["expected_dice"] == "0"


GEOMETRY = {"spacing": (0.5, 1.0, 2.0), "origin": (10.0, 20.0, 30.0), "direction": (0, 1, 0, -1, 0, 0, 0, 0, 1)}
AFFINE = np.array([[0, -1, 0, -10], [1, 0, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]], float)  # the same in NIfTI's axes
AFFINE[:, 0] *= 0.5


@pytest.mark.parametrize(
    "geometry", [{"sitk_stuff": GEOMETRY}, {"nibabel_stuff": {"original_affine": AFFINE}}], ids=["itk", "nibabel"]
)
def test_lesions(tmp_path, geometry):
    """By falling mean p within a structure, in the image's coordinates whichever library has read it."""
    labels = np.zeros((4, 5, 6), int)
    labels[1, 1, 1:3], labels[3, 4, 5], labels[2, 3, 1] = 1, 1, 2
    p = np.full((3, 3, 5, 5), 0.1, np.float32)  # of the crop
    p[1, 0, 1, 0:2], p[1, 2, 4, 4], p[2, 1, 3, 0] = (0.5, 0.7), 0.9, 0.4
    table = CaseTable(tmp_path, HEADS, Reader(labels, (2.0, 1.0, 0.5), **geometry), {}, None, lesions=True)
    write(table, "a", p, (slice(1, 4), slice(0, 5), slice(1, 6)))
    sure, unsure, tumour = rows(table, "lesions.csv")
    assert [*sure] == [*LESION_COLUMNS]
    assert [(row["structure"], row["lesion"], row["voxels"]) for row in (sure, unsure, tumour)] == [
        ("1", "1", "1"),
        ("1", "2", "2"),
        ("2", "1", "1"),
    ]
    found = [float(unsure[name]) for name in [*LESION_COLUMNS][5:10]]
    assert found == pytest.approx([1.2, 0.002, 0.0012, 0.6, 0.7], rel=1e-5)
    # voxel (z, y, x) = (1, 1, 1.5) lies at direction @ (.75, 1, 2) from the origin
    assert [float(unsure[name]) for name in ("x_mm", "y_mm", "z_mm")] == pytest.approx([11, 19.25, 32])
    assert len(rows(table)) == 2  # cases.csv


def test_lesions_of_pictures(world, tmp_path):
    """A picture has no coordinates, and no volume; without lesions there are no rows."""
    _, p, labels = world
    table = CaseTable(tmp_path / "2d", HEADS, Reader(labels[1:2], (999.0, 1.0, 1.0)), {}, None, lesions=True)
    write(table, "a", p[:, :1], (slice(0, 1), slice(1, 4), slice(1, 5)))
    found = rows(table, "lesions.csv")
    assert found
    assert {row[name] for row in found for name in ("ml", "expected_ml", "x_mm", "y_mm", "z_mm")} == {""}
    table.reader.labels = np.zeros_like(labels[1:2])
    write(table, "a", p[:, :1], (slice(0, 1), slice(1, 4), slice(1, 5)))
    assert rows(table, "lesions.csv") == []


def test_flat(world):
    """An image of two dimensions has no volume."""
    table, p, labels = world
    flat = CaseTable(table.folder, HEADS, Reader(labels[1:2], (999.0, 1.0, 1.0)), table.limits, None)
    write(flat, "a", p[:, :1], (slice(0, 1), slice(1, 4), slice(1, 5)))
    row = rows(flat)[0]
    assert {row[name] for name in ("segmented_ml", "expected_ml", "low_ml", "high_ml")} == {""}
    assert float(row["expected_voxels"]) > 0


def test_parts(world, monkeypatch):
    """Another part that finishes while the table is written is in it."""
    table, p, _ = world
    crop = (slice(1, 3), slice(1, 4), slice(1, 5))
    write(table, "a", p, crop)
    made = []

    def slowly(target):
        if not made:
            made.append(target)
            write(table, "late", p, crop)
        return atomic_files.replaced_when_complete(target)

    monkeypatch.setattr(case_table, "replaced_when_complete", slowly)
    assert {row["case"] for row in rows(table)} == {"a", "late"}


def test_damaged(world):
    """A case's file of another form is refused by its name."""
    table, p, _ = world
    write(table, "a", p, (slice(1, 3), slice(1, 4), slice(1, 5)))
    table.file("a").write_text('{"rows": [{"case": "../a"}]}')
    with pytest.raises(ValueError, match=r"a plain name without folders.*a\.json: predict the case again"):
        table.assemble()
