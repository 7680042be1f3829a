"""`nnunet_calib compare`."""

import argparse
import contextlib
import itertools
import sys
from pathlib import Path

from nnunet_calib.commands.arguments import CALIBRATORS, Commands, add_calibrator, add_folds, add_model


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from nnunet_calib.figures.dice_against_ace import draw_comparison
        from nnunet_calib.figures.logit_distributions import draw_logit_distributions
        from nnunet_calib.nnunet.lookup import find_model
        from nnunet_calib.report.comparison_page import write_comparison_page
        from nnunet_calib.report.comparison_tables import comparison_table, write_comparison
        from nnunet_calib.results.comparison import compare_models
        from nnunet_calib.results.layout import PAGE, comparison_folder

        named = itertools.product(args.configuration, args.plans, args.trainer)
        models = [find_model(args.dataset, configuration, trainer, plans) for configuration, plans, trainer in named]
        comparison = compare_models(models, args.folds, allow_missing=args.allow_missing, kind=args.calibrator)
        folder = args.output or comparison_folder(models, comparison["folds"])
        write_comparison(comparison, folder)
        draw_comparison(comparison, folder)
        draw_logit_distributions(comparison, folder)
        given = {"-c": args.configuration, "-tr": args.trainer, "-p": args.plans, "-f": args.folds}
        command = " ".join(f"{flag} {' '.join(map(str, values))}" for flag, values in given.items())
        chill = " --chill" if args.allow_missing else ""
        kind = "" if args.calibrator == CALIBRATORS[0] else f" --calibrator {args.calibrator}"
        command = f"nnunet_calib compare -d {args.dataset} {command}{chill}{kind}"
        write_comparison_page(comparison, folder / PAGE, commands=[command])
    print(comparison_table(comparison))
    print(folder)


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "compare",
        help="compare models of a dataset case by case: Dice and calibration, intervals, corrected p-values",
        description="Compares trainers, configurations or plans (every combination of those named) with the first one, "
        "paired over their validation cases, before and after a temperature of the other folds. Prints a table and "
        "writes comparison.json, .csv, .md and report.html, and figures of Dice against ACE and of the logits.",
        epilog="Example: nnunet_calib compare -d 4 -c 3d_fullres -tr nnUNetTrainerCalib nnUNetTrainerNACL",
    )
    add_model(command, several=True)
    add_folds(command, "one fold or more")
    add_calibrator(command, "fitted to the other folds of each model, and judges its cases")
    command.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="DIR",
        help="folder for the results (default: one named after the models in nnUNet_results/DATASET/"
        "calibration_comparisons)",
    )
    command.add_argument(
        "--chill",
        dest="allow_missing",
        action="store_true",
        help="compare the cases that all models have and name the others, instead of refusing",
    )
    command.set_defaults(run=_run)
