"""`nnunet_calib predict`."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from nnunet_calib.commands.arguments import (
    Commands,
    add_calibrator,
    add_checkpoint,
    add_folds,
    add_inference,
    add_maps,
    add_masks,
    add_model_or_folder,
    map_options,
    trained_model,
)


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from nnunet_calib.nnunet.deployment.predict import PredictionOptions, predict

        options = PredictionOptions(
            maps=map_options(args),
            temperature=args.temperature,
            calibrator=args.calibrator,
            thresholds=args.masks,
            lesions=args.lesions,
            average=args.average,
            checkpoint=args.checkpoint,
            trust=args.trust,
            device=args.device,
            step_size=args.step_size,
            mirroring=args.mirroring,
            on_device=args.on_device,
            previous_stage=args.previous_stage,
            save_probabilities=args.save_probabilities,
            continued=args.continued,
            preprocessing_processes=args.npp,
            export_processes=args.nps,
            part=args.part_id,
            parts=args.num_parts,
            verbose=args.verbose,
            progress=args.progress,
        )
        folder = predict(trained_model(args), args.folds, args.images, args.output, options)
    print(folder / "maps.json")


def _default(variable: str) -> int:
    """Return nnU-Net's number of processes from an environment variable, or 3."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else 3


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "predict",
        help="predict images: nnU-Net's segmentations, and maps of calibrated probabilities",
        description="Writes what nnUNetv2_predict writes, and into OUT/maps calibrated probabilities, entropy or "
        "confidence with the size, spacing, origin and direction of the images, with maps.json, which says how to read "
        "them. Takes nnUNetv2_predict's options.",
        epilog="Example: nnunet_calib predict -i imagesTs -o predictions -d 4 -c 3d_fullres -tr nnUNetTrainerNACL "
        "--maps probabilities entropy",
    )
    command.add_argument("-i", dest="images", type=Path, required=True, metavar="IN", help="folder with the images")
    command.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="folder for the results")
    add_model_or_folder(command, trainer="nnUNetTrainer")
    add_folds(command, "folds whose networks are averaged")
    add_checkpoint(command)
    add_maps(command, folds=True)
    add_masks(command, "OUT/masks")
    command.add_argument(
        "--lesions",
        action="store_true",
        help="also write OUT/maps/lesions.csv: each connected component of a structure, with its confidence, volume "
        "and place",
    )
    command.add_argument(
        "--temperature",
        metavar="T",
        help="a number (1 for none), a temperature.json or calibrators.json, or folds for that of each fold (default: "
        "that of nnunet_calib crossval, else that of each fold)",
    )
    add_calibrator(
        command,
        "applied to the maps, from calibrators.json, where "
        "validate or crossval has fitted it, or with --temperature from another one",
        None,
    )
    command.add_argument(
        "--average",
        choices=["logits", "probabilities"],
        default="logits",
        help="what is averaged over the folds for the maps, each fold with its temperature; segmentations are "
        "nnU-Net's either way (default: %(default)s)",
    )
    command.add_argument(
        "-step_size",
        type=float,
        default=0.5,
        metavar="S",
        help="step of the sliding window, as a fraction of the patch (default: 0.5)",
    )
    command.add_argument("--disable_tta", dest="mirroring", action="store_false", help="do not mirror")
    command.add_argument("--verbose", action="store_true", help="let nnU-Net print details")
    command.add_argument(
        "--save_probabilities", action="store_true", help="also write nnU-Net's .npz, without temperature"
    )
    command.add_argument(
        "--continue_prediction",
        dest="continued",
        action="store_true",
        help="predict the cases that lack their segmentation, a map or a mask",
    )
    for flag, variable, what in (("-npp", "nnUNet_npp", "preprocessing"), ("-nps", "nnUNet_nps", "export and maps")):
        command.add_argument(
            flag,
            type=int,
            default=_default(variable),
            metavar="N",
            help=f"processes for {what} (default: %(default)s); 0 for both uses none",
        )
    command.add_argument(
        "-prev_stage_predictions",
        dest="previous_stage",
        type=Path,
        metavar="DIR",
        help="segmentations of the previous stage, for a cascade",
    )
    add_inference(command)
    command.add_argument("--disable_progress_bar", dest="progress", action="store_false", help="show no progress bars")
    command.add_argument("--not_on_device", dest="on_device", action="store_false", help="save GPU memory")
    command.set_defaults(run=_run)
