"""Which folder may import what, read from the source: imports run downwards, and nnU-Net stays behind one wall."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nnunet_calib"
LONGEST_FILE = 400
FILES_IN_A_FOLDER = range(3, 14)  # beside __init__.py
MODULES_AT_THE_TOP = 8

# A folder ends with "/". Each entry imports itself and what stands below it.
LAYERS = (
    "cli",
    "commands/",
    "demo",
    "demo_truth",
    "demo_commands",
    "trainers",
    "nnunet/",
    "report/",
    "figures/",
    "decisions/",
    "results/",
    "metrics/",
    "measuring/",
    "synthetic",
    "posthoc/",
    "losses/",
    "io/",
    "threads",
    "binning",
)
BESIDE = {"nnunet/": {"report/", "figures/"}}  # above them, and knows nothing of them: trainers hand figures in

# Libraries besides Python's own, and where they are imported: nnU-Net, matplotlib, Jinja2 and Triton in one place each.
ANYWHERE = {"numpy", "torch"}
LIBRARIES = {
    "nnunetv2": {"nnunet/", "trainers"},
    "matplotlib": {"figures/"},
    "PIL": {"figures/"},
    "jinja2": {"report/"},
    "triton": {"losses/"},
    "cc3d": {"decisions/"},
    "scipy": {"results/", "metrics/", "measuring/", "posthoc/", "synthetic"},
    "tqdm": {"demo", "figures/", "nnunet/", "report/", "results/"},
    "SimpleITK": {"demo", "demo_truth", "nnunet/"},
    "nibabel": {"nnunet/"},
    "skimage": {"nnunet/"},
    "tifffile": {"nnunet/"},
}


def module_name(path: Path) -> str:
    """Return `losses/nacl` for nnunet_calib/losses/nacl.py, `losses/` for its __init__.py, "" for the package's own."""
    name = path.relative_to(ROOT / PACKAGE).with_suffix("").as_posix()
    return name.removesuffix("__init__")


def layer(module: str) -> str:
    """Return the entry of LAYERS that a module belongs to, or would."""
    top, slash, _ = module.partition("/")
    return top + slash


def imported(source: str) -> Iterator[str]:
    """Yield the dotted names of all imports, also those in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # `from nnunet_calib import demo` imports a module, `from nnunet_calib.demo import run_demo` a name
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == PACKAGE else [base]


def violations(module: str, source: str) -> list[str]:
    """Return what a module imports and may not."""
    own = layer(module)
    if module and own not in LAYERS:
        return [f"{module} is in no layer"]
    # the package itself imports the homes of its public names
    below = {*LAYERS[LAYERS.index(own) :]} - BESIDE.get(own, set()) if module else {*LAYERS}
    found = []
    for name in imported(source):
        top, _, rest = name.partition(".")
        if top == PACKAGE:
            target = rest.split(".")[0]
            if target and not {target, f"{target}/"} & below:
                found.append(f"{module} imports {name}")
        elif top not in sys.stdlib_module_names and top not in ANYWHERE and own not in LIBRARIES.get(top, ()):
            found.append(f"{module} imports {name}")
    return found


def sources() -> list[Path]:
    """Return the package's files."""
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def test_imports_run_downwards():
    """No module imports what lies above it, or a library that it has no business with."""
    paths = sources()
    assert {layer(module_name(path)) for path in paths} - {""} == {*LAYERS}
    assert [v for path in paths for v in violations(module_name(path), path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("binning", "import nnunet_calib.metrics"),
        ("binning", "import matplotlib.pyplot as plt"),
        ("measuring/histograms", "from nnunet_calib import metrics"),
        ("metrics/errors", "def f():\n    from nnunet_calib.figures.fold_figures import draw_fold"),
        ("measuring/case_statistics", "from nnunetv2.paths import nnUNet_raw"),
        ("losses/nacl", "from nnunet_calib.measuring.case_statistics import CaseStatistics"),
        ("losses/nacl", "import scipy"),
        ("results/fold_summary", "from nnunet_calib.nnunet.labels import heads_of"),
        ("results/fold_summary", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
        ("nnunet/", "from nnunet_calib.cli import main"),
        ("nnunet/validation/hook", "from nnunet_calib.figures import fold_figures"),
        ("figures/fold_figures", "from nnunet_calib.nnunet.labels import heads_of"),
        ("figures/fold_figures", "from ..nnunet.labels import heads_of"),
        ("report/page", "import matplotlib"),
        ("trainers", "import nnunet_calib.demo"),
        ("demo", "from nnunet_calib import cli"),
        ("demo", "import nnunetv2"),
        ("unheard_of", ""),
    ],
)
def test_the_check_fails(module, line):
    """It sees forbidden imports in every form: aliases, in functions, for types only, relative, of unknown modules."""
    assert violations(module, f"import os\nimport nnunet_calib\n{line}") != []


def test_without_nnunet():
    """Everything below the wall imports where nnU-Net is not installed."""
    below = LAYERS[LAYERS.index("nnunet/") + 1 :]
    names = [module_name(path) for path in sources()]
    modules = [
        f"{PACKAGE}.{name.rstrip('/').replace('/', '.')}"
        for name in names
        if layer(name) in below and not name.startswith("losses/gpu")
    ]
    code = (
        "import importlib, sys\n"
        "sys.modules['nnunetv2'] = None\n"  # so that importing it fails
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_trainers_folder():
    """The folder that nnU-Net imports holds imports of the package's trainers, and nothing else."""
    for path in (ROOT / "trainers").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert {*imported(source)} == {"nnunet_calib.trainers"}
        docstring, *rest = ast.parse(source).body
        assert isinstance(docstring, ast.Expr)
        assert all(isinstance(node, ast.ImportFrom) for node in rest)


def test_files():
    """Files are short, folders hold a handful of files, and each file has a name that says what is in it."""
    paths = [*sources(), *(ROOT / "trainers").rglob("*.py")]
    assert [str(p) for p in paths if len(p.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE] == []
    assert [str(p) for p in paths if p.stem in ("utils", "helpers", "misc", "common")] == []
    folders = {path.parent for path in sources()} - {ROOT / PACKAGE, ROOT / PACKAGE / "commands"}  # a module a command
    sizes = {folder.name: len([*folder.glob("*.py")]) - 1 for folder in folders}
    assert {name: size for name, size in sizes.items() if size not in FILES_IN_A_FOLDER} == {}
    assert len([*(ROOT / PACKAGE).glob("*.py")]) - 1 <= MODULES_AT_THE_TOP
