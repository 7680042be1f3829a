"""`nnunet_calib thresholds`."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from nnunet_calib.commands.arguments import Commands, add_folds, add_model, add_predictions, predictions


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints while it is imported, and while it reads
        from nnunet_calib.decisions.threshold_table import threshold_table
        from nnunet_calib.decisions.thresholds import goals_of
        from nnunet_calib.io.atomic_files import write_json
        from nnunet_calib.results.layout import THRESHOLDS_FILE

        _check_source(args)
        goals = goals_of(args.recall, args.precision)
        folder, content = _of_folds(args, goals) if args.predictions is None else _of_hold_out(args, goals)
        folder = args.output or folder
        folder.mkdir(parents=True, exist_ok=True)
        write_json(content, folder / THRESHOLDS_FILE)
    print(threshold_table(content))
    print(folder / THRESHOLDS_FILE)


def _check_source(args: argparse.Namespace) -> None:
    """Raise ValueError unless either a model's folds or a labelled folder of predictions is named."""
    named = [value is not None for value in (args.dataset, args.configuration, args.trainer)]
    labelled = [value is not None for value in (args.predictions, args.labels)]
    if not ((all(named) and not any(labelled)) or (all(labelled) and not any(named))):
        raise ValueError(
            "expected the folds of a model (-d, -c and -tr), or predictions with their labels (-i and -gt): name one "
            "of the two in full"
        )


def _of_folds(args: argparse.Namespace, goals: list[Any]) -> tuple[Path, dict[str, Any]]:
    from nnunet_calib.decisions.thresholds import threshold_content
    from nnunet_calib.nnunet.lookup import find_model
    from nnunet_calib.results.measured_folds import find_folds, merged_model, read_measured

    model_folder = find_model(args.dataset, args.configuration, args.trainer, args.plans)
    found = find_folds(model_folder, args.folds, allow_missing=args.allow_missing)
    cases, missing = read_measured(found, allow_missing=args.allow_missing)
    if missing:
        print(f"left out, not measured: {', '.join(missing)}", file=sys.stderr)
    folds = [result.fold for result in found]
    return model_folder.crossval(folds), threshold_content(cases, found[0].heads, goals, merged_model(found), folds)


def _of_hold_out(args: argparse.Namespace, goals: list[Any]) -> tuple[Path, dict[str, Any]]:
    from nnunet_calib.decisions.thresholds import threshold_content
    from nnunet_calib.nnunet.validation.evaluate import measured

    labelled = predictions(args)
    folder = args.predictions / "calibration"
    with measured(labelled, args.output or folder, args.processes) as cases:
        return folder, threshold_content(cases, labelled.heads, goals, labelled.model)


def _level(text: str) -> float:
    """Return a recall or precision."""
    if not 0 < (number := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}: write .95 for 95 %")
    return number


def _add_levels(command: argparse.ArgumentParser, of: str, meaning: str) -> None:
    """Add what is promised."""
    command.add_argument(
        f"--{of}", type=_level, nargs="+", default=[], metavar="LEVEL", help=f"{meaning}, as in .95; one or several"
    )


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "thresholds",
        help="choose thresholds of the probabilities that promise a recall or a precision",
        description="Chooses for each structure the threshold whose mask p >= threshold is expected to hold a share of "
        "the structure (recall), or to be right to a share (precision), in a new case. From the measured folds of a "
        "model each fold is judged by the thresholds of the others; from a labelled hold-out the promise is that of "
        "conformal risk control. Prints a table and writes thresholds.json.",
        epilog="Example: nnunet_calib thresholds -d 4 -c 3d_fullres -tr nnUNetTrainerNACL --recall .8 .95",
    )
    _add_levels(command, "recall", "share of a structure that its mask is to hold")
    _add_levels(command, "precision", "share of a mask that is to be right")
    add_model(command, required=False)
    add_folds(command, "at least two folds")
    add_predictions(command, required=False)
    command.set_defaults(run=_run)
