"""The study's tables of the demo's data, from values whose order is known."""

import pytest

from benchmarks.study.truth import agreement_table, case_values, truth_table

COLUMNS = ("ece", "ace", "mce", "nll", "kl_to_truth", "distance_to_truth")


def told(ace_sign: int) -> dict:
    """Three trainers, four cases: the distances rise from trainer to trainer, the ACE with `ace_sign`, the ECE not."""
    models = {}
    for number, name in enumerate(["nnUNetTrainerA", "nnUNetTrainerB", "nnUNetTrainerC"]):
        values = dict.fromkeys(COLUMNS, 0.0) | {
            "kl_to_truth": 0.1 * number,
            "distance_to_truth": 0.2 * number,
            "nll": 0.3 + 0.1 * number,
            "ace": 0.5 + ace_sign * 0.1 * number,
            "ece": [0.2, 0.1, 0.3][number],
            "mce": 0.5 - 0.1 * number,
        }
        order = range(4) if number else range(3, -1, -1)  # cases are matched by name
        cases = [{"case": f"case_{k}"} | dict.fromkeys(("uncalibrated", "calibrated"), values) for k in order]
        models[name] = {"dice": 0.8, "temperature": 1.25, "uncalibrated": values, "calibrated": values, "cases": cases}
    return {"models": models, "true_probabilities": dict.fromkeys(COLUMNS, 0.0)}


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0] + (f" {row[1]}" if row[1] in ("1.00", "1.25") else ""): row[1:] for row in rows}


@pytest.mark.parametrize(("sign", "tau"), [(1, "+1.00 (+1.00 to +1.00)"), (-1, "-1.00 (-1.00 to -1.00)")])
def test_agreement(sign, tau):
    """Errors that rise with the distance agree wholly, those that fall with it not at all."""
    found = cells(agreement_table(told(sign)))
    assert found["ACE"] == [tau] * 4
    assert found["NLL"] == ["+1.00 (+1.00 to +1.00)"] * 4
    assert found["MCE"] == ["-1.00 (-1.00 to -1.00)"] * 4
    assert found["ECE"] == ["+0.33 (+0.33 to +0.33)"] * 4  # two pairs of three


def test_cases_are_matched_by_name():
    """Whatever their order."""
    mixed = told(1)
    for model in mixed["models"].values():
        for case in model["cases"]:
            case["uncalibrated"] = case["uncalibrated"] | {"ace": float(case["case"][-1])}
    assert (case_values(mixed, "ace", ("uncalibrated",)) == [[k] * 3 for k in range(4)]).all()


def test_means():
    """A row for each trainer and stage, then the truth."""
    found = cells(truth_table(told(1)))
    rows = [f"{name} {t}" for name in "ABC" for t in ("1.00", "1.25")]
    assert list(found) == ["trainer", "---", *rows, "true probabilities"]
    assert found["B 1.25"] == ["1.25", "0.800", "0.1000", "0.6000", "0.4000", "0.4000", "0.1000", "0.2000"]
