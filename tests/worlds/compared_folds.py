"""Two models of one dataset, made here, with nnU-Net's own summary.json beside their calibration files."""

import json

from tests.worlds.measured_folds import DATASET, TRAINER, Model, made

OTHER = "nnUNetTrainerNACL"
COMPARE = ["compare", "-d", "4", "-c", "3d_fullres", "-tr", TRAINER, OTHER]
# of the two foreground classes; the second model is better by .02 on average, in all cases but the first
DICE = {f"case.{i}": (0.70 + 0.03 * i, 0.60 + 0.01 * i) for i in range(8)}
DICE_OTHER = {
    name: (a + gain, b + gain)
    for (name, (a, b)), gain in zip(DICE.items(), (-0.01, 0.01, 0.02, 0.03, 0.04, 0.05, 0.015, 0.005), strict=True)
}


def write_dice(model, fold, dice, *, keys=("1", "2"), slash="/"):
    """What nnU-Net leaves of a validation."""
    (model.folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    rows = [
        {
            "metrics": {key: {"Dice": value} for key, value in zip(keys, dice[name], strict=True)},
            "prediction_file": slash.join(["", "elsewhere", "validation", f"{name}.nii.gz"]),
        }
        for name in model.cases[fold]
    ]
    (model.calibration(fold).parent / "summary.json").write_text(json.dumps({"metric_per_case": rows}))


def two_models(root, folds=2, cases=4):
    """Two folds of four cases; the first model is surer of itself than it should be, the second a little."""
    models = []
    for trainer, sure, dice in ((TRAINER, 2.0, DICE), (OTHER, 1.2, DICE_OTHER)):
        model = Model(root, trainer=trainer, weights=trainer)
        for fold in range(folds):
            numbers = range(cases * fold, cases * (fold + 1))
            model.write(fold, {f"case.{i}": made(i, sure + 0.1 * fold) for i in numbers})
            write_dice(model, fold, dice)
        models.append(model)
    return models


__all__ = ["COMPARE", "DATASET", "DICE", "DICE_OTHER", "OTHER", "TRAINER", "two_models", "write_dice"]
