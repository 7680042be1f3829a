"""`nnunet_calib demo`."""

import argparse
from pathlib import Path

from nnunet_calib.commands.arguments import Commands, add_folds

LARGEST_SEED = 10**6


def _run(args: argparse.Namespace) -> None:
    from nnunet_calib.demo import TRAINERS, run_demo

    named = args.trainer or TRAINERS
    if args.trainer:
        from nnunet_calib.trainers import TRAINERS as ALL

        known = [trainer.__name__ for trainer in ALL]
        if len(named) < 2 or len({*named}) < len(named) or not {*named} <= {*known}:
            raise ValueError(
                f"expected two or more different trainers of this package for -tr, got {' '.join(named)}: choose from "
                "those that nnunet_calib trainers lists"
            )
    if len({*args.folds}) < max(2, len(args.folds)) or not {*args.folds} <= {*range(5)}:
        raise ValueError(
            f"expected two or more different folds, got {' '.join(map(str, args.folds))}: name them after -f, from 0 "
            "to 4"
        )
    run_demo(args.output, named, sorted(args.folds), args.seed)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {LARGEST_SEED}, got {text}")
    return int(text)


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "demo",
        help="train, measure and compare on synthetic data whose true probabilities are known (CPU, minutes)",
        epilog="Example: nnunet_calib demo -o calibration_demo",
    )
    command.add_argument(
        "-o",
        dest="output",
        type=Path,
        default=Path("nnunet_calib_demo"),
        metavar="DIR",
        help="new folder for everything the demo makes (default: %(default)s)",
    )
    command.add_argument(
        "-tr",
        dest="trainer",
        nargs="+",
        metavar="TRAINER",
        help="two or more trainers of this package (default: nnUNetTrainerCalib nnUNetTrainerML1ACE)",
    )
    add_folds(command, "two folds or more", (0, 1))
    command.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="seed of the cases and of the trainings (default: %(default)s)",
    )
    command.set_defaults(run=_run)
