"""The work of nnU-Net's export worker at validation: the export itself, then the measuring of the case."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_calib.io.atomic_files import forget, replaced_when_complete
from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.scopes import BOUNDARY_MM
from nnunet_calib.nnunet.export_tap import LazyProbabilities, TappedConfiguration, on_image_axes
from nnunet_calib.nnunet.measured_case import measure_case
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import case_file, failure_file
from nnunet_calib.threads import one_thread


@dataclass(frozen=True)
class ExportAndMeasure:
    """Picklable stand-in for nnU-Net's `export_prediction_from_logits`.

    Attributes:
        export: the function it stands in for.
        calibration_folder: folder that holds the folder of case files.
        labels_folder: folder of the ground truth, one file per case.
        heads: heads of the network.
        model: identity of the network.
        boundary_mm: half width of the boundary scope.
    """

    export: Callable[..., None]
    calibration_folder: Path
    labels_folder: Path
    heads: Heads
    model: dict[str, Any]
    boundary_mm: float = BOUNDARY_MM

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Export as nnU-Net does, then measure; only the export can raise."""
        call = inspect.signature(self.export).bind(*args, **kwargs)
        tapped = TappedConfiguration(call.arguments["configuration_manager"])
        call.arguments["configuration_manager"] = tapped
        self.export(*call.args, **call.kwargs)
        case = Path(call.arguments["output_file_truncated"]).name
        target = case_file(self.calibration_folder, case)
        try:
            # if measuring fails, no old file may be mistaken for this case's
            forget(target)
            self.measure(case, tapped.logits, call.arguments).save(target)
        except Exception:
            try:
                with replaced_when_complete(failure_file(target)) as temporary:
                    # a file name may be no valid text in this system's encoding
                    temporary.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
            except OSError:  # the folder itself is not writable: the missing case file shows the failure
                traceback.print_exc()

    @one_thread()
    def measure(self, case: str, logits: Any, arguments: dict[str, Any]) -> CaseStatistics:
        """Return the statistics of one case, from its logits on the grid of the cropped image."""
        plans, dataset = arguments["plans_manager"], arguments["dataset_json_dict_or_file"]
        logits, _, crop = on_image_axes(logits, arguments)
        return measure_case(
            LazyProbabilities(logits, plans.get_label_manager(dataset).apply_inference_nonlin),
            self.labels_folder / f"{case}{dataset['file_ending']}",
            plans.image_reader_writer_class(),
            self.heads,
            spacing=arguments["properties_dict"]["spacing"],
            boundary_mm=self.boundary_mm,
            crop=crop,
            case=case,
            model=self.model,
        )
