"""The table of predicted cases: made of the files of the cases, whatever other parts have written."""

import csv
import math

import numpy as np
import pytest

from nnunet_calib.decisions.conformal import LogInterval
from nnunet_calib.io import atomic_files
from nnunet_calib.nnunet.deployment import case_table
from nnunet_calib.nnunet.deployment.case_table import COLUMNS, CaseTable
from nnunet_calib.results.heads import Heads

HEADS = Heads(("0", "1", "2"), ("background", "organ", "tumour, big"), None, None)


class Reader:
    """Reads the same segmentation whatever the file."""

    def __init__(self, labels, spacing):
        self.labels, self.spacing = labels, spacing

    def read_seg(self, file):
        """As nnU-Net's readers return it."""
        return self.labels[None].astype(np.float32), {"spacing": self.spacing}


def write(table: CaseTable, case: str, p: np.ndarray, crop=None) -> None:
    sums, ml = table.start(table.folder / f"{case}.nii.gz", crop)
    for z in range(p.shape[1]):
        sums.add(slice(z, z + 1), p[:, z : z + 1])
    table.write(case, sums.sums, ml)


@pytest.fixture
def world(tmp_path):
    """A table with an interval for one structure, and probabilities of the crop."""
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 5, 6), int)
    labels[1:3, 1:4, 1:5] = rng.integers(0, 2, (2, 3, 4))  # no tumour
    p = rng.dirichlet((3, 1, 1), (2, 3, 4)).transpose(3, 0, 1, 2).astype(np.float32)
    limits = {"1": LogInterval(math.log(0.8), math.log(1.5))}
    return CaseTable(tmp_path, HEADS, Reader(labels, (2.0, 1.0, 0.5)), limits, "expected.json"), p, labels


def rows(table: CaseTable) -> list[dict[str, str]]:
    with table.assemble().open(newline="", encoding="utf-8") as file:
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
