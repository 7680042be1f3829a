"""The tables of docs/results-STUDY.md, from the files of `collect` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_calib.io.wording import missing
from nnunet_calib.metrics.catalogue import LABELS
from nnunet_calib.metrics.significance import holm, paired_difference, resampling_counts, training_difference
from nnunet_calib.posthoc import KINDS
from nnunet_calib.report.comparison_page import SURE
from nnunet_calib.results.error_tree import mean_of_known
from nnunet_calib.results.schemas import CALIBRATED, STAGES, UNCALIBRATED

FEW = 3  # voxels of a bin, which can observe no more than four frequencies
# metric, of, name, digits
COLUMNS = (
    ("dice", "foreground_mean", "Dice", 3),
    *((metric, "foreground_mean", LABELS[metric], digits) for metric, digits in (("ece", 4), ("ace", 3), ("mce", 3))),
    *((metric, None, LABELS[metric], 4) for metric in ("nll", "brier")),
)


def find(comparison: dict[str, Any], metric: str, of: str | None, stage: str, model: str) -> dict[str, Any]:
    """Return a model's values of one metric of the image; Dice has one for both stages."""
    for group in comparison["results"]:
        same = (group["metric"], group["of"], group["scope"]) == (metric, of, "image")
        if same and group["stage"] in (stage, "both"):
            return next(row for row in group["models"] if row["model"] == model)
    raise KeyError((metric, of, stage, model))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def means_table(comparison: dict[str, Any], stage: str) -> str:
    """Return a row for each method: means with their intervals."""
    rows = [["method", "T", *(name for _, _, name, _ in COLUMNS)]]
    for model in comparison["models"]:
        cells = [model["name"], _temperature(model, stage)]
        for metric, of, _, digits in COLUMNS:
            row = find(comparison, metric, of, stage, model["name"])
            low, high = row["interval"]
            cells.append(f"{decimal(row['mean'], digits)} ({decimal(low, digits)} to {decimal(high, digits)})")
        rows.append(cells)
    return markdown(rows)


def decimal(value: float | None, digits: int, sign: str = "") -> str:
    """Return a number for a table, a dash without one."""
    return "-" if missing(value) else f"{value:{sign}.{digits}f}"


def changed(mean: float | None, low: float | None, high: float | None, digits: int) -> str:
    """Return a difference with its interval."""
    return f"{decimal(mean, digits, '+')} ({decimal(low, digits, '+')} to {decimal(high, digits, '+')})"


def differences_table(comparison: dict[str, Any], stage: str) -> str:
    """Return a row for each method but the first: paired differences from it, intervals and corrected p."""
    rows = [["method", *(name for _, _, name, _ in COLUMNS)]]
    for model in comparison["models"]:
        if model["name"] == comparison["first_model"]:
            continue
        cells = [model["name"]]
        for metric, of, _, digits in COLUMNS:
            row = find(comparison, metric, of, stage, model["name"])
            cells.append(f"{changed(row['difference'], *row['difference_interval'], digits)}, {_p(row['p_holm'])}")
        rows.append(cells)
    return markdown(rows)


def trainings_table(comparison: dict[str, Any], cases: Sequence[dict[str, str]], stage: str, ratio: float) -> str:
    """Return a row for each method but the first: differences over trainings, bold where both tests agree.

    Args:
        comparison: of the methods, with the corrected p over cases.
        cases: the rows of cases.csv.
        stage: uncalibrated or calibrated.
        ratio: validated cases of a fold for each case it trains on.
    """
    first = comparison["first_model"]
    others = [model["name"] for model in comparison["models"] if model["name"] != first]
    cells: dict[str, list[str]] = {name: [name] for name in others}
    for metric, of, _, digits in COLUMNS:
        values = means_of_folds(cases, metric if metric == "dice" else f"{metric}_{stage}")
        found = {
            name: training_difference([values[name, k] - values[first, k] for k in comparison["folds"]], ratio)
            for name in others
        }
        corrected = holm([found[name].p for name in others])
        for name, p in zip(others, corrected, strict=True):
            text = f"{changed(found[name].mean, found[name].low, found[name].high, digits)}, {_p(p)}"
            row = find(comparison, metric, of, stage, name)
            same = (row["difference"] > 0) == (found[name].mean > 0)
            agree = same and max(p, row["p_holm"]) < SURE
            cells[name].append(f"**{text}**" if agree else text)
    return markdown([["method", *(name for _, _, name, _ in COLUMNS)], *cells.values()])


