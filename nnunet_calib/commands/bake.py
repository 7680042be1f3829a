"""`nnunet_calib bake`."""

import argparse
import contextlib
import sys

from nnunet_calib.commands.arguments import (
    Commands,
    add_calibrator,
    add_checkpoint,
    add_folds,
    add_model_or_folder,
    trained_model,
)


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints the folders in which it looks for trainers
        from nnunet_calib.nnunet.deployment.bake import bake
        from nnunet_calib.results.deployed_temperature import find_temperature
        from nnunet_calib.results.schemas import in_sample_note

        model_folder = trained_model(args)
        folds = [*dict.fromkeys(args.folds)]
        deployed = find_temperature(model_folder, folds, args.temperature, args.calibrator)
        if note := in_sample_note(deployed.content):
            print(note, file=sys.stderr)
        baked = bake(model_folder, folds, deployed, name=args.checkpoint, portable=args.portable, trust=args.trust)
    print(deployed.describe())
    for made in baked:
        print(
            f"{made.file}: {len(made.heads)} tensors divided, logits divided to {made.deviation:.1g}, trainer "
            f"{made.trainer}"
        )


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "bake",
        help="write the temperature into a copy of the checkpoint, for nnUNetv2_predict -chk",
        description="Divides weights and biases of the segmentation heads by T, so that the logits are divided by T, "
        "proves it by running the network, and writes fold_X/checkpoint_calibrated.pth. The original is not changed.",
        epilog="Example: nnunet_calib bake -d 4 -c 3d_fullres -tr nnUNetTrainerNACL --portable",
    )
    add_model_or_folder(command)
    add_folds(command, "folds to bake, with one temperature")
    add_checkpoint(command)
    command.add_argument(
        "--temperature",
        metavar="T",
        help="a number, or a temperature.json or calibrators.json (default: that of the cross-validation that has "
        "these folds, else that of the fold)",
    )
    add_calibrator(
        command,
        "written into the checkpoint, from calibrators.json, where "
        "validate or crossval has fitted it, or with --temperature from another one",
        None,
    )
    command.add_argument(
        "--portable",
        action="store_true",
        help="name nnU-Net's own trainer in the checkpoint, so that it can be used without this package",
    )
    command.set_defaults(run=_run)
