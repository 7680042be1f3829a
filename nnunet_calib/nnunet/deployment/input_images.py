"""Checks of the images to predict, made before the network is loaded: each case must have its model's channels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_calib.io.atomic_files import open_regular
from nnunet_calib.io.names import check_cases
from nnunet_calib.io.wording import last_line, shortened
from nnunet_calib.nnunet.deployment.networks import trained_plans
from nnunet_calib.results.layout import ModelFolder


def check_images(model_folder: ModelFolder, images: Path, previous_stage: Path | None = None) -> None:
    """Check that each case has its channels and, for a cascade, the segmentation of the previous stage.

    Raises:
        ValueError: if not; the message names case and file.
    """
    plans, configuration, dataset = trained_plans(model_folder)
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(channels, dict):
        raise ValueError(
            f"expected channel_names in {model_folder.path / 'dataset.json'}, found none: restore that of the trained "
            f"model"
        )
    names = [str(channels.get(str(number), number)) for number in range(len(channels))]
    ending = str(dataset["file_ending"])
    cases = _files(images, ending)
    check_cases(cases)
    for case, files in cases.items():
        _check_channels(case, files, names, ending, plans)
    _check_previous_stage(configuration.previous_stage_name, previous_stage, [case + ending for case in cases])


def _files(images: Path, ending: str) -> dict[str, list[Path]]:
    """Return the files of each case, as nnU-Net finds them: CASE_, four digits for the channel, the file ending."""
    suffix = re.compile(r"_\d\d\d\d" + re.escape(ending))
    longest = len(ending) + 5
    cases: dict[str, list[Path]] = {}
    others: dict[str, Path] = {}
    for file in sorted(images.iterdir()) if images.is_dir() else ():
        if not file.name.endswith(ending) or file.is_dir() or not file.exists():
            continue
        open_regular(file).close()  # nnU-Net silently skips pipes and devices
        case = file.name[:-longest]
        if suffix.fullmatch(file.name[-longest:]):
            cases.setdefault(case, []).append(file)
        else:
            others[case] = file
    if not cases:
        raise ValueError(
            f"expected images that end with _0000{ending}, found none in {images}: name their folder with -i"
        )
    for case, file in others.items():
        if case not in cases:  # nnU-Net would take it for a case without images
            raise ValueError(
                f"expected images that end with _0000{ending} and the like, a number for each channel, found {file}: "
                f"rename it, or move it elsewhere"
            )
    return cases


def _check_channels(case: str, files: Sequence[Path], names: Sequence[str], ending: str, plans: Any) -> None:
    """Raise ValueError unless the files of a case hold its channels.

    nnU-Net stacks all files in the order of their numbers. One file can hold several channels, as a colour image does:
    if there are fewer files than channels, they are opened.
    """
    numbers = [int(file.name[: -len(ending)][-4:]) for file in files]
    expected = (
        f"expected case {case} with {len(names)} channel{'s' * (len(names) > 1)} ({shortened(names)}) as its model was "
        f"trained"
    )
    for number, there in enumerate(numbers):
        if number >= len(names):
            raise ValueError(f"{expected}, found one more in {files[number]}: move it elsewhere")
        if number != there:
            raise ValueError(f"{expected}, found no file {_file(files[0].parent, case, number, ending)}: add it")
    if len(files) == len(names):
        return
    try:
        found = len(plans.image_reader_writer_class().read_images([str(file) for file in files])[0])
    except Exception as error:  # each format has its own errors
        raise ValueError(
            f"expected images of case {case} that nnU-Net can read, found {files[0]} unreadable, or of another size "
            f"than its other channels ({last_line(error)}): restore it"
        ) from error
    if found < len(names):
        raise ValueError(f"{expected}, found no file {_file(files[0].parent, case, len(files), ending)}: add it")
    if found > len(names):
        raise ValueError(f"{expected}, found {found} in {files[0]}: keep the model's channels only")


def _file(folder: Path, case: str, number: int, ending: str) -> Path:
    return folder / f"{case}_{number:04d}{ending}"


def _check_previous_stage(stage: str | None, folder: Path | None, files: Sequence[str]) -> None:
    """Raise ValueError for a cascade without segmentations of its previous stage, or for segmentations without one."""
    if stage is None:
        if folder is not None:
            raise ValueError(
                f"expected no segmentations of a previous stage, which this configuration does not have, got "
                f"-prev_stage_predictions {folder}: leave it out"
            )
        return
    if folder is None:
        raise ValueError(
            f"expected the segmentations of {stage}, the previous stage of this cascade, got none: predict them first, "
            f"and name their folder with -prev_stage_predictions"
        )
    for file in files:
        if not (folder / file).exists():
            raise ValueError(
                f"expected the segmentation of {stage}, the previous stage of this cascade, for each case, found no "
                f"{folder / file}: predict it first"
            )
        open_regular(folder / file).close()
