"""What of nnU-Net this package leans on, each with the reason, and a check of the installed nnU-Net against it.

    python -m tests.nnunet.internals

prints a sentence for each thing that is not as this package knows it, and then exits with 1. It takes seconds: run it
against a new nnU-Net before its tests. `Lean.name` is what is imported, called, derived from or replaced, as
module:name(parameters); parameters, if given, must be these, in this order, where a|b stands for either name.
`Lean.has` are names that its code must have: attributes it sets, functions it looks up, keys it writes.

Names can stay while their meaning changes. So `Lean.says` are expressions or statements that its code must have as they
stand here, and `Lean.used_by` are the functions of nnU-Net that use it, all of them.

The imports of the package must all be here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import nnunetv2

TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer"
PREDICTOR = "nnunetv2.inference.predict_from_raw_data:nnUNetPredictor"
EXPORT = "nnunetv2.inference.export_prediction"
LOSSES = "nnunetv2.training.loss"
LOGGER = "nnunetv2.training.logging.nnunet_logger:MetaLogger"
PLANS = "nnunetv2.utilities.plans_handling.plans_handler"
LABELS = "nnunetv2.utilities.label_handling.label_handling"
READER = "nnunetv2.imageio.base_reader_writer:BaseReaderWriter"
DATASET = "nnunetv2.training.dataloading.nnunet_dataset"
UTILS = "nnunetv2.utilities.utils"
EPOCHS = "nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs"


class Lean(NamedTuple):
    """One thing of nnU-Net's; see above."""

    name: str
    why: str
    has: str = ""
    says: tuple[str, ...] = ()
    used_by: str = ""


