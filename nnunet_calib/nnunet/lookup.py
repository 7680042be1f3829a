"""Look-up of trainers and trained models, as nnU-Net finds them."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from nnunet_calib.io.json_forms import NAME, check_form, read_json
from nnunet_calib.io.wording import reason, shortened
from nnunet_calib.results.layout import Fold, ModelFolder

MODULE = "nnunet_calib_trainers.py"


def trainers_folder() -> Path:
    """Return the folder for nnU-Net's environment variable nnUNet_extTrainer.

    An installed wheel has it inside the package, a checkout beside it. It is not a package, and holds only the module
    that imports the trainers.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_trainers", package.parent / "trainers"):
        if (folder / MODULE).is_file():
            return folder
    raise FileNotFoundError(
        f"expected the trainers folder in {package} or beside it, found none: reinstall nnunet-calib"
    )


def find_trainer(name: str) -> type:
    """Return the trainer class of this name, as nnU-Net finds it; warn if another folder has one of the same name.

    Raises:
        ValueError: if nnU-Net finds none, or fails to import a module in nnUNet_extTrainer.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        found: type = recursive_find_trainer_class_by_name(name)
    except Exception as error:  # the look-up imports all modules in nnUNet_extTrainer, which may raise anything
        if file := _failed_module(error):
            raise ValueError(
                f"expected modules that Python can import in nnUNet_extTrainer, found {file} broken ({reason(error)}) "
                f"before {name}: fix or remove it, or name its folder last in nnUNet_extTrainer"
            ) from error
        if not isinstance(error, RuntimeError | AssertionError):
            raise
        raise ValueError(
            f"expected a trainer that nnU-Net finds, got {name}: set nnUNet_extTrainer (now "
            f"{os.environ.get('nnUNet_extTrainer') or 'unset'}) as it was for the training; nnunet_calib trainers "
            f"--path prints the folder of this package's trainers"
        ) from error
    if len(folders := _folders_with(name)) > 1:
        print(
            f"nnUNet_extTrainer has different trainers {name} in {' and '.join(folders)}: nnU-Net takes the first; "
            f"rename the other, or name its folder first",
            file=sys.stderr,
        )
    return found


def _external_folders() -> list[str]:
    return [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if os.path.isdir(folder)]


def _failed_module(error: Exception) -> str | None:
    """Return the module in nnUNet_extTrainer whose import raised an error."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(error.filename)
    folders = [Path(folder).absolute() for folder in _external_folders()]
    return next((file for file in files if any(Path(file).is_relative_to(folder) for folder in folders)), None)


def _folders_with(name: str) -> list[str]:
    """Return the folders of nnUNet_extTrainer with a trainer of this name, or only one if it is the same class."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    found: dict[str, type] = {}
    for folder in _external_folders():
        with suppress(Exception):  # nnU-Net did not need this folder
            cls = recursive_find_python_class(
                folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True
            )
            if cls is not None and cls not in found.values():
                found[folder] = cls
    return [*found]


def find_model(dataset: str | int, configuration: str, trainer: str, plans: str) -> ModelFolder:
    """Return the folder of a trained model; `dataset` is a name or a number.

    Raises:
        ValueError: if nnUNet_results is not set, if the dataset is unknown, or if there is no such model.
    """
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    if not os.environ.get("nnUNet_results"):
        raise ValueError(
            "expected nnUNet_results to name the folder of nnU-Net's trained models, found it unset: "
            "export it as for nnUNetv2_train"
        )
    try:
        folder = Path(get_output_folder(dataset, trainer, plans, configuration))
    except (RuntimeError, ValueError) as error:
        known = _names_in(Path(os.environ["nnUNet_results"]), "Dataset*")
        raise ValueError(
            f"expected the name or number of a dataset, got {dataset!r} (in nnUNet_results: {known}): {reason(error)}"
        ) from error
    if not folder.is_dir():
        raise ValueError(
            f"expected a trained model in {folder}, found none: check -d, -c, -tr and -p "
            f"({_names_in(folder.parent, '*__*__*')} there)"
        )
    return ModelFolder(folder, folder.parent.name, trainer, plans, configuration)


def _names_in(folder: Path, pattern: str) -> str:
    """Return the names of the folders that a user may have meant."""
    return shortened(sorted(path.name for path in folder.glob(pattern) if path.is_dir())) or "there are none"


def model_in(folder: Path, fold: Fold, checkpoint: str, *, trust: bool = False) -> ModelFolder:
    """Return the trained model in a folder of any name, identified by its files.

    Args:
        folder: folder with plans.json and `fold_X`.
        fold: an existing fold.
        checkpoint: file name of its checkpoint, which names trainer and configuration.
        trust: also read a checkpoint that holds objects whose code then runs.

    Raises:
        ValueError: if these files are missing, or do not identify the model.
    """
    from nnunet_calib.nnunet.checkpoints import load_checkpoint

    plans, weights = folder / "plans.json", folder / f"fold_{fold}" / checkpoint
    if not plans.is_file():
        raise ValueError(
            f"expected nnU-Net's folder of a trained model, with plans.json and fold_X, found no {plans}: name another "
            f"with -m"
        )
    if not weights.is_file():
        there = sorted(path.relative_to(folder).as_posix() for path in folder.glob("fold_*/[!.]*.pth"))
        raise ValueError(
            f"expected nnU-Net's checkpoint {weights}, found none: name an existing fold with -f and a checkpoint "
            f"with -chk ({', '.join(there) or 'there are none'})"
        )
    named = read_json(plans, {"dataset_name": NAME, "plans_name": NAME}, "restore that of the trained model")
    content = load_checkpoint(weights, trust=trust)
    check_form(
        content, {"trainer_name": NAME, "init_args": {"configuration": NAME}}, weights, "copy it again, or name another"
    )
    configuration = content["init_args"]["configuration"]
    return ModelFolder(folder, named["dataset_name"], content["trainer_name"], named["plans_name"], configuration)
