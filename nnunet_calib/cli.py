"""The command line: parses arguments, calls one function, prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


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