LEANS = (
    # the trainer: nnunet/training/mixins.py, pseudo_ace.py, validation.py, predicting.py, remade_trainer.py
    Lean(
        TRAINER,
        "the attributes are what the mixins and the measuring read",
        "self.label_manager self.configuration_manager self.configuration_name self.plans_manager self.dataset_json "
        "self.dataset_class self.fold self.device self.loss self.network self.logger self.current_epoch "
        "self.local_rank self.is_ddp self.is_cascaded self.output_folder self.output_folder_base "
        "self.preprocessed_dataset_folder self.preprocessed_dataset_folder_base "
        "self.folder_with_segs_from_previous_stage self.inference_allowed_mirroring_axes self.num_epochs",
    ),
    Lean(
        f"{TRAINER}.__init__(plans, configuration, fold, dataset_json, device)",
        "the mixins' constructor has its arguments, passed on by name as nnU-Net does, which looks them up by name; a "
        "fold is validated by making it again",
        "inspect.signature locals() continue_training",
        says=("self.local_rank = 0 if not self.is_ddp else dist.get_rank()",),
    ),
    Lean(f"{TRAINER}.initialize()", "the mixins tell the logger the hyperparameters afterwards", "self._build_loss()"),
    Lean(f"{TRAINER}._build_loss()", "the mixins change the loss that it returns", "DeepSupervisionWrapper"),
    Lean(
        f"{TRAINER}.build_network_architecture(plans_manager, configuration_manager, num_input_channels, "
        "num_output_channels, enable_deep_supervision)",
        "`bake` builds the network with it",
    ),
    Lean(
        f"{TRAINER}.on_train_start()",
        "a loss without its term is refused there, and the split is recorded",
        "self.initialize() self.get_dataloaders()",
    ),
    Lean(f"{TRAINER}.on_train_end()", "the final checkpoint is saved there", "checkpoint_final.pth"),
    Lean(f"{TRAINER}.load_checkpoint(filename_or_checkpoint|checkpoint)", "it tells which checkpoint is validated"),
    Lean(f"{TRAINER}.on_train_epoch_start()", "the NACL schedule sets the epoch's weight there"),
    Lean(f"{TRAINER}.on_train_epoch_end(train_outputs)", "a term that no step has called is told there"),
    Lean(f"{TRAINER}.on_validation_epoch_start()", "the pseudo ACE begins there"),
    Lean(f"{TRAINER}.validation_step(batch)", "a hook on the loss sees the patches there", "self.loss"),
    Lean(f"{TRAINER}.on_validation_epoch_end(val_outputs)", "the pseudo ACE is logged there"),
    Lean(f"{TRAINER}.on_epoch_end()", "the pseudo ACE is drawn there"),
    Lean(f"{TRAINER}.do_split()", "its cases are those that are measured"),
    Lean(f"{TRAINER}.print_to_log_file(args, also_print_to_console, add_timestamp)", "the results are told there"),
    Lean(
        f"{TRAINER}.perform_actual_validation(save_probabilities)",
        "the hook replaces the functions that it looks up, and reads the cases from `do_split`",
        "export_prediction_from_logits default_num_processes compute_metrics_on_folder self.do_split() "
        "check_workers_alive_and_busy gt_segmentations 'validation' multiprocessing.get_context starmap_async",
        says=(
            "val_keys = val_keys[self.local_rank:: dist.get_world_size()]",  # the cases of a rank
            "self.local_rank == 0",  # the rank that writes the summary, as ours does
            "dist.barrier()",  # after it, all ranks have exported their cases
        ),
    ),
    Lean(
        f"{TRAINER}.save_checkpoint(filename)",
        "`bake`, `predict` and `validate` read what it writes",
        "'network_weights' 'trainer_name' 'init_args' 'inference_allowed_mirroring_axes'",
        says=("self.local_rank == 0",),
    ),
    Lean(f"{LOGGER}.update_config(config)", "the hyperparameters go there"),
    Lean(f"{LOGGER}.log(key, value, step)", "the pseudo ACE goes there", "self.local_logger"),
    Lean(f"{LOGGER}.log_summary(key, value)", "the calibration of the fold goes there"),
    Lean(f"{LOGGER}.get_value(key, step)", "the figure of the pseudo ACE is drawn from it"),
    Lean(
        "nnunetv2.training.logging.nnunet_logger:LocalLogger",
        "the pseudo ACE adds keys to its lists",
        "self.my_fantastic_logging",
    ),
    Lean(LOGGER, "the figures of a fold are shown by its loggers", "self.loggers"),
    Lean(
        "nnunetv2.training.logging:nnunet_logger",
        "the figures are shown at Weights & Biases",
        "wandb class WandbLogger self.run",
    ),
    *(
        Lean(f"{EPOCHS}:nnUNetTrainer_{n}epochs", "trainers of this package derive from it", "self.num_epochs")
        for n in (5, 100, 250)
    ),
    Lean(
        "nnunetv2.utilities.find_objects:recursive_find_trainer_class_by_name(trainer_name)",
        "trainers are found as nnU-Net finds them",
        "nnUNet_extTrainer",
    ),
    Lean(
        "nnunetv2.utilities.find_class_by_name:recursive_find_python_class(folder, class_name, current_module, "
        "base_folder, verbose, cleanup_imports_from_base_folder)",
        "trainers of the same name in two folders are found with it",
    ),
    # losses: nnunet/training/loss_terms.py
    Lean(
        f"{LOSSES}.compound_losses:DC_and_CE_loss",
        "terms are put into it, and computed together with it",
        "self.ce self.dc self.weight_ce self.weight_dice self.ignore_label",
    ),
    Lean(
        f"{LOSSES}.compound_losses:DC_and_BCE_loss",
        "SVLS takes the place of its cross-entropy, DSC++ that of its Dice",
        "self.ce self.dc self.weight_ce self.weight_dice self.use_ignore_label",
    ),
    Lean(f"{LOSSES}.compound_losses:DC_and_topk_loss", "DSC++ takes the place of its Dice", "self.dc self.weight_dice"),
    Lean(
        f"{LOSSES}.dice:MemoryEfficientSoftDiceLoss",
        "the fused loss computes it",
        "self.apply_nonlin self.do_bg self.batch_dice self.smooth self.ddp",
    ),
    Lean(f"{LOSSES}.robust_ce_loss:RobustCrossEntropyLoss", "the fused loss computes it", "CrossEntropyLoss"),
    Lean(f"{LOSSES}.deep_supervision:DeepSupervisionWrapper", "terms are put into what it wraps", "self.loss"),
    Lean("nnunetv2.utilities.helpers:softmax_helper_dim1(x)", "it says that Dice is of a softmax"),
    # validation and prediction: nnunet/validation/, nnunet/deployment/
    Lean(
        f"{EXPORT}:export_prediction_from_logits(predicted_array_or_file, properties_dict, configuration_manager, "
        "plans_manager, dataset_json_dict_or_file, output_file_truncated, save_probabilities, num_threads_torch)",
        "what measures a case, or writes its maps, stands in for it and takes its arguments by name",
        "convert_predicted_logits_to_segmentation_with_correct_shape",
        used_by="nnUNetTrainer.perform_actual_validation nnUNetPredictor.predict_from_data_iterator "
        "nnUNetPredictor.predict_single_npy_array nnUNetPredictor.predict_from_files_sequential",
    ),
    Lean(
        f"{EXPORT}:convert_predicted_logits_to_segmentation_with_correct_shape(predicted_logits, plans_manager, "
        "configuration_manager, label_manager, properties_dict, return_probabilities, num_threads_torch)",
        "the resampled logits are tapped in it, and its crop is reverted alike",
        "configuration_manager.resampling_fn_probabilities 'shape_before_cropping' 'bbox_used_for_cropping' 'spacing' "
        "plans_manager.transpose_backward",
    ),
    Lean(
        f"{PREDICTOR}.__init__(tile_step_size, use_gaussian, use_mirroring, perform_everything_on_device, device, "
        "verbose, verbose_preprocessing, allow_tqdm)",
        "`predict` passes its options on",
    ),
    Lean(
        PREDICTOR,
        "`predict` reads these, and predicts the logits of each fold by giving it one network",
        "self.list_of_parameters self.network self.label_manager self.plans_manager self.configuration_manager "
        "self.dataset_json self.tile_step_size self.use_mirroring",
    ),
    Lean(
        f"{PREDICTOR}.initialize_from_trained_model_folder(model_training_output_dir, use_folds, checkpoint_name)",
        "`predict` loads the networks with it",
    ),
    Lean(
        f"{PREDICTOR}.predict_logits_from_preprocessed_data(data)",
        "`predict` takes the logits of each fold from it",
        "self.list_of_parameters",
    ),
    Lean(
        f"{PREDICTOR}._manage_input_and_output_lists(list_of_lists_or_source_folder, "
        "output_folder_or_list_of_truncated_output_files, folder_with_segs_from_prev_stage, overwrite, part_id, "
        "num_parts, save_probabilities)",
        "`predict --continue_prediction` also looks for the maps",
    ),
    Lean(
        f"{PREDICTOR}.predict_from_files(list_of_lists_or_source_folder, "
        "output_folder_or_list_of_truncated_output_files, save_probabilities, overwrite, num_processes_preprocessing, "
        "num_processes_segmentation_export, folder_with_segs_from_prev_stage, num_parts, part_id)",
        "`predict` predicts with it",
        "self._manage_input_and_output_lists self.predict_from_data_iterator",
    ),
    Lean(
        f"{PREDICTOR}.predict_from_data_iterator(data_iterator, save_probabilities, num_processes_segmentation_export)",
        "`predict` replaces the export that it looks up",
        "export_prediction_from_logits self.predict_logits_from_preprocessed_data",
    ),
    Lean(
        f"{PREDICTOR}.predict_from_files_sequential(list_of_lists_or_source_folder, "
        "output_folder_or_list_of_truncated_output_files, save_probabilities, overwrite, "
        "folder_with_segs_from_prev_stage)",
        "`predict -npp 0 -nps 0` predicts with it",
        "self._manage_input_and_output_lists export_prediction_from_logits self.predict_logits_from_preprocessed_data",
    ),
    Lean("nnunetv2.inference:predict_from_raw_data", "the export is replaced in this module"),
    Lean("nnunetv2.configuration:default_num_processes", "it is how many processes measure"),
    Lean(
        "nnunetv2.utilities.file_path_utilities:check_workers_alive_and_busy(export_pool, worker_list, results_list, "
        "allowed_num_queued)",
        "`validate` knows by its message that memory ran out",
        "'Some background workers are no longer alive'",
    ),
    Lean(f"{DATASET}:infer_dataset_class(folder)", "`validate` asks which cases are preprocessed"),
    Lean(f"{DATASET}:nnUNetBaseDataset.get_identifiers(folder)", "`validate` asks which cases are preprocessed"),
    Lean(f"{DATASET}:nnUNetBaseDataset", "`validate` shows its progress by it", "self.identifiers"),
    # plans, labels, files: nnunet/labels.py, networks.py, prediction_files.py, raw_images.py, fold_results.py
    Lean(f"{PLANS}:PlansManager.__init__(plans_file_or_dict)", "plans.json is read with it"),
    Lean(
        f"{PLANS}:PlansManager",
        "the model is described by it",
        "def dataset_name def plans_name def image_reader_writer_class def transpose_backward self.plans",
    ),
    Lean(f"{PLANS}:PlansManager.get_label_manager(dataset_json, kwargs)", "the heads are known by it"),
    Lean(f"{PLANS}:PlansManager.get_configuration(configuration_name)", "the network is built from it"),
    Lean(
        f"{PLANS}:ConfigurationManager",
        "the network, its neighbourhoods and the resampling are known by it",
        "self.configuration def patch_size def batch_dice def previous_stage_name def resampling_fn_probabilities "
        "def network_arch_class_name def network_arch_init_kwargs def network_arch_init_kwargs_req_import",
    ),
    Lean(
        f"{LABELS}:LabelManager.__init__(label_dict, regions_class_order, force_use_labels, inference_nonlin)",
        "the heads are known by it where there are no plans",
    ),
    Lean(
        f"{LABELS}:LabelManager",
        "the heads are known by it",
        "self.label_dict def has_regions def ignore_label "
        "def all_labels def foreground_regions def num_segmentation_heads",
    ),
    Lean(f"{LABELS}:LabelManager.apply_inference_nonlin(logits)", "it makes probabilities of logits"),
    Lean(
        f"{LABELS}:determine_num_input_channels(plans_manager, configuration_or_config_manager, dataset_json)",
        "`bake` builds the network with as many",
    ),
    Lean(f"{READER}.read_seg(seg_fname)", "label maps are read with it", "'spacing'"),
    Lean(f"{READER}.read_images(image_fnames)", "the pictures of a report are read with it"),
    Lean("nnunetv2.imageio.reader_writer_registry:LIST_OF_IO_CLASSES", "its readers tell which endings nnU-Net knows"),
    Lean(
        "nnunetv2.imageio.reader_writer_registry:determine_reader_writer_from_dataset_json(dataset_json_content, "
        "example_file, allow_nonmatching_filename, verbose)",
        "label maps are read with it where there are no plans",
    ),
    Lean(
        "nnunetv2.utilities.file_path_utilities:get_output_folder(dataset_name_or_id, trainer_name, plans_identifier, "
        "configuration, fold)",
        "a model's folder is found with it",
    ),
    Lean(f"{UTILS}:get_identifiers_from_splitted_dataset_folder(folder, file_ending)", "it tells if there are images"),
    Lean(
        f"{UTILS}:get_filenames_of_train_images_and_targets(raw_dataset_folder, dataset_json)",
        "the pictures of a report are found with it",
        "'images'",
    ),
)


