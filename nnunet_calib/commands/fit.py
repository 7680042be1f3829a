"""`nnunet_calib fit`."""

import argparse
import contextlib
import sys

from nnunet_calib.commands.arguments import Commands, add_boundary, add_calibrator, add_predictions, predictions


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from nnunet_calib.nnunet.validation.evaluate import fit
        from nnunet_calib.report.tables import fit_table

        folder = args.output or args.predictions / "calibration"
        fitted = fit(predictions(args), folder, args.processes, args.calibrator)
    print(fit_table(fitted.content, fitted.calibrators))
    if fitted.temperature["at_bound"]:
        print("T lies on the bound of the search: do not use it, look at the predictions", file=sys.stderr)
    print(folder / "temperature.json")
    if fitted.calibrators is not None:
        print(folder / "calibrators.json")


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "fit",
        help="fit a temperature, or another calibrator, to predictions with .npz of a labelled hold-out set",
        description="Finds the temperature T for which softmax(logits / T), for regions sigmoid(logits / T), has the "
        "smallest mean NLL over the voxels of all cases. Prints it and writes PRED/calibration/temperature.json.",
        epilog="Example: nnunet_calib fit -i predictions -gt nnUNet_raw/Dataset004_Hippocampus/labelsTs",
    )
    add_predictions(command, raters=True)
    add_calibrator(command, "also fits this one, and writes it into calibrators.json")
    add_boundary(command, "; taken as by evaluate, no temperature depends on it")
    command.set_defaults(run=_run)