def means_of_folds(cases: Sequence[dict[str, str]], column: str) -> dict[tuple[str, int], float]:
    """Return the mean of a column of cases.csv for each method and fold."""
    values: dict[tuple[str, int], list[float]] = {}
    for row in cases:
        values.setdefault((row["model"], int(row["fold"])), []).append(float(row[column] or "nan"))
    return {key: mean_of_known(of_cases) for key, of_cases in values.items()}


def nll_table(curves: dict[str, Any]) -> str:
    """Return a row for each method: the parts of the NLL from voxels near label borders and away from them."""
    rows = [["method", *(f"{where}{when}" for when in ("", ", T") for where in ("near borders", "away", "NLL"))]]
    for method, stages in curves.items():
        cells = [method]
        for stage in STAGES:
            near, away = (part / sum(stages[stage]["voxels"]) for part in stages[stage]["nll"])
            cells += [decimal(value, 4) for value in (near, away, near + away)]
        rows.append(cells)
    return markdown(rows)


def bins_table(curves: dict[str, Any]) -> str:
    """Return a row for each method: how many voxels a bin of a single case holds; see `collect.curves`."""
    rows = [["method", "median", f"at most {FEW}", "median, T", f"at most {FEW}, T"]]
    for method, stages in curves.items():
        of_bins = (stages[stage]["of_bins"] for stage in STAGES)
        rows.append([method, *(cell for median, few in of_bins for cell in (f"{median:g}", f"{100 * few:.0f} %"))])
    return markdown(rows)


_SWEEP_COLUMNS = tuple(
    (metric, of, name + ", T" * (stage == CALIBRATED), digits, stage)
    for metric, of, name, digits in (COLUMNS[0], COLUMNS[1], COLUMNS[2], COLUMNS[4])
    for stage in (STAGES[:1] if metric == "dice" else STAGES)
)


def sweep_table(comparison: dict[str, Any]) -> str:
    """Return a row for each value: means at T = 1 and with temperature, the temperature, and the setting."""
    rows = [["run", "hyperparameters", *(name for _, _, name, _, _ in _SWEEP_COLUMNS), "T"]]
    for model in comparison["models"]:
        name = model["name"]
        cells = [name, set_here(model["hyperparameters"] or {})]
        for metric, of, _, digits, stage in _SWEEP_COLUMNS:
            cells.append(decimal(find(comparison, metric, of, stage, name)["mean"], digits))
        rows.append([*cells, _temperature(model, CALIBRATED)])
    return markdown(rows)


def sweep_differences_table(comparison: dict[str, Any]) -> str:
    """Return a row for each value: paired differences from the first model with their intervals over cases."""
    rows = [["run", *(name for _, _, name, _, _ in _SWEEP_COLUMNS)]]
    for model in comparison["models"]:
        if model["name"] == comparison["first_model"]:
            continue
        cells = [model["name"]]
        for metric, of, _, digits, stage in _SWEEP_COLUMNS:
            row = find(comparison, metric, of, stage, model["name"])
            cells.append(changed(row["difference"], *row["difference_interval"], digits))
        rows.append(cells)
    return markdown(rows)


def calibrators_table(cases: Sequence[dict[str, str]]) -> str:
    """Return rows for each method: means over the cases before and after each kind of calibrator.

    Args:
        cases: the rows of calibrators.csv.
    """
    columns = [column for column in COLUMNS if column[0] != "brier"]
    rows = [["method", "calibrator", *(name for _, _, name, _ in columns)]]
    for method in dict.fromkeys(row["model"] for row in cases):
        of_method = [row for row in cases if row["model"] == method]

        def mean(column: str, rows: Sequence[dict[str, str]] = of_method) -> float:
            return mean_of_known(float(row[column] or "nan") for row in rows)

        for stage in ("before", *KINDS):
            cells = [method if stage == "before" else "", "-" if stage == "before" else KINDS[stage].calibrator.short]
            for metric, _, _, digits in columns:
                name = f"{metric}_{stage}"
                cells.append(decimal(mean(name if name in of_method[0] else metric), digits))
            rows.append(cells)
    return markdown(rows)


def calibrator_differences_table(cases: Sequence[dict[str, str]]) -> str:
    """Return what a calibrator changes in each method, with intervals over cases.

    The first kind, a temperature, is held against no calibrator, and every other one against the temperature.

    Args:
        cases: the rows of calibrators.csv.
    """
    columns = [column for column in COLUMNS if column[0] not in ("mce", "brier")]
    rows = [["method", "calibrator", *(name for _, _, name, _ in columns)]]
    for method in dict.fromkeys(row["model"] for row in cases):
        of_method = [row for row in cases if row["model"] == method]
        counts = resampling_counts(len(of_method))

        def values(metric: str, stage: str, rows: Sequence[dict[str, str]] = of_method) -> list[float]:
            name = f"{metric}_{stage}"
            return [float(row[name if name in row else metric] or "nan") for row in rows]

        for number, kind in enumerate(KINDS):
            against = "before" if number == 0 else next(iter(KINDS))
            other = "-" if number == 0 else KINDS[against].calibrator.short
            cells = ["" if number else method, f"{KINDS[kind].calibrator.short} against {other}"]
            for metric, _, _, digits in columns:
                found = paired_difference(values(metric, kind), values(metric, against), counts)
                cells.append(changed(found.mean, found.low, found.high, digits))
            rows.append(cells)
    return markdown(rows)


