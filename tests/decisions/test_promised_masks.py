"""The masks of a thresholds.json, and what is refused as one."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from nnunet_calib.decisions.promised_masks import PromisedMask, read_promises
from nnunet_calib.decisions.risk_control import THRESHOLDS
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.results.heads import Heads
from tests.worlds.command_line import sentence
from tests.worlds.promises import promised

HEADS = Heads(("0", "1", "2"), ("background", "organ", "tumour"), None, None)
GOOD = promised(asdict(HEADS), {"1": (0.4, 0.1), "2": (0.3, None)})


def test_masks_are_those_of_the_fine_histograms():
    """Probabilities beside every edge lie on the side of it on which the histograms counted them."""
    edges = THRESHOLDS[1:].astype(np.float32)
    p = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(1))])
    both = np.stack([1 - p, p])
    counts = Histograms.of(both, np.ones(p.size, int), np.zeros(p.size, np.uint8)).scope("image").counts[1]
    for position in range(0, len(THRESHOLDS), 7):
        mask = PromisedMask("recall_0.9", 1, float(THRESHOLDS[position])).of(both)
        assert mask.sum() == counts[position:].sum()


def test_content(tmp_path):
    """A mask for each threshold, the structures without one by name, and the promise in the words of the file."""
    file = tmp_path / "thresholds.json"
    file.write_text(json.dumps(GOOD))
    found = read_promises(file, HEADS)
    assert [(m.level, m.head, m.threshold) for m in found.masks] == [
        ("recall_0.8", 1, 0.4),
        ("recall_0.8", 2, 0.3),
        ("recall_0.95", 1, 0.1),
    ]
    assert found.without_threshold == ("recall 0.95 of tumour",)
    assert found.about["promise"] == "A promise."
    assert {*found.about["definitions"]} == {"mask", "recall"}
    assert found.about["levels"][1]["structures"]["1"] == {"threshold": 0.1, "cases": 40}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "expected a thresholds.json, found none at"),
        ("{", "expected JSON, found"),
        (GOOD | {"levels": [{"of": "../recall", "level": 0.8, "structures": {}}]}, "a plain name without folders"),
        (GOOD | {"levels": []}, "expected a threshold to make masks with, found none in"),
        (GOOD | {"heads": asdict(HEADS) | {"names": ["background", "organ", "cyst"]}}, "background, organ, cyst"),
        (promised(asdict(HEADS), {"7": (0.4, 0.1)}), "expected structures 0, 1, 2, found '7'"),
    ],
    ids=["missing", "damaged", "folder", "empty", "heads", "structure"],
)
def test_refusals(tmp_path, content, text):
    """In one sentence that names the file."""
    file = tmp_path / "thresholds.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match="thresholds") as error:
        read_promises(file, HEADS)
    assert text in sentence(f"nnunet_calib: {error.value}")
