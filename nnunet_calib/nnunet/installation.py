"""Check of an installation: versions, nnU-Net's environment variables, trainers, devices, and what to mend."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import nnunet_calib
from nnunet_calib.io.wording import reason
from nnunet_calib.losses.backends import backend_of, choice
from nnunet_calib.nnunet.lookup import find_trainer, trainers_folder

PACKAGES = ("nnunetv2", "torch", "numpy", "SimpleITK")
TRAINER = "nnUNetTrainerNACL"
GIB = 2**30

# nnU-Net's folders, and whether it writes into them.
FOLDERS = {"nnUNet_raw": False, "nnUNet_preprocessed": True, "nnUNet_results": True}


class Finding(NamedTuple):
    """One line of the check.

    Attributes:
        subject: what was looked at.
        text: what was found.
        remedy: what to type or do; empty if all is well.
    """

    subject: str
    text: str
    remedy: str = ""


def findings() -> Iterator[Finding]:
    """Look at everything a training, a prediction and our commands need; nothing is changed."""
    yield Finding("nnunet-calib", f"{nnunet_calib.__version__}, Python {platform.python_version()}")
    for package in PACKAGES:
        yield Finding(package, importlib.metadata.version(package))
    for variable, written in FOLDERS.items():
        yield _folder(variable, written)
    yield _trainers()
    yield from _devices()


def _folder(variable: str, written: bool) -> Finding:
    value = os.environ.get(variable)
    if not value:
        return Finding(variable, "is not set", f'export {variable}="/path/to/{variable}"')
    folder = Path(value)
    if not folder.is_dir():
        return Finding(variable, f"{folder} is no folder", f"make it, or export {variable} with the right path")
    if not written:
        return Finding(variable, str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(
            variable, f"{folder} cannot be written ({error.strerror})", "change its permissions, or name another"
        )
    return Finding(variable, f"{folder}, {shutil.disk_usage(folder).free / GIB:.0f} GiB free")


def _trainers() -> Finding:
    variable = "nnUNet_extTrainer"
    set_it = f'export {variable}="$(nnunet_calib trainers --path)"'
    folders = os.environ.get(variable)
    if not folders:
        return Finding(variable, "is not set: nnU-Net finds none of our trainers", set_it)
    try:
        found = find_trainer(TRAINER)
    except ValueError as error:
        ours = str(trainers_folder())
        missing = ours not in [os.path.abspath(folder) for folder in folders.split(os.pathsep)]
        add = f"{set_it}, or add {os.pathsep}{ours} to the folders there"
        return Finding(variable, f"{folders}: nnU-Net does not find {TRAINER}", add if missing else str(error))
    module = found.__module__
    if not module.startswith("nnunet_calib."):
        return Finding(variable, f"nnU-Net finds another {TRAINER}, of the module {module}", set_it)
    return Finding(variable, f"{folders}: nnU-Net finds {TRAINER}")


def _devices() -> Iterator[Finding]:
    """Return the devices that nnU-Net can use and the backend of the losses on each."""
    try:
        chosen = choice()
    except ValueError as error:
        yield Finding("losses", str(error), "unset NNUNET_CALIB_LOSSES")
        return
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield Finding(
            f"cuda:{number}", f"{device.name}, {device.total_memory / GIB:.0f} GiB, losses by {_way('cuda', chosen)}"
        )
    if torch.backends.mps.is_available():
        yield Finding("mps", f"Apple's GPU, losses by {_way('mps', chosen)}")
    yield Finding("cpu", f"{os.cpu_count()} cores, losses by {_way('cpu', chosen)}")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        yield Finding("GPU", "none that PyTorch can use: give nnU-Net's commands -device cpu, and expect hours")


def _way(device: str, chosen: str) -> str:
    """Return the backend of the losses on a type of device."""
    if chosen != "auto":
        return f"the backend {chosen}, as NNUNET_CALIB_LOSSES says" if chosen != "reference" else "the formulas"
    try:
        return f"the backend {backend_of(device)}"
    except Exception as error:  # whatever a driver or compiler raises
        return f"the formulas ({reason(error)})"
