"""Which temperature a model is deployed with, and whether it is one of this model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_calib.io.atomic_files import one_line
from nnunet_calib.nnunet.validation.evaluate import given_temperature
from nnunet_calib.results.measured_folds import some, splits_of
from nnunet_calib.results.layout import Fold, ModelFolder


@dataclass(frozen=True)
class Deployed:
    """A temperature and where it comes from.

    Attributes:
        content: of temperature.json; of a number, the same with nothing known of its fit.
        source: the file, relative to the model's folder where it lies in it; None for a number.
    """

    content: dict[str, Any]
    source: str | None

    @property
    def temperature(self) -> float:
        """T."""
        return float(self.content["temperature"])

    def describe(self) -> str:
        """A line for the user."""
        if self.source is None:
            return f"T = {self.temperature:.6g}, as given"
        error, folds, cases = (self.content.get(name) for name in ("standard_error", "folds", "cases"))
        line = f"T = {self.temperature:.4f}"
        if error is not None:
            line += f", standard error {error:.4f}"
        if cases:
            line += f", fitted on {len(cases)} case{'s' * (len(cases) > 1)}"
        if folds:
            line += f" of fold{'s' * (len(folds) > 1)} {' '.join(map(str, folds))}"
        return f"{line}: {self.source}"

    def origin(self) -> dict[str, Any]:
        """How T was fitted, without what could tell of patients or machines: names of cases and of folders."""
        cases = self.content.get("cases")
        return {
            "file": None if self.source is None else Path(self.source).name if Path(self.source).is_absolute()
            else self.source,
            "folds": self.content.get("folds"), "cases": len(cases) if cases else None,
            "in_sample": self.content.get("in_sample"),
        }  # fmt: skip

    def check(self, model_folder: ModelFolder, fold: Fold, weights_sha256: str) -> None:
        """Raise ValueError, in one sentence, if it was fitted on another model, as far as it records its model."""
        recorded = self.content.get("model") or {}
        weights = recorded.get("weights_sha256")
        if weights is not None and (weights.get(str(fold)) if isinstance(weights, dict) else weights) == weights_sha256:
            return  # the same network, whatever its dataset has been called
        for name, value in model_folder.identity.items():
            if recorded.get(name) not in (None, value):
                raise ValueError(
                    f"expected a temperature of {name} {value}, found one of {one_line(str(recorded[name]))} in "
                    f"{self.source}: name another with --temperature, or give a number to use it all the same"
                )
        if isinstance(weights, dict) and str(fold) not in weights:
            raise ValueError(
                f"expected a temperature of fold {fold}, found one of folds {one_line(' '.join(weights))} in "
                f"{self.source}: name another with --temperature, or give a number to use it all the same"
            )
        if isinstance(weights, dict):
            weights = weights[str(fold)]
        if weights not in (None, weights_sha256):
            raise ValueError(
                f"expected a temperature of the weights in this checkpoint of fold {fold}, found one of other weights "
                f"in {self.source}: {_measure(model_folder, [fold])}, or name the checkpoint that was measured with "
                f"-chk"
            )


def find_temperature(model_folder: ModelFolder, folds: Sequence[Fold], given: str | None = None) -> Deployed:
    """The temperature for folds of a model.

    Args:
        model_folder: of nnU-Net, with the folders `fold_X`.
        folds: those to deploy.
        given: a number or a temperature.json; None takes that of the cross-validation with most folds among those that
            have all of `folds`, else, for a single fold, its own.

    Raises:
        ValueError: in one sentence, if there is none, or if it was not determined by data the model had not seen.
    """
    if given is not None:
        content = given_temperature(given)
        return Deployed(content, _relative(Path(given), model_folder) if "model" in content else None)
    found = merged_temperature(model_folder, folds)
    if found is None and len(folds) == 1:
        found = model_folder.calibration(folds[0]) / "temperature.json"
    if found is None or not found.is_file():
        raise ValueError(
            f"expected the temperature of fold{'s' * (len(folds) > 1)} {' '.join(map(str, folds))} of {model_folder}, "
            f"found none: {_measure(model_folder, folds)}, or give one with --temperature"
        )
    return read_temperature(found, model_folder)


def read_temperature(found: Path, model_folder: ModelFolder) -> Deployed:
    """The temperature in a file of the model, fitted on data it had not seen; errors as `find_temperature`."""
    content = given_temperature(str(found))
    seen = _seen_in_training(content, model_folder)
    if content.get("in_sample") or seen:
        named = f" ({some(seen)})" if seen else ""
        raise ValueError(
            f"expected a temperature fitted on cases the model was not trained on, found {found} fitted on training "
            f"cases{named}: fit one to a hold-out set with nnunet_calib fit and name it with --temperature"
        )
    return Deployed(content, _relative(found, model_folder))


def _seen_in_training(content: dict[str, Any], model_folder: ModelFolder) -> list[str]:
    """The cases of a fit that its networks were trained on; of older files, those that splits_final.json tells."""
    if (recorded := content.get("seen_in_training")) is not None:
        return list(recorded)
    trained_as = (content.get("model") or {}).get("dataset")
    _, splits = splits_of(model_folder.preprocessed(str(trained_as or "")))
    folds = [fold for fold in content.get("folds") or () if isinstance(fold, int) and 0 <= fold < len(splits)]
    return sorted({case for fold in folds for case in splits[fold].overlap} & {*content.get("cases", ())})


def merged_temperature(model_folder: ModelFolder, folds: Sequence[Fold]) -> Path | None:
    """The temperature.json of the cross-validation with most folds that has all of these."""
    found: dict[int, list[Path]] = {}
    for names, file in model_folder.crossvals("temperature.json"):
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
    """What makes the temperature of folds."""
    merge = f", then merge the folds with {model_folder.command('crossval', *folds)}" if len(folds) > 1 else ""
    return f"measure it with {model_folder.validate_command(*folds)}{merge}"


def _relative(file: Path, model_folder: ModelFolder) -> str:
    try:
        return file.resolve().relative_to(model_folder.path.resolve()).as_posix()
    except ValueError:
        return str(file)
