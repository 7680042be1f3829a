"""`nnunet_calib fit`."""

import argparse
import contextlib
import sys

from nnunet_calib.commands.arguments import Commands, add_boundary, add_predictions, predictions


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from nnunet_calib.nnunet.validation.evaluate import fit
        from nnunet_calib.posthoc import from_json

        folder = args.output or args.predictions / "calibration"
        fitted = fit(predictions(args), folder, args.processes)
    print(
        f"{from_json(fitted).words()}, standard error {fitted['standard_error']:.4f}, from "
        f"{len(fitted['cases'])} cases; NLL {fitted['nll_before']:.4f} -> {fitted['nll_after']:.4f}"
    )
    if fitted["at_bound"]:
        print("T lies on the bound of the search: do not use it, look at the predictions", file=sys.stderr)
    print(folder / "temperature.json")


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "fit",
        help="fit a temperature to predictions with .npz of a labelled hold-out set",
        description="Finds the temperature T for which softmax(logits / T), for regions sigmoid(logits / T), has the "
        "smallest mean NLL over the voxels of all cases. Prints it and writes PRED/calibration/temperature.json.",
        epilog="Example: nnunet_calib fit -i predictions -gt nnUNet_raw/Dataset004_Hippocampus/labelsTs",
    )
    add_predictions(command, raters=True)
    add_boundary(command, "; taken as by evaluate, no temperature depends on it")
    command.set_defaults(run=_run)
