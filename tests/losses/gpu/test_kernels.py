"""The Triton kernels without a GPU: in Triton's interpreter, through its compiler, and not at all where not wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from nnunet_calib.losses import gpu, use
from nnunet_calib.losses.gpu import launch

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments, interpret=False, extra=None):
    """Run Python on the package, with or without the interpreter, which is decided when Triton is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    environment |= extra or {}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_in_the_interpreter():
    """All tests of the files that need the interpreter pass."""
    pytest.importorskip("triton")
    files = sorted(map(str, Path(__file__).parent.glob("interpreted_*.py")))
    assert files
    ran = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, interpret=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]


@pytest.mark.slow
def test_compile():
    """Every kernel, for half-precision logits, compiles for a GPU that is not there, without spilling a register."""
    pytest.importorskip("triton.backends.nvidia")
    # the longest of each kind, every option of labels or of regions
    with_labels = ("soft bins", "NACL l1 value", "NACL l1 gradient", "SVLS gradient", "NACL median gradient")
    with_regions = ("hard bins", "no bins", "SVLS value", "NACL l2 gradient", "NACL max gradient", "NACL min gradient")
    kernels = [
        "normaliser, fp16",
        "64 classes, fp16",
        *(f"{kind}, labels with ignore, fp16" for kind in with_labels),
        *(f"{kind}, regions with ignore, fp16" for kind in with_regions),
    ]
    ran = run("-m", "benchmarks.gpu.compile", "--architectures", "80", "--kernels", *kernels)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    # all rows below the head; of bins there are two, the sums and their gradient, of errors three
    rows = len(ran.stdout.splitlines()) - 2
    assert ran.stdout.count("/ 0 /") == rows == len(kernels) + 3 + 2


def test_not_imported_on_a_cpu():
    """A loss on a CPU, by default and by the formulas, imports no Triton."""
    code = """
import sys, torch
from nnunet_calib.losses import ml1_ace_loss, nacl_loss, svls_loss, use
for name in ("auto", "reference"):
    with use(name):
        for loss in (ml1_ace_loss, nacl_loss, svls_loss):
            loss(torch.randn(2, 3, 4, 5), torch.zeros(2, 1, 4, 5).short())
try:
    use("triton")
except ValueError as error:
    print(error)
print(sorted(name for name in sys.modules if name.partition(".")[0] == "triton"))
"""
    ran = run("-c", code)
    assert ran.returncode == 0, ran.stderr
    reason, imported = ran.stdout.splitlines()
    assert imported == "[]"
    assert reason.startswith("expected losses that can be computed here, got 'triton' from nnunet_calib.losses.use: ")


@pytest.fixture
def no_memory():
    """Let `launch` find out anew what there is, before and after a test."""
    launch.why_missing.cache_clear()
    launch.why_not_on.cache_clear()
    yield
    launch.why_missing.cache_clear()
    launch.why_not_on.cache_clear()


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("found", "version", "reason"),
    [
        (None, (3, 4), "Triton is not installed; it comes with the PyTorch packages for CUDA and ROCm"),
        (object(), (2, 1), "Triton is 2.1, expected at least 3.0"),
        (object(), (3, 4), None),
    ],
)
def test_why_missing(monkeypatch, found, version, reason):
    """The reason names what is missing."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(launch, "find_spec", lambda name: found)
    monkeypatch.setattr(launch, "_version", lambda: version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.why_missing() == reason


@pytest.mark.usefixtures("no_memory")
def test_without_a_gpu(monkeypatch):
    """Chosen, the backend says that there is no GPU, and how to try it all the same."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="PyTorch finds no GPU; set TRITON_INTERPRET=1 to try the kernels on a CPU"):
        use("triton")


@pytest.mark.usefixtures("no_memory")
def test_kernels_that_cannot_be_compiled(monkeypatch):
    """Whatever Triton raises, on a machine without a C compiler say, is a reason to compute in another way."""
    pytest.importorskip("triton")
    tried = []

    def fail(*arguments, **constants):
        tried.append(arguments)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(launch, "launch", fail)
    for _ in range(2):
        reason = launch.why_not_on(torch.device("cpu"))
        assert reason == "Triton cannot compile its kernels for cpu: RuntimeError: Failed to find C compiler"
    assert len(tried) == 1


@pytest.fixture
def kernels_do_nothing(monkeypatch):
    """Let the backend take CPU tensors, with kernels that write nothing."""
    pytest.importorskip("triton")
    from nnunet_calib.losses.gpu import bin_error, neighbour_terms, sums

    started = []

    def start(kernel, grid, *arguments, **constants):
        started.append(kernel.__name__)

    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(launch, "_tried", {})
    for module in (bin_error, neighbour_terms, sums):
        monkeypatch.setattr(module, "launch", start)
        if hasattr(module, "require_labels"):
            monkeypatch.setattr(module, "require_labels", lambda *arguments: None)
    return started


OPTIONS = {
    "voxel_sums": {"num_bins": 4, "binning": "hard"},
    "nacl": {"kernel_size": 3, "prior": "mean", "penalty": "l1", "on": "logits", "sigma": 1.0},
    "label_smoothing": {"kernel_size": 3, "sigma": 1.0},
}


@pytest.mark.parametrize("operation", OPTIONS)
def test_kernels_are_tried_once(kernels_do_nothing, operation):
    """Before an operation is used with new options its kernels are compiled, the gradient's too; then no more."""
    logits, labels = torch.zeros(2, 3, 8, 8, requires_grad=True), torch.zeros(2, 1, 8, 8, dtype=torch.int16)
    options = {**OPTIONS[operation], "regions": False, "ignore_label": None}
    numbers = []
    for _ in range(2):
        assert getattr(gpu, operation)(logits, labels, **options) is not None
        numbers.append(len(kernels_do_nothing))
    forward = {"voxel_sums": 2}.get(operation, 1)
    assert numbers[1] - numbers[0] == forward
    assert numbers[0] - forward == {"voxel_sums": 2 + 3 + 1}.get(operation, 2)


@pytest.mark.parametrize(
    ("operation", "failing"), [*product(OPTIONS, ["all", "gradient_kernel"]), ("voxel_sums", "error_kernel")]
)
def test_kernels_that_this_triton_cannot_compile(monkeypatch, kernels_do_nothing, operation, failing):
    """One warning, and another backend computes, whichever kernel it is: a training goes on."""
    from nnunet_calib.losses.gpu import bin_error, neighbour_terms, sums

    def fail(kernel, *arguments, BACKWARD=True, **constants):
        if failing == "all" or kernel.__name__ == failing or (failing == "gradient_kernel" and BACKWARD):
            raise RuntimeError("PassManager::run failed")

    for module in (bin_error, neighbour_terms, sums):
        monkeypatch.setattr(module, "launch", fail)
    logits, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.int16)
    options = {**OPTIONS[operation], "regions": False, "ignore_label": None}
    with pytest.warns(UserWarning, match=f"nnunet_calib computes {operation} without Triton: RuntimeError"):
        assert getattr(gpu, operation)(logits, labels, **options) is None
    assert getattr(gpu, operation)(logits, labels, **options) is None
