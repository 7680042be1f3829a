"""`nnunet_calib report`."""

import argparse
import contextlib
import sys
from pathlib import Path

from nnunet_calib.commands.arguments import Commands, add_calibrator, add_folds, add_model


def _run(args: argparse.Namespace) -> None:
    named = [value is not None for value in (args.dataset, args.configuration, args.trainer)]
    if any(named) if args.predictions is not None else not all(named):
        raise ValueError(
            "expected a model (-d, -c and -tr), or predictions that evaluate has measured (-i): name one of the two"
        )
    with contextlib.redirect_stdout(sys.stderr):
        output = _of_model(args) if args.predictions is None else _of_predictions(args)
    print(output)


def _of_predictions(args: argparse.Namespace) -> Path:
    from nnunet_calib.figures.case_figures import no_image
    from nnunet_calib.report.fold_page import write_report
    from nnunet_calib.results.layout import CALIBRATION_FOLDER, PAGE

    folder = args.predictions / CALIBRATION_FOLDER
    if args.calibrator is not None:
        raise ValueError(
            f"expected -i without --calibrator, got {args.calibrator}: nnunet_calib evaluate judges the cases by it"
        )
    if not (folder / "summary.json").is_file():
        raise ValueError(f"expected {folder / 'summary.json'}, found none: make it with nnunet_calib evaluate")
    output: Path = args.output or folder / PAGE
    write_report(folder, output, image_of=no_image)
    return output


def _of_model(args: argparse.Namespace) -> Path:
    from nnunet_calib.nnunet.lookup import find_model
    from nnunet_calib.nnunet.raw_images import raw_images
    from nnunet_calib.report.fold_page import write_report
    from nnunet_calib.results.compared_models import dice_of_cases
    from nnunet_calib.results.crossval import summary_with
    from nnunet_calib.results.layout import PAGE, find_results

    model_folder = find_model(args.dataset, args.configuration, args.trainer, args.plans)
    folder = find_results(model_folder, args.folds)
    output: Path = args.output or folder / PAGE
    model = f"-d {args.dataset} -c {args.configuration} -tr {args.trainer} -p {args.plans}"
    folds = " ".join(map(str, args.folds))
    first = "crossval" if len(args.folds) > 1 else "validate"
    kind = args.calibrator
    summary = None if kind is None else summary_with(model_folder, args.folds, kind)
    with_kind = {
        "crossval": "" if kind is None else f" --calibrators {kind}",
        **dict.fromkeys(("validate", "report"), "" if kind is None else f" --calibrator {kind}"),
    }
    commands = [f"nnunet_calib {command} {model} -f {folds}{with_kind[command]}" for command in (first, "report")]
    write_report(
        folder,
        output,
        image_of=raw_images(model_folder.path) if args.images else lambda case: None,
        dice=dice_of_cases(model_folder, args.folds),
        commands=commands,
        summary=summary,
    )
    return output


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "report",
        help="one HTML file with numbers, figures, slices and definitions of a fold or a cross-validation",
        description="Writes report.html into the calibration folder of a fold (one number after -f), of merged folds "
        "(as given to crossval) or of predictions that evaluate has measured (-i). The file needs no other file and no "
        "network. Slices show the images of nnUNet_raw where that is there.",
        epilog="Example: nnunet_calib report -d 4 -c 3d_fullres -tr nnUNetTrainerNACL",
    )
    add_model(command, required=False)
    command.add_argument(
        "-i",
        dest="predictions",
        type=Path,
        metavar="PRED",
        help="folder of predictions that nnunet_calib evaluate has measured, instead of -d, -c, -tr and -p",
    )
    add_folds(command, "one fold, or those that crossval has merged")
    command.add_argument("-o", dest="output", type=Path, metavar="FILE", help="default: report.html in the folder")
    add_calibrator(command, "judges the cases, as validate --calibrator or crossval --calibrators has fitted it", None)
    command.add_argument("--no-images", dest="images", action="store_false", help="do not read nnUNet_raw")
    command.set_defaults(run=_run)
