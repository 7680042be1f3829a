"""Lesions of predictions against those of their label maps, from nnU-Net's .npz."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_calib.decisions.froc import lesions_of_case
from nnunet_calib.decisions.lesions import Lesions, LesionSums
from nnunet_calib.measuring.volume import slab_slices
from nnunet_calib.nnunet.measured_case import read_labels
from nnunet_calib.nnunet.predictions import Predictions, for_each_case
from nnunet_calib.nnunet.saved_probabilities import CalibratedProbabilities, SavedProbabilities
from nnunet_calib.posthoc import IDENTITY
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.results.schemas import STAGES


def found_lesions(
    predictions: Predictions, calibrators: Mapping[str, Calibrator], processes: int | None = None
) -> list[dict[str, Any]]:
    """Return the predicted and the true lesions of each case, with a progress bar.

    Args:
        predictions: predictions that have been measured, so that their files belong together.
        calibrators: case -> calibrator that was fitted without it; other cases are left out.
        processes: number of cases taken at once; None means nnU-Net's default.
    """
    cases = [*calibrators]
    found = for_each_case(_Find(predictions, calibrators), cases, processes, "finding lesions")
    return [{"case": case, "structures": structures} for case, structures in zip(cases, found, strict=True)]


@dataclass(frozen=True)
class _Find:
    """Picklable function that returns the lesions of one case."""

    predictions: Predictions
    calibrators: Mapping[str, Calibrator]

    def __call__(self, case: str) -> dict[str, Any]:
        of, heads = self.predictions, self.predictions.heads
        regions = heads.regions is not None
        saved = SavedProbabilities(of.folder / f"{case}.npz", regions=regions)
        labels, _ = read_labels(of.labels_folder / f"{case}{of.file_ending}", of.reader)
        valid = labels != (-1 if heads.ignore_label is None else heads.ignore_label)
        slabs = [*slab_slices(saved.shape[1:], saved.shape[0])]
        if regions:
            masks = np.concatenate([saved[:, slab] > 0.5 for slab in slabs], axis=1) & valid
            predicted = Lesions.of_masks([*masks])
        else:
            classes = np.concatenate([saved[:, slab].argmax(0).astype(np.uint16) for slab in slabs])
            predicted = Lesions.of_labels(classes * valid, heads)
        sums: dict[str, LesionSums] = {}
        for stage, calibrator in zip(STAGES, (IDENTITY, self.calibrators[case]), strict=True):
            sums[stage] = LesionSums(predicted)
            p = CalibratedProbabilities(saved, calibrator, regions=regions)
            for slab in slabs:
                sums[stage].add(slab, p[:, slab])
        return lesions_of_case(predicted, sums, Lesions.of_labels(labels * valid, heads), heads.keys)
