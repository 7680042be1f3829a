"""The cases of a folder of predictions, with the label maps that belong to them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunet_calib.io.json_forms import NAME, read_json
from nnunet_calib.io.names import check_cases
from nnunet_calib.io.wording import reason
from nnunet_calib.measuring.scopes import BOUNDARY_MM, default_boundary_mm
from nnunet_calib.nnunet.boundary_width import spacing_of_plans
from nnunet_calib.nnunet.labels import check_dataset
from nnunet_calib.nnunet.pickled_properties import image_spacing
from nnunet_calib.nnunet.predictions import Predictions
from nnunet_calib.nnunet.saved_probabilities import SAVE_THEM, describe_npz
from nnunet_calib.results.heads import Heads

# fold_X/validation lies two folders below the dataset.json of its model
_FOLDERS_ABOVE = 2
_NAMED = 20
_DATASET = {"labels": dict, "file_ending": NAME}
_PLANS = {"image_reader_writer": str, "dataset_name?": NAME, "plans_name?": NAME}


def find_predictions(
    folder: Path,
    labels_folders: Path | Sequence[Path] | None,
    *,
    dataset_json: Path | None = None,
    plans_json: Path | None = None,
    allow_missing: bool = False,
    boundary_mm: float | None = None,
) -> Predictions:
    """Find the cases of a folder, and check their files as far as possible without reading them whole.

    Args:
        folder: nnU-Net's predictions, each with an .npz.
        labels_folders: the ground truth, with the file ending that dataset.json gives, or a folder for each of several
            raters, or one that has a folder of frequencies for each structure; None means the segmentations in
            `folder`.
        dataset_json: None means that of `folder`, or of one or two folders above, as for a fold's validation.
        plans_json: None means the plans.json beside dataset.json. Without it, as in the output of nnUNetv2_ensemble,
            the reader for label maps is chosen from dataset.json alone.
        allow_missing: leave out cases that lack a file instead of refusing.
        boundary_mm: half width of the boundary scope; None means the default for the voxel size in plans.json, or
            else of the first case.

    Raises:
        ValueError: if a file is missing, damaged, or belongs to another dataset.
    """
    what = "segmentation" if labels_folders is None else "label map"
    if labels_folders is None:  # nothing is measured, so no .pkl needs to be read
        boundary_mm = BOUNDARY_MM
    raters = [labels_folders or folder] if isinstance(labels_folders, Path | None) else [*labels_folders]
    _check_folders(folder, [] if labels_folders is None else raters)
    if len({rater.resolve() for rater in raters}) < len(raters):
        raise ValueError(f"expected a folder for each rater, got one twice ({', '.join(map(str, raters))})")
    dataset_json = dataset_json or _dataset_json_of(folder)
    dataset = _read_json(dataset_json, _DATASET)
    if plans_json is None and (beside := dataset_json.parent / "plans.json").is_file():
        plans_json = beside
    plans = {} if plans_json is None else _read_json(plans_json, _PLANS)
    ending = _file_ending(dataset, dataset_json)
    heads = _heads(dataset, plans, dataset_json)
    frequencies = [] if labels_folders is None else _frequency_folders(raters, ending, heads)
    truths = [raters[0] / name for name in frequencies] or raters
    probabilities, labelled = _cases(folder, ".npz"), [_cases(truth, ending) for truth in truths]
    check_cases(probabilities.union(*labelled))
    if not probabilities:
        raise ValueError(f"expected an .npz for each case, found none in {folder}: {SAVE_THEM}")
    for truth, found in zip(truths, labelled, strict=True):
        if not found:
            raise ValueError(f"expected {what}s that end with {ending}, as {dataset_json} says, found none in {truth}")
    labels = set.intersection(*labelled)
    cases, missing = _complete(probabilities, labels, _cases(folder, ending), what, allow_missing)
    first_labels = truths[0] / f"{cases[0]}{ending}"
    reader = _reader(dataset, plans, first_labels)
    if boundary_mm is None:
        spacing = spacing_of_plans(plans) or image_spacing(folder / f"{cases[0]}.npz")
        boundary_mm = default_boundary_mm(spacing or _label_spacing(reader, first_labels))
    _check_archives([folder / f"{case}.npz" for case in cases], heads, dataset_json)
    return Predictions(
        folder,
        raters[0],
        ending,
        reader,
        heads,
        {
            "dataset": plans.get("dataset_name", _text(dataset.get("name"))),
            "plans": plans.get("plans_name"),
            "fold": None,
            "weights_sha256": None,
            "predictions": str(folder.resolve()),
            **({"raters": len(raters)} if len(raters) > 1 else {}),
        },
        cases,
        missing,
        boundary_mm,
        tuple(raters[1:]),
        tuple(frequencies),
    )


def _frequency_folders(raters: Sequence[Path], ending: str, heads: Heads) -> list[str]:
    """Return the names of the folders with frequencies of the labels 1, 2, ..., none where there are label maps."""
    of_labels = [name for i, name in enumerate(heads.folders) if i != heads.background]
    there = [name for name in of_labels if (raters[0] / name).is_dir()]
    if len(raters) > 1 or not there or _cases(raters[0], ending):
        return []
    if heads.regions is not None:
        raise ValueError(
            f"expected label maps for a model of regions, found folders of frequencies in {raters[0]}: name a folder "
            f"of label maps for each rater"
        )
    if missing := [name for name in of_labels if name not in there]:
        raise ValueError(
            f"expected a folder of frequencies for each structure in {raters[0]}, found none for {', '.join(missing)}: "
            f"add it, with zeros where no rater saw the structure"
        )
    return of_labels


def _file_ending(dataset: dict[str, Any], dataset_json: Path) -> str:
    """Return the file ending of the label maps, checked to begin with a dot as nnU-Net's readers expect."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    ending: str = dataset["file_ending"]
    if any(f".{ending}".lower() in reader.supported_file_endings for reader in LIST_OF_IO_CLASSES):
        raise ValueError(f"expected file_ending .{ending} in {dataset_json}, found {ending}: add the dot")
    return ending


