"""Real training steps of nnU-Net's trainers, on random data: what a calibration loss adds to them."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.setting import Setting
from nnunet_calib.losses import use

TRAINERS = (
    "nnUNetTrainerCalib",
    "nnUNetTrainerML1ACE",
    "nnUNetTrainerSoftML1ACE",
    "nnUNetTrainerNACL",
    "nnUNetTrainerSVLS",
    "nnUNetTrainerNACLML1ACE",
)
LABELS = 4


def plans(patch: int) -> dict[str, Any]:
    """Return nnU-Net's default 3D plan for a patch of 128^3, or a tiny one for smaller patches."""
    stages = 6 if patch >= 128 else 3
    arch = {
        "n_stages": stages,
        "features_per_stage": [32, 64, 128, 256, 320, 320][:stages],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [patch] * 3,
        "median_image_size_in_voxels": [float(patch)] * 3,
        "spacing": [1.0] * 3,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {},
        "resampling_fn_seg_kwargs": {},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arch,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset999_Random",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIO",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [patch] * 3,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "continue_training": False,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }


def make_trainer(setting: Setting, name: str) -> Any:
    """Return an initialised trainer of nnU-Net or of this package."""
    folder = tempfile.mkdtemp()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = folder  # where nothing of the user's is
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_calib import trainers

    kind = nnUNetTrainer if name == "nnUNetTrainer" else getattr(trainers, name)
    labels = {"background": 0, **{f"class {k}": k for k in range(1, LABELS)}}
    dataset = {"channel_names": {"0": "random"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    preprocessed = Path(folder, "Dataset999_Random", "nnUNetPlans_3d_fullres")
    preprocessed.mkdir(parents=True)
    (preprocessed / "case.npz").touch()  # nnU-Net asks how cases are stored
    with quiet():
        trainer = kind(plans(setting.patch), "3d_fullres", 0, dataset, setting.device)
        trainer.initialize()
    return _with_network_of_first(trainer, setting.patch)


_networks: dict[int, tuple[Any, dict[str, Any]]] = {}


def _with_network_of_first(trainer: Any, patch: int) -> Any:
    """Give a trainer the network, with its first weights, that another one has compiled, which takes a minute."""
    if patch not in _networks:
        state = {name: value.clone() for name, value in trainer.network.state_dict().items()}
        _networks[patch] = trainer.network, state
    trainer.network, state = _networks[patch]
    trainer.network.load_state_dict(state)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    return trainer


def quiet() -> Any:
    """Keep what nnU-Net prints out of the tables."""
    return redirect_stdout(io.StringIO())


def random_batch(setting: Setting, trainer: Any) -> dict[str, Any]:
    """Return a batch as nnU-Net's loader makes it."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn((2, 1, *[setting.patch] * 3), generator=generator)
    coarse = torch.randint(0, LABELS, (2, 1, *[setting.patch // 8] * 3), generator=generator).float()
    scales = trainer._get_deep_supervision_scales() or [[1.0] * 3]
    shapes = [[round(setting.patch * s) for s in scale] for scale in scales]
    return {"data": data, "target": [torch.nn.functional.interpolate(coarse, size=s).short() for s in shapes]}


def ready(trainer: Any) -> None:
    """Begin an epoch in the middle of a training, when the calibration losses have their whole weight."""
    trainer.current_epoch = trainer.num_epochs // 2
    with quiet():
        trainer.on_train_epoch_start()


def _delete(trainer: Any) -> None:
    """Free the memory of a trainer, of which something may still hold the shell."""
    if trainer is not None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.network = trainer.optimizer = trainer.loss = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def steps(setting: Setting) -> bool:
    """Time whole training and validation steps of every trainer, and their memory, beside nnU-Net's own."""
    print("| trainer | losses | training step, ms | x own | peak, MB | validation step, ms |")
    print("|---|---|---|---|---|---|")
    own = None
    choices = ["auto", "reference"] if setting.on_gpu else ["auto"]
    todo = [("nnUNetTrainer", "auto"), *((name, choice) for name in TRAINERS for choice in choices)]
    for name, choice in todo:
        trainer = None
        try:
            with use(choice):
                trainer = make_trainer(setting, name)
                batch = random_batch(setting, trainer)
                ready(trainer)
                training, _ = setting.time(lambda t=trainer, b=batch: t.train_step(b))
                peak = torch.cuda.max_memory_allocated() if setting.on_gpu else 0
                trainer.on_validation_epoch_start()
                validation, _ = setting.time(lambda t=trainer, b=batch: _validate(t, b))
        except torch.cuda.OutOfMemoryError:
            print(f"| {name} | {choice} | out of memory | | | |", flush=True)
            continue
        finally:
            _delete(trainer)
        own = own or training or 1.0
        print(
            f"| {name} | {choice} | {training:.1f} | {training / own:.3f} | {peak / 1e6:.0f} | {validation:.1f} |",
            flush=True,
        )
    return True


def _validate(trainer: Any, batch: dict[str, Any]) -> None:
    """Take a validation step; with a calibration trainer the pseudo ACE is measured in it."""
    with torch.no_grad():
        trainer.validation_step(batch)


def scaler(setting: Setting) -> bool:
    """Train from scratch and count the steps that the gradient scaler skips."""
    print("| trainer | steps | skipped | last loss |")
    print("|---|---|---|---|")
    skipped_by_own = None
    good = True
    for name in ("nnUNetTrainer", *TRAINERS[1:4]):
        torch.manual_seed(0)
        trainer = make_trainer(setting, name)
        batch = random_batch(setting, trainer)
        ready(trainer)
        skipped, loss = 0, float("nan")
        for _ in range(setting.scaler_steps):
            before = trainer.grad_scaler.get_scale() if trainer.grad_scaler is not None else 1.0
            loss = float(trainer.train_step(batch)["loss"])
            after = trainer.grad_scaler.get_scale() if trainer.grad_scaler is not None else 1.0
            skipped += after < before
        _delete(trainer)
        skipped_by_own = skipped if skipped_by_own is None else skipped_by_own
        good &= skipped <= skipped_by_own + 1 and loss == loss
        print(f"| {name} | {setting.scaler_steps} | {skipped} | {loss:.4f} |", flush=True)
    return good
