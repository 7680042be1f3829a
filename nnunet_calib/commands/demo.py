"""`nnunet_calib demo`."""

import argparse
from pathlib import Path

from nnunet_calib.commands.arguments import Commands


def _run(args: argparse.Namespace) -> None:
    from nnunet_calib.demo import run_demo

    run_demo(args.output)


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
    command.set_defaults(run=_run)