def _text(name: Any) -> str | None:
    """Return a dataset's name, or None: nnU-Net ignores this entry, so it may hold anything."""
    return str(name) if isinstance(name, str | int | float) else None


def _check_folders(folder: Path, raters: Sequence[Path]) -> None:
    """Raise ValueError unless the folders of predictions and labels are there, each with its own files."""
    for kind, flag, path in (("predictions", "-i", folder), *(("labels", "-gt", rater) for rater in raters)):
        if not path.is_dir():
            raise ValueError(f"expected a folder with {kind}, found none at {path}: name it with {flag}")
    if not any(folder.glob("*.npz")) and any(path for rater in raters for path in rater.glob("*.npz")):
        raise ValueError(f"expected predictions with .npz in {folder}, found them beside the labels: swap -i and -gt")


def _dataset_json_of(folder: Path) -> Path:
    # above the path as given, and above the target of a link
    for candidate in (f for p in (folder.absolute(), folder.resolve()) for f in (p, *p.parents[:_FOLDERS_ABOVE])):
        if (candidate / "dataset.json").is_file():
            return candidate / "dataset.json"
    raise ValueError(
        f"expected nnU-Net's dataset.json in {folder} or up to {_FOLDERS_ABOVE} folders above, found none: name it "
        f"with -djfile, and the plans with -pfile"
    )


def _read_json(path: Path, form: dict[str, Any]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path, form, "name another, or restore it")
    except OSError as error:
        raise ValueError(
            f"expected a JSON file of nnU-Net's, found {path} unreadable ({error}): name another, or restore it"
        ) from error
    return content


def _label_spacing(reader: Any, file: Path) -> Sequence[float] | None:
    """Return the voxel size of a label map, or None if it is unreadable, which measuring will report."""
    with contextlib.suppress(Exception):
        spacing: Sequence[float] = reader.read_seg(str(file))[1]["spacing"]
        return spacing
    return None


def _cases(folder: Path, ending: str) -> set[str]:
    """Return the names of the cases with a file in a folder; hidden files belong to the operating system."""
    names = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    return {name.removesuffix(ending) for name in names if name.endswith(ending)}


def _complete(
    probabilities: set[str], labels: set[str], segmentations: set[str], what: str, allow_missing: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the cases that have both files, and of the others."""
    predicted = probabilities | segmentations
    problems = [
        f"{kind} for {_listed(missing)}"
        for kind, missing in (
            (f"no {what.removesuffix(' map')}", predicted - labels),
            (f"no .npz ({SAVE_THEM})", (segmentations & labels) - probabilities),
            ("no prediction", labels - predicted),
        )
        if missing
    ]
    complete = probabilities & labels
    if problems and not (complete and allow_missing):
        advice = "do both folders hold the same cases?"
        if complete:
            advice = "add what is missing, or take the others with --chill"
        raise ValueError(f"expected a {what} and an .npz for each case, found {'; '.join(problems)}: {advice}")
    return tuple(sorted(complete)), tuple(sorted((predicted | labels) - complete))


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def _heads(dataset: dict[str, Any], plans: dict[str, Any], dataset_json: Path) -> Heads:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    check_dataset(dataset, dataset_json)
    try:
        if plans:
            return Heads.of(PlansManager(plans).get_label_manager(dataset))
        return Heads.of(LabelManager(dataset["labels"], dataset.get("regions_class_order")))
    except Exception as error:  # nnU-Net's checks are assertions
        raise ValueError(
            f"expected labels that nnU-Net accepts, found others in {dataset_json} ({reason(error)}): correct them"
        ) from error


def _reader(dataset: dict[str, Any], plans: dict[str, Any], example: Path) -> Any:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        if plans:
            return PlansManager(plans).image_reader_writer_class()
        # nnU-Net reports every reader that does not fit
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            return determine_reader_writer_from_dataset_json(dataset, str(example), verbose=False)()
    except Exception as error:  # a reader of this name may be anything
        raise ValueError(
            f"expected label maps for which nnU-Net has a reader, found none for {example} ({reason(error)}): name the "
            f"plans that nnU-Net predicted with, with -pfile"
        ) from error


def _check_archives(paths: Sequence[Path], heads: Heads, dataset_json: Path) -> None:
    """Raise ValueError for the first .npz that is unreadable or belongs to another model; warn of coarse ones."""
    coarse = []
    for path in paths:
        found = describe_npz(path)
        if len(found.shape) != 4 or found.shape[0] != len(heads.keys):
            raise ValueError(
                f"expected probabilities (C, *spatial) of the {len(heads.keys)} "
                f"{'classes' if heads.regions is None else 'regions'} of {dataset_json} ({', '.join(heads.names)}), "
                f"found shape {found.shape} in {path}: is it of the same dataset?"
            )
        coarse += [found.dtype.name] * (found.dtype.kind == "u")
    if coarse:
        print(
            f"{len(coarse)} .npz hold {' and '.join(sorted({*coarse}))}, which round small probabilities to 0: NLL "
            f"and temperature are rough estimates; save float32 for exact ones",
            file=sys.stderr,
        )
