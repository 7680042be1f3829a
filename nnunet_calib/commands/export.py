"""`nnunet_calib export`."""

import argparse
import contextlib
import sys

from nnunet_calib.commands.arguments import (
    Commands,
    add_calibrator,
    add_maps,
    add_masks,
    add_predictions,
    map_options,
    predictions,
)


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from nnunet_calib.nnunet.deployment.map_folder import MAPS_FOLDER
        from nnunet_calib.nnunet.deployment.maps_of_npz import export_maps
        from nnunet_calib.nnunet.deployment.mask_folder import MASKS_FOLDER
        from nnunet_calib.results.deployed_temperature import given_temperature
        from nnunet_calib.results.schemas import in_sample_note

        if args.temperature is None and args.calibrator is not None:
            raise ValueError(
                f"expected --temperature with --calibrator {args.calibrator}, got none: name the calibrators.json that "
                f"nnunet_calib fit or crossval has written"
            )
        temperature = None if args.temperature is None else given_temperature(args.temperature, args.calibrator)
        if temperature is not None and (note := in_sample_note(temperature)):
            print(note, file=sys.stderr)
        folder = args.output or args.predictions / MAPS_FOLDER
        masks = None if args.masks is None else (args.masks, (args.output or args.predictions) / MASKS_FOLDER)
        export_maps(predictions(args), folder, map_options(args), temperature, args.processes, masks)
    print(folder / "maps.json")


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "export",
        help="write the .npz of predictions as images: probabilities, entropy, confidence",
        description="Writes maps with the size, spacing, origin and direction of the segmentation beside each .npz, "
        "and maps.json, which says how to read them. The .pkl files are not read.",
        epilog="Example: nnunet_calib export -i predictions --maps probabilities entropy --dtype uint8",
    )
    add_predictions(command, labels=False, output="PRED/maps")
    add_maps(command)
    add_masks(command, "PRED/masks, with -o DIR/masks,")
    command.add_argument(
        "--temperature",
        metavar="T",
        help="a number, or a temperature.json or calibrators.json, to calibrate by (default: none, the "
        "probabilities as they are)",
    )
    add_calibrator(command, "applied to the probabilities, from the calibrators.json of --temperature", None)
    command.set_defaults(run=_run, labels=None)
