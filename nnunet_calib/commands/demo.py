"""`nnunet_calib demo`."""

import argparse
from pathlib import Path

from nnunet_calib.commands.arguments import Commands


def _run(args: argparse.Namespace) -> None:
    from nnunet_calib.demo import FOLDS, TRAINERS, run_demo

    named = args.trainer or TRAINERS
    if args.trainer:
        from nnunet_calib.trainers import TRAINERS as ALL

        known = [trainer.__name__ for trainer in ALL]
        if len(named) < 2 or len({*named}) < len(named) or not {*named} <= {*known}:
            raise ValueError(
                f"expected two or more different trainers of this package for -tr, got {' '.join(named)}: choose from "
                "those that nnunet_calib trainers lists"
            )
    folds = sorted(map(int, args.folds or FOLDS))
    if len({*folds}) < max(2, len(folds)):
        raise ValueError(
            f"expected two or more different folds, got {' '.join(args.folds)}: name them after -f, e.g. 0 1 2"
        )
    run_demo(args.output, named, folds)


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "demo", help="train, measure and compare on synthetic data whose true probabilities are known (CPU, minutes)",
        epilog="Example: nnunet_calib demo -o calibration_demo",
    )
    command.add_argument(
        "-o", dest="output", type=Path, default=Path("nnunet_calib_demo"), metavar="DIR",
        help="new folder for everything the demo makes (default: %(default)s)",
    )
    command.add_argument(
        "-tr", dest="trainer", nargs="+", metavar="TRAINER",
        help="two or more trainers of this package (default: nnUNetTrainerCalib nnUNetTrainerML1ACE)",
    )
    command.add_argument(
        "-f", dest="folds", nargs="+", choices="01234", metavar="FOLD", help="two folds or more (default: 0 1)"
    )
    command.set_defaults(run=_run)
