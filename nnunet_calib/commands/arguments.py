"""Arguments that several commands share, with nnU-Net's letters."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from nnunet_calib.nnunet.deployment.map_values import MapOptions
    from nnunet_calib.nnunet.predictions import Predictions
    from nnunet_calib.results.layout import ModelFolder

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_PLANS = "nnUNetPlans"
CALIBRATORS = ("temperature", "classwise", "vector")  # repeated from nnunet_calib.posthoc, which imports PyTorch
CALIBRATORS_IN_WORDS = (
    "temperature (the default), classwise (temperatures by predicted class or region) or vector (factors and offsets)"
)


def at_least_one(text: str) -> int:
    """Parse a number of processes or parts."""
    if not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text}")
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def fold(text: str) -> int | str:
    """Parse the number of a fold, or "all"."""
    if text == "all":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected the number of a fold, or all, got {text}: name them as in -f 0 1 2")
    return int(text)


def add_folds(command: argparse.ArgumentParser, what: str, default: Sequence[int] | None = range(5)) -> None:
    """Add -f, which takes one fold or more; without a default it is None, and `what` says what that means."""
    default_text = "" if default is None else f" (default: {' '.join(map(str, default))})"
    command.add_argument(
        "-f",
        dest="folds",
        type=fold,
        nargs="+",
        default=default and [*default],
        metavar="FOLD",
        help=what + default_text,
    )


def add_model(
    command: argparse.ArgumentParser, *, several: bool = False, trainer: str | None = None, required: bool = True
) -> None:
    """Add -d, -c, -tr and -p for a model; for `several` models, all but -d take lists.

    -tr is required unless `trainer` gives a default.
    """
    _add_names(command, required=required, several=several, trainer=trainer)


def add_model_or_folder(command: argparse.ArgumentParser, *, trainer: str | None = None) -> None:
    """Add the same for one model, and -m for its folder instead; `trained_model` reads them."""
    command.add_argument(
        "-m",
        dest="model_folder",
        type=Path,
        metavar="MODEL_FOLDER",
        help="folder of the model, wherever it is, with plans.json, dataset.json and fold_X; instead of -d, -c, -tr "
        "and -p",
    )
    _add_names(command, required=False, several=False, trainer=trainer)
    # None shows that an option was not typed
    command.set_defaults(trainer=None, plans=None, trainer_by_default=trainer)


def _add_names(command: argparse.ArgumentParser, *, required: bool, several: bool, trainer: str | None) -> None:
    nargs = "+" if several else None
    command.add_argument("-d", dest="dataset", required=required, metavar="DATASET", help="its name or number")
    command.add_argument(
        "-c", dest="configuration", required=required, metavar="CONFIG", help="3d_fullres, 2d, ...", nargs=nargs
    )
    command.add_argument(
        "-tr",
        dest="trainer",
        required=required and trainer is None,
        default=trainer,
        metavar="TRAINER",
        nargs=nargs,
        help="as for nnUNetv2_train" + (f" (default: {trainer})" if trainer else ""),
    )
    command.add_argument(
        "-p",
        dest="plans",
        default=[_PLANS] if several else _PLANS,
        metavar="PLANS",
        help=f"name of the plans (default: {_PLANS})",
        nargs=nargs,
    )


def trained_model(args: argparse.Namespace) -> ModelFolder:
    """Return the model that -m names, or -d, -c, -tr and -p.

    Raises:
        ValueError: if both ways are used or neither is complete, or if there is no such model.
    """
    from nnunet_calib.nnunet.lookup import find_model, model_in

    names = {"-d": args.dataset, "-c": args.configuration, "-tr": args.trainer, "-p": args.plans}
    typed = [flag for flag, value in names.items() if value is not None]
    if args.model_folder is not None:
        if typed:
            raise ValueError(
                f"expected a model named by -m, or by -d, -c, -tr and -p, got -m with {', '.join(typed)}: leave out "
                f"one or the other"
            )
        return model_in(args.model_folder, args.folds[0], args.checkpoint, trust=args.trust)
    trainer, plans = args.trainer or args.trainer_by_default, args.plans or _PLANS
    lacking = [
        flag for flag, value in (("-d", args.dataset), ("-c", args.configuration), ("-tr", trainer)) if value is None
    ]
    if lacking:
        raise ValueError(
            f"expected a model named by -m, or by -d, -c, -tr and -p, got no {', '.join(lacking)}: name it by its "
            f"folder, as in -m MODEL_FOLDER, or in full"
        )
    return find_model(args.dataset, args.configuration, trainer, plans)


def add_checkpoint(command: argparse.ArgumentParser, note: str = "") -> None:
    """Add -chk for the checkpoint of each fold, and --trust-checkpoint."""
    command.add_argument(
        "-chk",
        dest="checkpoint",
        default="checkpoint_final.pth",
        metavar="NAME",
        help=f"file name of the checkpoint (default: %(default)s){note}",
    )
    command.add_argument(
        "--trust-checkpoint",
        dest="trust",
        action="store_true",
        help="read a checkpoint that holds more than tensors and plain values, which can run code",
    )


def add_inference(command: argparse.ArgumentParser) -> None:
    """Add -device, and -num_parts and -part_id for a part of the cases."""
    command.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default="cuda",
        help="predicts; choose the GPU with CUDA_VISIBLE_DEVICES (default: %(default)s)",
    )
    command.add_argument(
        "-num_parts",
        type=at_least_one,
        default=1,
        metavar="N",
        help="run the command N times, with -part_id 0 to N - 1, to share the cases (default: 1)",
    )
    command.add_argument("-part_id", type=int, default=0, metavar="K", help="which of these runs this is, from 0")


def add_predictions(
    command: argparse.ArgumentParser,
    *,
    labels: bool = True,
    raters: bool = False,
    output: str = "PRED/calibration",
    required: bool = True,
) -> None:
    """Add a folder of predictions with .npz and, with `labels`, one of label maps; `output` is the default of -o.

    With `raters` several folders of label maps can be given.
    """
    command.add_argument(
        "-i",
        dest="predictions",
        type=Path,
        required=required,
        metavar="PRED",
        help="folder of predictions with .npz: of nnUNetv2_predict --save_probabilities, nnUNetv2_ensemble --save_npz, "
        "or a fold's validation with --npz",
    )
    if labels:
        command.add_argument(
            "-gt",
            dest="labels",
            type=Path,
            required=required,
            metavar="LABELS",
            **({"nargs": "+"} if raters else {}),
            help="folder with their true label maps"
            + (
                "; of several raters a folder each: every voxel counts once for each of them; or a "
                "folder that has one of label frequencies for each structure"
                if raters
                else ""
            ),
        )
    command.add_argument(
        "-djfile",
        dest="dataset_json",
        type=Path,
        metavar="FILE",
        help="dataset.json (default: that in PRED, or in one of the two folders above)",
    )
    command.add_argument(
        "-pfile",
        dest="plans_json",
        type=Path,
        metavar="FILE",
        help="plans.json (default: that beside dataset.json; without one, the file ending says how to read labels)",
    )
    command.add_argument(
        "-o", dest="output", type=Path, metavar="DIR", help=f"folder for the results (default: {output})"
    )
    command.add_argument(
        "-np",
        dest="processes",
        type=at_least_one,
        metavar="N",
        help="cases taken at once; each needs memory for its unpacked probabilities and as much again at most, 4 GB "
        "for 14 classes of 512 x 512 x 200 voxels (default: nnU-Net's, nnUNet_def_n_proc or 8)",
    )
    command.add_argument(
        "--chill",
        dest="allow_missing",
        action="store_true",
        help=f"take the cases that have a {'label map' if labels else 'segmentation'} and an .npz and name the others, "
        "instead of refusing",
    )


def add_calibrator(command: argparse.ArgumentParser, what: str, default: str | None = "temperature") -> None:
    """Add --calibrator for the kind of calibrator; `what` says what the command does with it."""
    command.add_argument(
        "--calibrator", choices=CALIBRATORS, metavar="KIND", default=default, help=f"{what}: {CALIBRATORS_IN_WORDS}"
    )


def add_boundary(command: argparse.ArgumentParser, note: str = "") -> None:
    """Add --boundary-mm, the width of the boundary scope."""
    command.add_argument(
        "--boundary-mm",
        dest="boundary_mm",
        type=width_in_mm,
        metavar="MM",
        help="half width of the band around label borders that is the boundary scope (default: 2, or three voxels "
        f"where 2 mm are more than 20){note}",
    )


def width_in_mm(text: str) -> float:
    """Parse the half width of the boundary scope."""
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of mm, at least 0, got {text}")
    return number


def add_maps(command: argparse.ArgumentParser, *, folds: bool = False) -> None:
    """Add the choice of maps, with those of several `folds`, and of their format."""
    # repeated from nnunet_calib.nnunet.deployment.map_values, which imports PyTorch
    of_folds, note = ["mutual_information", "variance"], "; of several folds also mutual_information, variance"
    command.add_argument(
        "--maps",
        nargs="+",
        choices=["probabilities", "entropy", "confidence", *(of_folds if folds else [])],
        default=["probabilities"],
        metavar="MAP",
        help=f"probabilities, entropy, confidence: one or several{note if folds else ''} (default: probabilities)",
    )
    command.add_argument(
        "--dtype",
        choices=["float32", "uint8", "uint16"],
        default="float32",
        help="float32, or integers: p = value / 255 or value / 65535, entropy as a fraction of its largest value "
        "(default: %(default)s; PNG takes integers only)",
    )
    command.add_argument(
        "--layout",
        choices=["files", "4d"],
        default="files",
        help="an image for each class or region, or one with a fourth axis for them (default: %(default)s)",
    )


def add_masks(command: argparse.ArgumentParser, folder: str) -> None:
    """Add --masks for the masks of a thresholds.json, which are written into a folder."""
    command.add_argument(
        "--masks",
        type=Path,
        metavar="FILE",
        help=f"a thresholds.json of nnunet_calib thresholds: also write into {folder} the masks that keep its promises",
    )


def map_options(args: argparse.Namespace) -> MapOptions:
    """Return the options that `add_maps` has added."""
    from nnunet_calib.nnunet.deployment.map_values import FOLD_KINDS, KINDS, MapOptions

    return MapOptions(tuple(kind for kind in (*KINDS, *FOLD_KINDS) if kind in args.maps), args.dtype, args.layout)


def predictions(args: argparse.Namespace) -> Predictions:
    """Find the predictions that the arguments of `add_predictions` name; report skipped cases on stderr."""
    from nnunet_calib.nnunet.prediction_folder import find_predictions

    found = find_predictions(
        args.predictions,
        args.labels,
        dataset_json=args.dataset_json,
        plans_json=args.plans_json,
        allow_missing=args.allow_missing,
        boundary_mm=getattr(args, "boundary_mm", None),
    )
    if found.missing:
        what = "label map" if args.labels else "segmentation"
        print(f"skipped (no {what} or no .npz): {', '.join(found.missing)}", file=sys.stderr)
    return found