def folds_table(runs: Sequence[dict[str, Any]], baseline: str) -> str:
    """Return a row for each method and fold: differences from the baseline of the same fold and seed."""
    by_run = {(run["run"]["method"], run["run"]["fold"]): run for run in runs}
    folds = sorted({fold for method, fold in by_run if method == baseline})
    rows = [["method", "metric", *(f"fold {fold}" for fold in folds)]]
    for method in dict.fromkeys(method for method, _ in by_run):
        for name, digits in (("Dice", 3), ("ACE", 3), ("NLL", 4)):
            values = [_run_value(by_run.get((method, fold)), name) for fold in folds]
            if method == baseline:
                rows.append([method, name, *(decimal(value, digits) for value in values)])
                continue
            base = [_run_value(by_run[baseline, fold], name) for fold in folds]
            cells = ["-" if v is None else decimal(v - b, digits, "+") for v, b in zip(values, base, strict=True)]
            rows.append([method, name, *cells])
    return markdown(rows)


def _run_value(run: dict[str, Any] | None, name: str) -> float | None:
    if run is None:
        return None
    if name == "Dice":
        return run["dice"]["foreground_mean"]
    image = run["calibration"][UNCALIBRATED]["image"]
    return image["nll"] if name == "NLL" else image["foreground_mean"]["ace"]


# Hyperparameters whose values the sweep changes, and how tables name them.
_SWEPT = {
    "nacl_weight": "NACL",
    "ml1_ace_weight": "mL1-ACE",
    "svls_sigma": "sigma",
    "ls_alpha": "alpha",
    "mbls_weight": "MbLS",
    "mbls_margin": "margin",
    "focal_gamma": "gamma",
    "ecp_weight": "entropy",
    "dsc_plus_plus_gamma": "gamma",
    "mdca_weight": "MDCA",
}


def swept_value(hyperparameters: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return kind ("weight", "sigma", ...) and value of the first hyperparameter that the sweep changes, if any."""
    for key in _SWEPT:
        if key in hyperparameters:
            return key.rpartition("_")[2], float(hyperparameters[key])
    return "", None


def variant(hyperparameters: Mapping[str, Any]) -> str:
    """Return what a run changes besides a value; "" for a method's own setting."""
    if others := _other_changes(hyperparameters):
        return ", ".join(others)
    scheduled = "nacl_weight" in hyperparameters or "ml1_ace_weight" in hyperparameters
    return "whole from the start" if scheduled and not _warmup(hyperparameters) else ""


def _warmup(hyperparameters: Mapping[str, Any]) -> int:
    return int(hyperparameters.get("nacl_warmup_epochs") or hyperparameters.get("ml1_ace_warmup_epochs") or 0)


def _other_changes(hyperparameters: Mapping[str, Any]) -> list[str]:
    parts = []
    if hyperparameters.get("ml1_ace_pool_with_batch_dice"):
        parts.append("bins pooled over the batch")
    if hyperparameters.get("ml1_ace_every_resolution") is False:
        parts.append("full resolution only")
    if hyperparameters.get("nacl_on") == "probabilities":
        parts.append("on probabilities")
    return parts


def set_here(hyperparameters: Mapping[str, Any]) -> str:
    """Return the hyperparameters that the sweep varies, in words."""
    parts = [f"{label} {hyperparameters[key]:g}" for key, label in _SWEPT.items() if key in hyperparameters]
    if epochs := _warmup(hyperparameters):
        parts.append(f"whole after {epochs} epochs")
    if hyperparameters.get("ml1_ace_binning") == "soft":
        parts.append("soft bins")
    return ", ".join(parts + _other_changes(hyperparameters)) or "-"


def _temperature(model: dict[str, Any], stage: str) -> str:
    return "1" if stage == UNCALIBRATED else decimal(model["temperature"]["mean"], 2)


def _p(value: float | None) -> str:
    if missing(value):
        return "-"
    return "p < .001" if value < 0.001 else f"p {value:.3f}".replace("0.", ".")
