"""`nnunet_calib crossval`."""

import argparse
import contextlib
import sys

from nnunet_calib.commands.arguments import CALIBRATORS, CALIBRATORS_IN_WORDS, Commands, add_folds, add_model


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from nnunet_calib.decisions.expected_of_folds import write_expected
        from nnunet_calib.decisions.expected_table import expected_table
        from nnunet_calib.figures.fold_figures import draw_fold
        from nnunet_calib.io.json_forms import read_json
        from nnunet_calib.nnunet.lookup import find_model
        from nnunet_calib.nnunet.raw_images import raw_images
        from nnunet_calib.report.tables import calibrators_table, crossval_table
        from nnunet_calib.results.compared_models import dice_of_structures
        from nnunet_calib.results.crossval import merge_folds
        from nnunet_calib.results.heads import Heads
        from nnunet_calib.results.layout import CALIBRATORS as FILE
        from nnunet_calib.results.layout import EXPECTED_FILE

        model_folder = find_model(args.dataset, args.configuration, args.trainer, args.plans)
        folder = merge_folds(model_folder, args.folds, allow_missing=args.allow_missing, calibrators=args.calibrators)
        dice: dict[str, dict[str, float]] = {}
        try:
            dice = dice_of_structures(model_folder, args.folds)
        except ValueError as error:  # nnU-Net's own summary.json is damaged; nothing else depends on it
            print(f"no Dice to compare with: {error}", file=sys.stderr)
        write_expected(folder, dice)
        if args.figures:
            draw_fold(folder, raw_images(model_folder.path))
    summary = read_json(folder / "summary.json")
    names = Heads.of_summary(summary["heads"]).names_by_key
    print(crossval_table(summary))
    print(f"\n{expected_table(read_json(folder / EXPECTED_FILE), names)}")
    if args.calibrators:
        print(f"\n{calibrators_table(read_json(folder / FILE))}")
    print(folder)


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "crossval",
        help="merge the folds of a cross-validation: pooled temperature, intervals, errors per case",
        description="Fits one temperature to all cases for deployment, and judges each case by a temperature of the "
        "other folds. Prints a table and writes crossval_results_folds_.../calibration/ into the model's folder.",
        epilog="Example: nnunet_calib crossval -d 4 -c 3d_fullres -tr nnUNetTrainerNACL",
    )
    add_model(command)
    add_folds(command, "at least two folds")
    command.add_argument(
        "--calibrators",
        nargs="+",
        choices=CALIBRATORS,
        default=[],
        metavar="KIND",
        help=f"compare calibrators out of fold, and write calibrators.json: {CALIBRATORS_IN_WORDS}",
    )
    command.add_argument(
        "--chill",
        dest="allow_missing",
        action="store_true",
        help="merge the cases that were measured and name the others, instead of refusing",
    )
    command.add_argument("--no-figures", dest="figures", action="store_false", help="draw no pictures")
    command.set_defaults(run=_run)
