"""`nnunet_calib evaluate`."""

import argparse
import contextlib
import sys

from nnunet_calib.commands.arguments import (
    CALIBRATORS,
    Commands,
    add_boundary,
    add_calibrator,
    add_predictions,
    predictions,
)


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints on import and while it reads
        from nnunet_calib.decisions.froc import lesion_table
        from nnunet_calib.figures.fold_figures import draw_fold
        from nnunet_calib.nnunet.validation.evaluate import evaluate
        from nnunet_calib.report.tables import summary_table
        from nnunet_calib.results.deployed_temperature import given_temperature

        given = None if args.temperature is None else given_temperature(args.temperature, args.calibrator)
        folder = args.output or args.predictions / "calibration"
        kind, found = args.calibrator or CALIBRATORS[0], predictions(args)
        summary = evaluate(found, folder, args.processes, given, kind, lesions=args.lesions)
        if args.figures:
            draw_fold(folder)
    print(summary_table(summary))
    if args.lesions:
        print(f"\n{lesion_table(summary['lesions'], found.heads.names_by_key)}\n")
    print(folder / "summary.json")


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "evaluate",
        help="measure the calibration of predictions with .npz against label maps",
        description="Measures calibration before and after temperature scaling. Prints a table for the whole image and "
        "writes PRED/calibration/ with the files of a fold: summary.json, cases/*.npz, figures and, unless one is "
        "given, temperature.json. Nothing is written before the last case is measured.",
        epilog="Example: nnunet_calib evaluate -i predictions -gt nnUNet_raw/Dataset004_Hippocampus/labelsTs",
    )
    add_predictions(command, raters=True)
    add_boundary(command)
    command.add_argument(
        "--temperature",
        metavar="T",
        help="a number, or a temperature.json or calibrators.json fitted on other cases, to judge these cases by "
        "(default: fit one here, and judge each case by one that was fitted without it)",
    )
    add_calibrator(command, "judges the cases, fitted here or, with --temperature, from a calibrators.json", None)
    command.add_argument(
        "--lesions",
        action="store_true",
        help="also judge the lesions, the connected components of each structure: which are found, and how many are "
        "false, by their confidence (FROC); takes another pass over the cases",
    )
    command.add_argument("--no-figures", dest="figures", action="store_false", help="draw no pictures")
    command.set_defaults(run=_run)
