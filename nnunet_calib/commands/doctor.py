"""`nnunet_calib doctor`."""

import argparse
import contextlib
import io

from nnunet_calib.commands.arguments import Commands


def _run(args: argparse.Namespace) -> None:
    from nnunet_calib.nnunet.installation import findings

    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net tells of each folder it looks into
        found = [*findings()]
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        print(f"{'!!' if finding.remedy else 'ok'}  {finding.subject:<{width}}  {finding.text}")
        if finding.remedy:
            print(f"    {'':<{width}}  -> {finding.remedy}")
    wrong = [finding.subject for finding in found if finding.remedy]
    if wrong:
        raise ValueError(
            f"expected an installation that is ready, found problems with {', '.join(wrong)}: type what stands after ->"
        )
    print("\nAll is well. Next: nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerCalib")


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "doctor",
        help="check the installation: versions, nnU-Net's variables, trainers, devices, permissions",
        description="Checks versions, nnU-Net's environment variables and folders, whether nnU-Net finds the trainers, "
        "and the devices with the backend that computes the losses there. Changes nothing; says what to type where "
        "something is missing, and then ends with status 2.",
        epilog="Example: nnunet_calib doctor",
    )
    command.set_defaults(run=_run)
