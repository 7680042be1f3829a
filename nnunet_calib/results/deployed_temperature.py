"""The temperature, or other calibrator, to deploy a model with, and the check that it belongs to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from nnunet_calib.io.json_forms import check_form, read_json
from nnunet_calib.io.wording import one_line, reason, shortened
from nnunet_calib.posthoc import from_json, kind_of
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.fold_summary import FittedOn, temperature_content
from nnunet_calib.results.layout import CALIBRATORS, Fold, ModelFolder
from nnunet_calib.results.measured_folds import splits_of
from nnunet_calib.results.schemas import CALIBRATOR_FITS, TEMPERATURE, TemperatureContent

OWN = "folds"


@dataclass(frozen=True)
class Deployed:
    """A calibrator and its source.

    Attributes:
        content: content of temperature.json; for a number, the same entries with nothing known of a fit.
        source: the file, relative to the model's folder if it lies there; None for a number.
    """

    content: dict[str, Any]
    source: str | None

    @property
    def calibrator(self) -> Calibrator:
        """The calibrator to apply."""
        return from_json(self.content)

    def describe(self) -> str:
        """Return a line about the calibrator for the user."""
        if self.source is None:
            return f"{self.calibrator.words('.6g')}, as given"
        error, folds, cases = (self.content.get(name) for name in ("standard_error", "folds", "cases"))
        line = self.calibrator.words()
        if error is not None and isinstance(self.calibrator, Temperature):
            line += f", standard error {error:.4f}"
        if cases:
            line += f", fitted on {len(cases)} case{'s' * (len(cases) > 1)}"
        if folds:
            line += f" of fold{'s' * (len(folds) > 1)} {' '.join(map(str, folds))}"
        return f"{line}: {self.source}"

    def origin(self) -> dict[str, Any]:
        """Return how it was fitted, without names of cases or folders, which could identify patients or machines."""
        cases = self.content.get("cases")
        return {
            "file": None
            if self.source is None
            else Path(self.source).name
            if Path(self.source).is_absolute()
            else self.source,
            "folds": self.content.get("folds"),
            "cases": len(cases) if cases else None,
            "in_sample": self.content.get("in_sample"),
        }

    def check(self, model_folder: ModelFolder, fold: Fold, weights_sha256: str) -> None:
        """Raise ValueError, in one sentence, if the recorded model is another one."""
        difference = model_difference(self.content.get("model") or {}, model_folder, fold, weights_sha256)
        if difference is None:
            return
        advice = "name another with --temperature, or give a number to use it all the same"
        if difference.of == _WEIGHTS:
            advice = f"{_measure(model_folder, [fold])}, or name the checkpoint that was measured with -chk"
        raise ValueError(
            f"expected a temperature of {difference.expected}, found one of {difference.found} in {self.source}: "
            f"{advice}"
        )


class ModelDifference(NamedTuple):
    """A difference between the model that a file was made for and a deployed one, in words for a message."""

    of: str
    expected: str
    found: str


_WEIGHTS = "weights_sha256"


def model_difference(
    recorded: Mapping[str, Any], model_folder: ModelFolder, fold: Fold, weights_sha256: str
) -> ModelDifference | None:
    """Return how the model recorded in a file differs from a fold of a model; None if it does not, as far as it says.

    Args:
        recorded: the entry `model` of the file.
        model_folder: the deployed model.
        fold: its fold.
        weights_sha256: hash of the fold's weights.
    """
    weights = recorded.get(_WEIGHTS)
    if weights is not None and (weights.get(str(fold)) if isinstance(weights, dict) else weights) == weights_sha256:
        return None  # the same network, whatever the name of its dataset
    for name, value in model_folder.identity.items():
        if recorded.get(name) not in (None, value):
            return ModelDifference(name, f"{name} {value}", one_line(str(recorded[name])))
    if isinstance(weights, dict) and str(fold) not in weights:
        return ModelDifference("fold", f"fold {fold}", f"folds {one_line(' '.join(weights))}")
    if isinstance(weights, dict):
        weights = weights[str(fold)]
    if weights not in (None, weights_sha256):
        return ModelDifference(_WEIGHTS, f"the weights in this checkpoint of fold {fold}", "other weights")
    return None


def find_temperature(
    model_folder: ModelFolder, folds: Sequence[Fold], given: str | None = None, kind: str | None = None
) -> Deployed:
    """Return the temperature, or other calibrator, for folds of a model.

    Args:
        model_folder: nnU-Net's folder of the model, with the folders `fold_X`.
        folds: folds to deploy.
        given: a number, a temperature.json or a calibrators.json. None takes that of the largest cross-validation that
            has all of `folds`; a single fold without one has its own.
        kind: kind of the calibrator; None means that of a given file, else a temperature.

    Raises:
        ValueError: in one sentence, if there is none, if the data did not determine it, or if the model was trained on
            these data.
    """
    if given is not None:
        content = given_temperature(given, kind)
        return Deployed(content, _relative(Path(given), model_folder) if content.get("model") else None)
    name = _file_of(kind)
    found = merged_temperature(model_folder, folds, name)
    if found is None and len(folds) == 1:
        found = model_folder.calibration(folds[0]) / name
    if found is None or not found.is_file():
        raise ValueError(_none_found(model_folder, folds, kind))
    return read_temperature(found, model_folder, kind)


def _file_of(kind: str | None) -> str:
    """Return the name of the file with a kind of calibrator."""
    return "temperature.json" if kind in (None, Temperature.kind) else CALIBRATORS


def _none_found(model_folder: ModelFolder, folds: Sequence[Fold], kind: str | None) -> str:
    """Return the message that folds have no calibrator of a kind."""
    named = f"fold{'s' * (len(folds) > 1)} {' '.join(map(str, folds))} of {model_folder}"
    if kind in (None, Temperature.kind):
        return (
            f"expected the temperature of {named}, found none: {_measure(model_folder, folds)}, or give one with "
            f"--temperature"
        )
    command = (
        f"{model_folder.command('crossval', *folds)} --calibrators {kind}"
        if len(folds) > 1
        else f"{model_folder.validate_command(*folds)} --calibrator {kind}, or crossval --calibrators {kind}"
    )
    return f"expected a calibrator of kind {kind} for {named}, found none: fit one with {command}"


def read_temperature(found: Path, model_folder: ModelFolder, kind: str | None = None) -> Deployed:
    """Return the calibrator in a file of the model; errors as for `find_temperature`."""
    return _unseen(given_temperature(str(found), kind), found, model_folder)


def _unseen(content: dict[str, Any], found: Path, model_folder: ModelFolder) -> Deployed:
    """Return the calibrator in a file of the model, or raise ValueError if it was fitted on training cases."""
    _check_determined(content, str(found))
    seen = _seen_in_training(content, model_folder)
    if content.get("in_sample") or seen:
        named = f" ({shortened(seen)})" if seen else ""
        raise ValueError(
            f"expected a temperature fitted on cases the model was not trained on, found {found} fitted on training "
            f"cases{named}: fit one to a hold-out set with nnunet_calib fit and name it with --temperature"
        )
    return Deployed(content, _relative(found, model_folder))


def _seen_in_training(content: dict[str, Any], model_folder: ModelFolder) -> list[str]:
    """Return the training cases among the cases of a fit; older files do not record them, splits_final.json does."""
    if (recorded := content.get("seen_in_training")) is not None:
        return list(recorded)
    trained_as = (content.get("model") or {}).get("dataset")
    _, splits = splits_of(model_folder.preprocessed(str(trained_as or "")))
    folds = [fold for fold in content.get("folds") or () if isinstance(fold, int) and 0 <= fold < len(splits)]
    return sorted({case for fold in folds for case in splits[fold].overlap} & {*content.get("cases", ())})


def merged_temperature(model_folder: ModelFolder, folds: Sequence[Fold], name: str = "temperature.json") -> Path | None:
    """Return the temperature.json, or another file, of the largest cross-validation that has all of these folds."""
    found: dict[int, list[Path]] = {}
    for names, file in model_folder.crossvals(name):
        if {*map(str, folds)} <= {*names}:
            found.setdefault(len(names), []).append(file)
    if not found:
        return None
    most = found[max(found)]
    if len(most) > 1:
        raise ValueError(
            f"expected one cross-validation with most folds, found {' and '.join(map(str, most))}: name one of them "
            f"with --temperature"
        )
    return most[0]


def _measure(model_folder: ModelFolder, folds: Sequence[Fold]) -> str:
    """Return, as a clause of a message, how to get the temperature of folds on this machine."""
    if not model_folder.has_training_data():  # as for a model installed from a zip
        return (
            "its preprocessed data, with which to measure it, are not in nnUNet_preprocessed here: get a checkpoint "
            "with a temperature from where they are, which nnunet_calib bake writes"
        )
    merge = f", then merge the folds with {model_folder.command('crossval', *folds)}" if len(folds) > 1 else ""
    return f"measure it with {model_folder.validate_command(*folds)}{merge}"


def _relative(file: Path, model_folder: ModelFolder) -> str:
    try:
        return file.resolve().relative_to(model_folder.path.resolve()).as_posix()
    except ValueError:
        return str(file)


def find_temperatures(
    model_folder: ModelFolder, folds: Sequence[Fold], given: str | None = None, kind: str | None = None
) -> tuple[Deployed, ...]:
    """Return a temperature for each fold.

    Args:
        model_folder: nnU-Net's folder of the model, with the folders `fold_X`.
        folds: folds whose networks predict.
        given: a number, a temperature.json or a calibrators.json for all folds, or "folds" for the calibrator of each
            fold's own validation cases. None takes that of the merged folds, or each fold's own without merged ones.
        kind: as for `find_temperature`.

    Raises:
        ValueError: as for `find_temperature`.
    """
    name = _file_of(kind)
    if given is None and merged_temperature(model_folder, folds, name) is None:
        given = OWN
    if given != OWN:
        return (find_temperature(model_folder, folds, given, kind),) * len(folds)
    files = [model_folder.calibration(fold) / name for fold in folds]
    missing = [fold for fold, file in zip(folds, files, strict=True) if not file.is_file()]
    if missing:
        find_temperature(model_folder, missing, kind=kind)  # raises, with the command that makes them
    return tuple(read_temperature(file, model_folder, kind) for file in files)


def given_temperature(value: str, kind: str | None = None) -> dict[str, Any]:
    """Return the content of a temperature.json, or the same entries for a number or a kind in a calibrators.json.

    Args:
        value: the number, or the path of the file.
        kind: kind of the calibrator; None means that of a temperature.json.

    Raises:
        ValueError: if the value is neither, if it has no calibrator of the kind, or if the data did not determine it.
    """
    wanted = "expected a temperature above 0, or a temperature.json of nnunet_calib"
    try:
        number = float(value)
    except ValueError:
        return _fitted_before(value, wanted, kind)
    if kind not in (None, Temperature.kind):
        raise ValueError(
            f"expected --temperature with a calibrators.json for --calibrator {kind}, got the number {value}: name the "
            f"file that nnunet_calib fit --calibrator {kind} or crossval --calibrators {kind} has written"
        )
    try:
        parameters = Temperature(number).to_json()
    except ValueError as error:
        raise ValueError(f"{wanted}, got {number}") from error
    unknown = dict.fromkeys(("standard_error", "nll_before", "nll_after", "at_bound"))
    return temperature_content(parameters | unknown, FittedOn())


def _fitted_before(file: str, wanted: str, kind: str | None) -> dict[str, Any]:
    """Return the content of a temperature.json with any kind of calibrator, or of one kind in a calibrators.json."""
    try:
        content: dict[str, Any] = read_json(Path(file), TEMPERATURE, "fit it again")
        several = "calibrators" in content
        if several:
            check_form(content, CALIBRATOR_FITS, Path(file), "fit it again")
        else:
            from_json(content)
    except FileNotFoundError as error:
        raise ValueError(f"{wanted}, got {file}, which is neither: name a number, or an existing file") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{wanted}, got {file} ({type(error).__name__}: {reason(error)})") from error
    kinds = [*content["calibrators"]] if several else [kind_of(content).kind]
    if (several and kind is None) or kind not in (None, *kinds):
        raise ValueError(
            f"expected {'one of the kinds' if kind is None else f'a calibrator of kind {kind}'} in {file}, got "
            f"{'no --calibrator' if kind is None else 'none'}: name {one_line(' or '.join(kinds))} with --calibrator"
        )
    if several:
        shared = {name: value for name, value in content.items() if name in get_type_hints(TemperatureContent)}
        content = shared | content["calibrators"][kind]["fit"]
    _check_determined(content, file)
    return content


def _check_determined(content: dict[str, Any], file: str) -> None:
    """Raise ValueError for a calibrator that its data did not determine."""
    try:
        calibrator = from_json(content)
    except ValueError as error:
        raise ValueError(f"{error} in {file}: fit it again") from error
    if content.get("at_bound"):
        raise ValueError(
            f"expected a temperature that the data determine, found {calibrator.words('')} on the bound of the search "
            f"in {file}: look at the predictions it was fitted on, or give the number itself"
        )
