"""`nnunet_calib validate`."""

import argparse
import contextlib
import sys

from nnunet_calib.commands.arguments import (
    Commands,
    add_boundary,
    add_calibrator,
    add_checkpoint,
    add_folds,
    add_inference,
    add_model,
    at_least_one,
)


def _run(args: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net's prints are not results
        from nnunet_calib.figures.fold_figures import draw_fold
        from nnunet_calib.nnunet.lookup import find_model
        from nnunet_calib.nnunet.raw_images import raw_images
        from nnunet_calib.nnunet.validation.trained_fold import Options, fold_numbers, validate_fold
        from nnunet_calib.report.tables import summary_table

        options = Options(
            checkpoint=args.checkpoint,
            device=args.device,
            processes=args.processes,
            part=args.part_id,
            parts=args.num_parts,
            use_npz=args.npz,
            trust=args.trust,
            boundary_mm=args.boundary_mm,
            calibrator=args.calibrator,
        )
        model_folder = find_model(args.dataset, args.configuration, args.trainer, args.plans)
        folds = fold_numbers(model_folder, args.folds, args.checkpoint)
    for fold in folds:
        with contextlib.redirect_stdout(sys.stderr):
            summary = validate_fold(model_folder, fold, options)
            folder = model_folder.calibration(fold)
            if summary is not None and args.figures:
                draw_fold(folder, raw_images(model_folder.path))
        if summary is None:
            print(
                f"fold {fold}: this part is measured, others are not; the part that finishes last writes the results, "
                f"or this command without -num_parts and -part_id",
                file=sys.stderr,
            )
        else:
            print(f"fold {fold}\n{summary_table(summary)}\n{folder / 'summary.json'}", flush=True)


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "validate",
        help="measure folds that were trained earlier, with any trainer, without training again",
        description="Measures the validation cases of trained folds: from the .npz of nnUNetv2_train --npz, else by "
        "running nnU-Net's validation inference from the checkpoint. Prints a table and writes fold_X/validation/"
        "calibration/ as the trainers of this package do after training; nothing else in the model's folder changes. "
        "A stopped run continues when the command is typed again.",
        epilog="Example: nnunet_calib validate -d 4 -c 3d_fullres -tr nnUNetTrainer -f 0 1 2 3 4",
    )
    add_model(command)
    add_folds(command, "numbers, or all (default: those that have the checkpoint)", None)
    add_checkpoint(command, "; with another one, .npz are not used")
    add_inference(command)
    add_calibrator(command, "fitted to the cases of the fold, and judges each case by a fit without it")
    add_boundary(command)
    command.add_argument(
        "-np",
        dest="processes",
        type=at_least_one,
        metavar="N",
        help="processes that measure; each holds a case (default: nnU-Net's, nnUNet_def_n_proc or 8)",
    )
    command.add_argument(
        "--no-npz",
        dest="npz",
        action="store_false",
        help="predict all cases, for .npz of another checkpoint, as after nnUNetv2_train --val_best --npz",
    )
    command.add_argument("--no-figures", dest="figures", action="store_false", help="draw no pictures")
    command.set_defaults(run=_run)
