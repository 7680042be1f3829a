"""The command line: parses arguments, calls one function, prints."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_calib.integration.predictions import Predictions


# Each command imports what it needs: --help and errors come at once, and an import that fails is told in one sentence.
def _trainers(args: argparse.Namespace) -> None:
    from nnunet_calib.integration.lookup import trainers_folder

    if args.path:
        print(trainers_folder())
        return
    from nnunet_calib.trainers import TRAINERS

    width = max(len(trainer.__name__) for trainer in TRAINERS)
    for trainer in TRAINERS:
        print(f"{trainer.__name__:<{width}}  {(trainer.__doc__ or '').splitlines()[0]}")
    print(f'\nexport nnUNet_extTrainer="{trainers_folder()}"')


def _demo(args: argparse.Namespace) -> None:
    from nnunet_calib.demo import run_demo

    run_demo(args.output)


def _predictions(args: argparse.Namespace) -> Predictions:
    from nnunet_calib.integration.prediction_files import find_predictions

    found = find_predictions(
        args.predictions, args.labels, dataset_json=args.dataset_json, plans_json=args.plans_json,
        allow_missing=args.allow_missing,
    )  # fmt: skip
    if found.missing:
        print(f"left out, for want of a label map or an .npz: {', '.join(found.missing)}", file=sys.stderr)
    return found


def _evaluate(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints while it is imported, and while it reads
        from nnunet_calib.integration.evaluation import evaluate, given_temperature
        from nnunet_calib.report.figures import draw_fold
        from nnunet_calib.report.tables import summary_table

        temperature = None if args.temperature is None else given_temperature(args.temperature)
        folder = args.output or args.predictions / "calibration"
        summary = evaluate(_predictions(args), folder, args.processes, temperature)
        if args.figures:
            draw_fold(folder)
    print(summary_table(summary))
    print(folder / "summary.json")


def _fit(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from nnunet_calib.integration.evaluation import fit

        folder = args.output or args.predictions / "calibration"
        fitted = fit(_predictions(args), folder, args.processes)
    print(
        f"T = {fitted['temperature']:.4f}, standard error {fitted['standard_error']:.4f}, from "
        f"{len(fitted['cases'])} cases; NLL {fitted['nll_before']:.4f} -> {fitted['nll_after']:.4f}"
    )
    if fitted["at_bound"]:
        print("T lies on the bound of the search: do not use it, look at the predictions", file=sys.stderr)
    print(folder / "temperature.json")


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _add_predictions(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-i", dest="predictions", type=Path, required=True, metavar="PRED",
        help="folder of predictions with .npz: of nnUNetv2_predict --save_probabilities, nnUNetv2_ensemble --save_npz, "
        "or a fold's validation with --npz",
    )
    command.add_argument(
        "-gt", dest="labels", type=Path, required=True, metavar="LABELS", help="folder with their true label maps",
    )
    command.add_argument(
        "-djfile", dest="dataset_json", type=Path, metavar="FILE",
        help="dataset.json (default: that in PRED, or in one of the two folders above)",
    )
    command.add_argument(
        "-pfile", dest="plans_json", type=Path, metavar="FILE",
        help="plans.json (default: that beside dataset.json; without one, the file ending says how to read labels)",
    )
    command.add_argument(
        "-o", dest="output", type=Path, metavar="DIR", help="folder for the results (default: PRED/calibration)",
    )
    command.add_argument(
        "-np", dest="processes", type=_at_least_one, metavar="N",
        help="cases measured at once; each needs memory for its unpacked probabilities and for measuring, 4 GB for 14 "
        "classes of 512 x 512 x 200 voxels (default: nnU-Net's, nnUNet_def_n_proc or 8)",
    )
    command.add_argument(
        "--chill", dest="allow_missing", action="store_true",
        help="measure the cases that have a label map and an .npz and name the others, instead of refusing",
    )


def _crossval(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from nnunet_calib.integration.crossval import merge_folds
        from nnunet_calib.integration.fold_results import find_model, read_json
        from nnunet_calib.report.crossval_table import crossval_table
        from nnunet_calib.report.figures import draw_fold

        model_folder = find_model(args.dataset, args.configuration, args.trainer, args.plans)
        folder = merge_folds(model_folder, args.folds, allow_missing=args.allow_missing)
        draw_fold(folder)
    print(crossval_table(read_json(folder / "summary.json")))
    print(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_calib", description="Calibrated probabilities for nnU-Net v2.",
        epilog="nnunet_calib COMMAND --help explains a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    trainers = commands.add_parser(
        "trainers", help="list the trainers for nnUNetv2_train -tr",
        epilog='Example: export nnUNet_extTrainer="$(nnunet_calib trainers --path)"',
    )
    trainers.add_argument("--path", action="store_true", help="print only the folder for nnUNet_extTrainer")
    trainers.set_defaults(run=_trainers)

    demo = commands.add_parser(
        "demo", help="train, measure and compare on synthetic data whose true probabilities are known (CPU, minutes)",
        epilog="Example: nnunet_calib demo -o calibration_demo",
    )
    demo.add_argument(
        "-o", dest="output", type=Path, default=Path("nnunet_calib_demo"), metavar="DIR",
        help="new folder for everything the demo makes (default: %(default)s)",
    )
    demo.set_defaults(run=_demo)

    evaluate = commands.add_parser(
        "evaluate", help="measure the calibration of predictions with .npz against label maps",
        description="Measures calibration before and after temperature scaling. Prints a table for the whole image and "
        "writes PRED/calibration/ with the files of a fold: summary.json, cases/*.npz, two pictures and, unless one is "
        "given, temperature.json. Nothing is written before the last case is measured.",
        epilog="Example: nnunet_calib evaluate -i predictions -gt nnUNet_raw/Dataset004_Hippocampus/labelsTs",
    )
    _add_predictions(evaluate)
    evaluate.add_argument(
        "--temperature", metavar="T",
        help="a number, or a temperature.json fitted on other cases, to judge these cases by (default: fit one here, "
        "and judge each case by one that was fitted without it)",
    )
    evaluate.add_argument("--no-figures", dest="figures", action="store_false", help="draw no pictures")
    evaluate.set_defaults(run=_evaluate)

    fit = commands.add_parser(
        "fit", help="fit a temperature to predictions with .npz of a labelled hold-out set",
        description="Finds the temperature T for which softmax(logits / T), for regions sigmoid(logits / T), has the "
        "smallest mean NLL over the voxels of all cases. Prints it and writes PRED/calibration/temperature.json.",
        epilog="Example: nnunet_calib fit -i predictions -gt nnUNet_raw/Dataset004_Hippocampus/labelsTs",
    )
    _add_predictions(fit)
    fit.set_defaults(run=_fit)

    crossval = commands.add_parser(
        "crossval", help="merge the folds of a cross-validation: pooled temperature, intervals, errors per case",
        description="Fits one temperature to all cases for deployment, and judges each case by a temperature of the "
        "other folds. Prints a table and writes crossval_results_folds_.../calibration/ into the model's folder.",
        epilog="Example: nnunet_calib crossval -d 4 -c 3d_fullres -tr nnUNetTrainerNACL",
    )
    crossval.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="its name or number")
    crossval.add_argument("-c", dest="configuration", required=True, metavar="CONFIG", help="3d_fullres, 2d, ...")
    crossval.add_argument("-tr", dest="trainer", required=True, metavar="TRAINER", help="as for nnUNetv2_train")
    crossval.add_argument("-p", dest="plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    crossval.add_argument(
        "-f", dest="folds", nargs="+", default=[0, 1, 2, 3, 4], metavar="FOLD",
        help="at least two folds (default: 0 1 2 3 4)",
    )
    crossval.add_argument(
        "--chill", dest="allow_missing", action="store_true",
        help="merge the cases that were measured and name the others, instead of refusing",
    )
    crossval.set_defaults(run=_crossval)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0, or 2 after an error of the user's, which is told in one sentence on stderr.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ImportError, OSError, ValueError) as error:
        print(f"nnunet_calib: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