def changes(leans: tuple[Lean, ...] = LEANS) -> Iterator[str]:
    """Yield a sentence for each thing that the installed nnU-Net lacks, or has changed."""
    version = metadata.version("nnunetv2")
    for lean in leans:
        found = _difference(lean)
        if found:
            yield f"nnU-Net {version}: {found}; this package needs it: {lean.why}"


def _difference(lean: Lean) -> str:
    path, bracket, parameters = lean.name.partition("(")
    module, _, name = path.partition(":")
    try:
        thing: Any = importlib.import_module(module)
    except ImportError as error:
        return f"expected the module {module}, found none ({error})"
    for part in name.split("."):
        if not hasattr(thing, part):
            return f"expected {name} in {module}, found none"
        thing = getattr(thing, part)
    if bracket:
        wanted = [parameter for parameter in parameters.rstrip(")").split(", ") if parameter]
        taken = [parameter for parameter in inspect.signature(thing).parameters if parameter != "self"]
        if len(taken) != len(wanted) or any(a not in b.split("|") for a, b in zip(taken, wanted, strict=True)):
            return f"expected {name} of {module} to take ({', '.join(wanted)}), found ({', '.join(taken)})"
    wanted = re.findall(r"'[^']*'|(?:def|class) \w+|\S+", lean.has) + [ast.unparse(ast.parse(x)) for x in lean.says]
    code = _code(thing) if wanted else ""
    missing = [text for text in wanted if not re.search(rf"(?<!\w){re.escape(text)}(?!\w)", code)]
    if missing:
        return f"expected {', '.join(missing)} in the code of {name} in {module}, found none"
    found = users(name) if lean.used_by else set()
    if found != {*lean.used_by.split()}:
        return f"expected {name} of {module} to be used by {lean.used_by}, found {' '.join(sorted(found)) or 'none'}"
    return ""


def users(name: str) -> set[str]:
    """Return the functions of nnU-Net that use a name, as function or Class.function."""
    found = set()
    for file in Path(nnunetv2.__path__[0]).rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        if name in source:
            found |= {
                owner
                for owner, function in _functions(ast.parse(source))
                if any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(function))
            }
    return found


def _functions(module: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield the functions and methods of a module with their names."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{each.name}", each) for each in node.body if isinstance(each, ast.FunctionDef))


def _code(thing: Any) -> str:
    """Return source without comments; for a class, also that of its bases in nnU-Net."""
    things = [c for c in thing.__mro__ if c.__module__.startswith("nnunetv2")] if inspect.isclass(thing) else [thing]
    return "\n".join(ast.unparse(ast.parse(dedent(inspect.getsource(each)))) for each in things)


def main() -> int:
    """Print what changed; return 1 if anything did."""
    found = [*changes()]
    print("\n".join(found) or f"nnU-Net {metadata.version('nnunetv2')} has all {len(LEANS)} things as expected")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
