"""Which module may import what, read from the source: data flows one way, and only `integration` knows nnU-Net."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nnunet_calib"
LONGEST_FILE = 400

MEASURING = {
    "binning", "likelihood", "temperature", "threads", "scopes", "files", "names", "processes", "slabs", "slices",
    "sure_voxels", "fine_bins", "histograms", "archives", "json_files", "summary_forms", "statistics_file", "joint_fit",
    "binner", "voxel_sample", "case_pass", "statistics", "definitions", "metrics", "sampling_error", "significance",
}

# Module, or folder with a "/" -> the modules of the package that it may import. A new module needs a line here.
OWN = {
    "binning": set(),
    "scopes": set(),
    "likelihood": set(),
    "temperature": {"likelihood"},
    "files": set(),
    "processes": {"files"},
    "names": {"files"},
    "threads": set(),
    "archives": {"files"},
    "json_files": {"files"},
    "summary_forms": {"json_files"},
    "slabs": set(),
    "slices": {"scopes"},
    "sure_voxels": set(),
    "fine_bins": {"binning", "temperature"},
    "histograms": {"fine_bins", "scopes", "sure_voxels"},
    "voxel_sample": {"histograms", "temperature"},
    "binner": {"fine_bins", "histograms", "sure_voxels"},
    "class_lumps": {"temperature"},
    "case_pass": {"binner", "class_lumps", "histograms", "slabs", "sure_voxels", "temperature", "voxel_sample"},
    "joint_fit": {"likelihood", "temperature", "threads", "voxel_sample"},
    "statistics_file": {"archives", "class_lumps", "files", "fine_bins", "histograms", "slices", "voxel_sample"},
    "statistics": {
        "case_pass", "class_lumps", "histograms", "scopes", "slabs", "slices", "statistics_file", "threads",
        "voxel_sample",
    },
    "definitions": set(),
    "metrics": {"definitions", "fine_bins", "histograms", "statistics"},
    "sampling_error": {"histograms", "metrics", "statistics", "voxel_sample"},
    "significance": set(),
    "synthetic": {"temperature"},
    "losses/": {"losses/", "binning"},
    "losses/gpu/": {"losses/"},
    "integration/": {"integration/", "losses/", *MEASURING},
    "report/": {
        "report/", "metrics", "statistics", "files", "names", "json_files", "summary_forms", "significance", "slices",
        "temperature",
    },
    "trainers": {"integration/", "report/"},
    "demo_truth": {"integration/", "synthetic", *MEASURING},
    "demo": {"demo_truth", "integration/", "synthetic", *MEASURING},
    "commands/": {"commands/", "integration/", "report/", "trainers", "demo", "json_files", "summary_forms"},
    "cli": {"commands/", "processes"},
    "": {"statistics", "metrics", "temperature"},  # the package itself: its public names
}

# What they may import besides Python's own library.
THIRD_PARTY = {
    "losses/": {"torch"},
    "losses/gpu/": {"torch", "triton"},
    "integration/": {"numpy", "torch", "nnunetv2", "tqdm", "SimpleITK", "nibabel", "skimage", "tifffile"},
    "report/": {"numpy", "matplotlib", "PIL", "jinja2", "tqdm"},
    "trainers": {"nnunetv2"},
    "demo_truth": {"numpy", "SimpleITK"},
    "demo": {"numpy", "SimpleITK", "tqdm"},
    "commands/": set(),
    "cli": set(),
    "": set(),
}
ELSEWHERE = {"numpy", "torch", "scipy"}


def module_name(path: Path) -> str:
    """`losses/nacl` for nnunet_calib/losses/nacl.py, `losses/` for its __init__.py, "" for the package's own."""
    name = path.relative_to(ROOT / PACKAGE).with_suffix("").as_posix()
    return name.removesuffix("__init__")


def entry(module: str) -> str:
    """The entry of the tables that a module falls under: the innermost of its folders that has one."""
    folders = [module[: at + 1] for at, sign in enumerate(module) if sign == "/"]
    return next((folder for folder in reversed(folders) if folder in OWN), folders[0] if folders else module)


def imported(source: str) -> Iterator[str]:
    """Dotted names of all imports, also those in functions and under TYPE_CHECKING; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # `from nnunet_calib import metrics` imports a module, `from nnunet_calib.metrics import NUM_BINS` a name
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == PACKAGE else [base]


def violations(module: str, source: str) -> list[str]:
    """What a module imports and may not."""
    key = entry(module)
    if key not in OWN:
        return [f"{module} is not in the table"]
    found = []
    for name in imported(source):
        top, _, rest = name.partition(".")
        if top == PACKAGE:
            own = rest.split(".")[0]
            if own and own not in OWN[key] and f"{own}/" not in OWN[key]:
                found.append(f"{module} imports {name}")
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY.get(key, ELSEWHERE):
            found.append(f"{module} imports {name}")
    return found


def sources() -> list[Path]:
    """The package's files."""
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def test_order_of_imports():
    """No module imports what lies above it, or a library that it has no business with."""
    paths = sources()
    assert {entry(module_name(path)) for path in paths} == set(OWN)
    assert [v for path in paths for v in violations(module_name(path), path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("binning", "import nnunet_calib.metrics"),
        ("binning", "import matplotlib.pyplot as plt"),
        ("histograms", "from nnunet_calib import statistics"),
        ("metrics", "def f():\n    from nnunet_calib.report.figures import draw_fold"),
        ("statistics", "from nnunetv2.paths import nnUNet_raw"),
        ("losses/nacl", "from nnunet_calib.statistics import CaseStatistics"),
        ("losses/nacl", "import scipy"),
        ("losses/", "import numpy as np"),
        ("integration/folds", "from nnunet_calib.report import figures"),
        ("integration/folds", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
        ("integration/", "from nnunet_calib.cli import main"),
        ("report/figures", "from nnunet_calib.integration.labels import Heads"),
        ("report/figures", "from ..integration.labels import Heads"),
        ("trainers", "import nnunet_calib.demo"),
        ("demo", "from nnunet_calib import cli"),
        ("demo", "import nnunetv2"),
        ("unheard_of", ""),
    ],
)
def test_the_check_fails(module, line):
    """It sees forbidden imports in every form: aliases, in functions, for types only, relative, of unknown modules."""
    assert violations(module, f"import os\nimport nnunet_calib\n{line}") != []


def test_the_trainers_folder():
    """The folder that nnU-Net imports holds imports of the package's trainers, and nothing else."""
    for path in (ROOT / "trainers").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert {*imported(source)} == {"nnunet_calib.trainers"}
        docstring, *rest = ast.parse(source).body
        assert isinstance(docstring, ast.Expr)
        assert all(isinstance(node, ast.ImportFrom) for node in rest)


def too_long(path: Path) -> bool:
    """Whether a file has more lines than a file should have."""
    return len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE


def test_files():
    """Files are short, and each has a name that says what is in it."""
    paths = [*sources(), *(ROOT / "trainers").rglob("*.py")]
    assert [str(p) for p in paths if too_long(p)] == []
    assert [str(p) for p in paths if p.stem in ("utils", "helpers", "misc", "common")] == []
