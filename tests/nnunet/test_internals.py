"""The list of what this package leans on: it is complete, the installed nnU-Net has it all, and a change is told."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_calib
from tests.nnunet import internals
from tests.nnunet.internals import EXPORT, LEANS, PREDICTOR, TRAINER, changes, main

PACKAGE = Path(nnunet_calib.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = {lean.name.partition("(")[0] for lean in LEANS}


def test_installed(capsys):
    """Nothing has changed."""
    assert [*changes()] == []
    assert main() == 0
    assert f"has all {len(LEANS)} things" in capsys.readouterr().out


def imports(source: str) -> set[str]:
    """What is imported of nnU-Net, as module:name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nnunetv2":
            found |= {f"{node.module}:{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {f"{alias.name}:" for alias in node.names if alias.name.split(".")[0] == "nnunetv2"}
    return found


def test_every_import():
    """What the package imports is in the list."""
    found = set().union(*(imports(path.read_text(encoding="utf-8")) for path in SOURCES))
    assert len(found) > 15
    assert found - NAMES == set()
    assert imports("def f():\n    import nnunetv2.paths\n    from nnunetv2.paths import nnUNet_raw") - NAMES != set()


def test_every_attribute():
    """What the package reads of nnU-Net's trainer and predictor, calls and overrides is in the list."""
    listed = {name for lean in LEANS for name in re.findall(r"\w+", f"{lean.name.partition('(')[0]} {lean.has}")}
    code = inspect.getsource(nnUNetTrainer) + inspect.getsource(nnUNetPredictor)
    theirs = {*re.findall(r"(?:self\.|def )(\w+)", code)}
    ours: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Call):
                what = node.value.id if isinstance(node.value, ast.Name) else ast.unparse(node.value.func)
                ours |= {node.attr} if what in ("self", "trainer", "nnunet", "super") else set()
    assert {"local_rank", "list_of_parameters", "on_epoch_end"} <= ours & theirs
    assert sorted(ours & theirs - listed) == []


def save_on_each_node(self, filename):
    """The names of the real one, with another meaning of the rank."""
    if self.global_rank == 0:
        torch.save(
            {"network_weights": 0, "trainer_name": 0, "init_args": 0, "inference_allowed_mirroring_axes": 0}, filename
        )


def test_users():
    """Functions and methods; imports, comments and definitions are none."""
    assert internals.users("nnUNet_extTrainer") == {"recursive_find_trainer_class_by_name"}
    assert internals.users("a_name_that_is_nowhere") == set()


@pytest.mark.parametrize(
    ("lean", "change", "sentence"),
    [
        (
            f"{TRAINER}._build_loss()",
            lambda patch: patch.delattr(nnUNetTrainer, "_build_loss"),
            "expected nnUNetTrainer._build_loss in nnunetv2.training.nnUNetTrainer.nnUNetTrainer, found none; this "
            "package needs it: the mixins change the loss that it returns",
        ),
        (
            f"{EXPORT}:export_prediction_from_logits(",
            lambda patch: patch.setattr(f"{EXPORT}.export_prediction_from_logits", lambda logits, properties_dict: 0),
            "expected export_prediction_from_logits of nnunetv2.inference.export_prediction to take "
            "(predicted_array_or_file, properties_dict, configuration_manager, plans_manager, "
            "dataset_json_dict_or_file, output_file_truncated, save_probabilities, num_threads_torch), found (logits, "
            "properties_dict); this package needs it: what measures a case",
        ),
        (
            f"{PREDICTOR}.predict_logits_from_preprocessed_data(",
            lambda patch: patch.setattr(
                nnUNetPredictor, "predict_logits_from_preprocessed_data", lambda self, data: self.networks
            ),
            "expected self.list_of_parameters in the code of nnUNetPredictor.predict_logits_from_preprocessed_data in "
            "nnunetv2.inference.predict_from_raw_data, found none; this package needs it: `predict` takes the logits",
        ),
        (
            f"{TRAINER}.save_checkpoint(",
            lambda patch: patch.setattr(nnUNetTrainer, "save_checkpoint", save_on_each_node),
            "expected self.local_rank == 0 in the code of nnUNetTrainer.save_checkpoint in nnunetv2.training.",
        ),
        (
            f"{EXPORT}:export_prediction_from_logits(",
            lambda patch: patch.setattr(internals, "users", lambda name: {"nnUNetPredictor.export"}),
            "expected export_prediction_from_logits of nnunetv2.inference.export_prediction to be used by "
            "nnUNetTrainer.perform_actual_validation nnUNetPredictor.predict_from_data_iterator nnUNetPredictor."
            "predict_single_npy_array nnUNetPredictor.predict_from_files_sequential, found nnUNetPredictor.export",
        ),
        (
            f"{EXPORT}:",
            lambda patch: patch.setitem(internals.sys.modules, EXPORT, None),
            f"expected the module {EXPORT}, found none (",
        ),
    ],
    ids=["removed", "parameters", "inside", "meaning", "users", "module"],
)
def test_a_change_is_told(monkeypatch, capsys, lean, change, sentence):
    """In a sentence that says what is missing and what it is needed for; the script then fails."""
    change(monkeypatch)
    chosen = tuple(each for each in LEANS if each.name.startswith(lean))
    assert chosen
    told = [*changes(chosen)]
    assert told[0].startswith("nnU-Net 2.")
    assert sentence in told[0]
    assert len(told) == len(chosen)
    assert main() == 1
    assert told[0] in capsys.readouterr().out
