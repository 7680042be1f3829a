"""nnU-Net's predictor with two changes: it can hand over the logits of each fold, and it knows which maps are there.

It hands the logits of each case to a pool of workers as a call of `export_prediction_from_logits`. While it runs,
`ExportWithMaps` stands in for that function, so that nnU-Net's own files are written by nnU-Net, and the maps by the
same worker afterwards, without an .npz.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_calib.nnunet.deployment.maps_of_logits import ExportWithMaps
from nnunet_calib.nnunet.validation.hook import EXPORT_NAME


class MapPredictor(nnUNetPredictor):
    """nnU-Net's predictor; `export` must be set before it predicts."""

    export: ExportWithMaps
    list_of_parameters: Any

    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """nnU-Net's; (folds * C, *spatial) instead of the mean if the logits of each fold are wanted."""
        if not self.export.wants_folds:
            return super().predict_logits_from_preprocessed_data(data)
        networks = self.list_of_parameters
        try:
            logits = []
            for weights in networks:
                self.list_of_parameters = [weights]
                logits.append(super().predict_logits_from_preprocessed_data(data))
        finally:
            self.list_of_parameters = networks
        return torch.cat(logits)

    def _manage_input_and_output_lists(
        self, inputs: Any, output: Any, previous: Any = None, overwrite: bool = True, part_id: int = 0,
        num_parts: int = 1, save_probabilities: bool = False,
    ) -> tuple[list, list, list]:  # fmt: skip
        """nnU-Net's, but a case is finished only if its maps are there, which are written last."""
        every = super()._manage_input_and_output_lists(inputs, output, previous, True, part_id, num_parts)
        maps = self.export.maps
        endings = [maps.file_ending, *([".npz"] if save_probabilities else [])]
        pending = []
        for case in zip(*every, strict=True):
            name = Path(case[1]).name
            if overwrite or not (maps.complete(name) and all(Path(case[1] + e).is_file() for e in endings)):
                maps.forget(name)  # what is there afterwards is of this prediction
                pending.append(case)
        if not overwrite:
            print(f"{len(pending)} of {len(every[0])} cases are not finished")
        inputs, outputs, previous = ([case[i] for case in pending] for i in range(3))
        return inputs, outputs, previous


@contextmanager
def exporting_through(export: ExportWithMaps) -> Iterator[None]:
    """While this lasts, nnU-Net's predictors export through it: they look the function up at each call."""
    space = vars(predict_from_raw_data)
    space[EXPORT_NAME] = export
    try:
        yield
    finally:
        space[EXPORT_NAME] = export.export
