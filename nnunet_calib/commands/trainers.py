"""`nnunet_calib trainers`."""

import argparse

from nnunet_calib.commands.arguments import Commands


def _run(args: argparse.Namespace) -> None:
    from nnunet_calib.nnunet.lookup import trainers_folder

    if args.path:
        print(trainers_folder())
        return
    from nnunet_calib.trainers import TRAINERS

    width = max(len(trainer.__name__) for trainer in TRAINERS)
    for trainer in TRAINERS:
        print(f"{trainer.__name__:<{width}}  {(trainer.__doc__ or '').splitlines()[0]}")
    print(f'\nexport nnUNet_extTrainer="{trainers_folder()}"')


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "trainers",
        help="list the trainers for nnUNetv2_train -tr",
        epilog='Example: export nnUNet_extTrainer="$(nnunet_calib trainers --path)"',
    )
    command.add_argument("--path", action="store_true", help="print only the folder for nnUNet_extTrainer")
    command.set_defaults(run=_run)
