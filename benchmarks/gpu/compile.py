"""Compile every Triton kernel for GPUs that need not be there: registers, spills and shared memory of each.

    python -m benchmarks.gpu.compile [--architectures 75 80 86 89 90 100] [--kernels gradient]

No GPU and no CUDA toolkit is needed: the assembler comes with Triton. The table goes to standard output. Status 1 if a
kernel cannot be compiled or spills registers to memory.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # decided when the kernels are imported, below

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nnunet_calib.losses.gpu import neighbour_kernels, table_kernels, voxel_kernels
from nnunet_calib.losses.gpu.bin_error import WARPS
from nnunet_calib.losses.gpu.neighbour_terms import BLOCK as NEIGHBOUR_BLOCK
from nnunet_calib.losses.gpu.sums import BLOCK as VOXEL_BLOCK

ARCHITECTURES = (75, 80, 86, 89, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOATS = ("fp16", "bf16", "fp32")

# Of every argument that is not a constant; the logits, the target and what has their type are given with each variant.
TYPES = {
    "rest_ptr": "*fp32",
    "N": "i32",
    "C": "i32",
    "D": "i32",
    "H": "i32",
    "W": "i32",
    "chunks": "i32",
    "steps": "i32",
    "ignore": "i32",
    "falloff": "fp32",
    "centre": "fp32",
    "slope_ptr": "*fp64",
    **dict.fromkeys(("nll_ptr", "total_ptr", "true_ptr", "n_ptr", "p_ptr", "s_ptr"), "*fp64"),
}
TABLES = {
    **dict.fromkeys(("w_ptr", "p_ptr", "y_ptr", "value_ptr", "slope_ptr"), "*fp64"),
    **dict.fromkeys(("B", "C", "by_image", "by_class"), "i32"),
    **dict.fromkeys(("least", "rounding", "smallest"), "fp32"),
}


class Variant(NamedTuple):
    """A kernel with the types of its arguments and its constants."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4


class Usage(NamedTuple):
    """What a compiled kernel takes of a GPU."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def _targets(logits: str) -> Iterator[tuple[str, bool, bool, dict[str, str]]]:
    """Yield a description, regions or not, an ignore label or not, and types, of each kind of target."""
    kinds = [("labels", False, "*i16"), ("regions", True, "*i1")]
    if logits == "fp32":
        kinds.append(("int32 labels", False, "*i32"))
    for name, regions, target in kinds:
        for ignore in (False, True):
            types = TYPES | {"z_ptr": f"*{logits}", "top_ptr": f"*{logits}", "y_ptr": target}
            yield f"{name}{' with ignore' if ignore else ''}, {logits}", regions, ignore, types


def variants() -> Iterator[Variant]:
    """Yield all that a training may start, up to sizes that are not constants and the number of bins."""
    for logits in FLOATS:
        types = TYPES | {"z_ptr": f"*{logits}", "top_ptr": f"*{logits}"}
        yield Variant(f"normaliser, {logits}", voxel_kernels.normaliser_kernel, types, {"BLOCK": VOXEL_BLOCK})
        for described, regions, ignore, types in _targets(logits):
            common = {"HAS_IGNORE": ignore, "REGIONS": regions, "BLOCK": VOXEL_BLOCK}
            for bins, soft in ((0, False), (20, False), (20, True)):
                name = f"{['hard', 'soft'][soft]} bins" if bins else "no bins"
                constants = common | {"M": bins, "SOFT": soft}
                columns = {"COLUMNS": 32 if bins else 8}
                yield Variant(
                    f"sums, {name}, {described}",
                    voxel_kernels.sums_kernel,
                    types | {"out_ptr": "*fp32"},
                    constants | columns,
                )
                yield Variant(
                    f"gradient, {name}, {described}",
                    voxel_kernels.gradient_kernel,
                    types | {"g_ptr": f"*{logits}"},
                    constants,
                )
            yield from _neighbours(described, logits, types, regions, ignore)
    for reduction, name in enumerate(("ACE", "ECE", "MCE")):
        for rows in (4, 64):  # classes; the second is the largest table
            yield Variant(
                f"error, {name}, {rows} classes, fp16 or other",
                table_kernels.error_kernel,
                TABLES,
                {"M": 20, "COLUMNS": 32, "ROWS": rows, "REDUCTION": reduction, "ABSENT": 0},
                WARPS,
            )


def _neighbours(described: str, logits: str, types: dict[str, str], regions: bool, ignore: bool) -> Iterator[Variant]:
    """Yield the kernels of NACL and SVLS."""
    kernel = neighbour_kernels.regions_kernel if regions else neighbour_kernels.labels_kernel
    kinds = [("NACL l1", 0, 0), ("SVLS", 2, 0)]
    if logits == "fp16":  # the others differ in a few operations
        kinds += [("NACL l2", 1, 0), *((f"NACL {prior}", 0, k) for k, prior in enumerate(("max", "min", "median"), 1))]
    for name, kind, prior in kinds:
        for backward in (False, True):
            pointers = {"out_ptr": f"*{logits}"} if backward else {"out_ptr": "*fp32", "slope_ptr": "*fp32"}
            yield Variant(
                f"{name} {'gradient' if backward else 'value'}, {described}",
                kernel,
                types | pointers,
                {
                    "KD": 3,
                    "KH": 3,
                    "KW": 3,
                    "KIND": kind,
                    "PRIOR": prior,
                    "HAS_IGNORE": ignore,
                    "BACKWARD": backward,
                    "BLOCK": NEIGHBOUR_BLOCK,
                },
            )


def compiled(variant: Variant, architecture: int) -> Any:
    """Compile a kernel as it is at run time, where 16 divides each address and the number of voxels."""
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constants else variant.types[name] for name in names}
    by_16 = [k for k, name in enumerate(names) if name == "N" or signature[name].startswith("*")]
    aligned: Any = {(k,): [["tt.divisibility", 16]] for k in by_16}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=variant.constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": variant.warps})


def usage(kernel: Any) -> Usage:
    """Ask the tools of Triton's package what a compiled kernel takes."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(kernel.asm["cubin"])
        ptx.write_text(kernel.asm["ptx"])
        resources = _output(TOOLS / "cuobjdump", "--dump-resource-usage", cubin)
        target = re.search(r"\.target (sm_(\d+)\w*)", kernel.asm["ptx"])
        assert target is not None
        tool = "ptxas-blackwell" if int(target[2]) >= 100 and (TOOLS / "ptxas-blackwell").exists() else "ptxas"
        assembled = _output(TOOLS / tool, "-v", f"-arch={target[1]}", ptx, "-o", Path(folder, "again.cubin"))
    registers = re.search(r"REG:(\d+)", resources)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes", assembled)
    if registers is None or spills is None:
        raise RuntimeError(f"expected registers and spills from {TOOLS}, got {resources[-300:]} {assembled[-300:]}")
    return Usage(int(registers[1]), int(spills[1]) + int(spills[2]), kernel.metadata.shared)


def _output(*command: Any) -> str:
    """Return both outputs of a command."""
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return ran.stdout + ran.stderr


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compile every Triton kernel for GPUs that need not be there.")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, metavar="SM")
    parser.add_argument("--kernels", nargs="+", default=[""], help="only those whose name contains one of these")
    options = parser.parse_args(arguments)
    heads = [f"sm_{a}: registers / spilled B / shared B" for a in options.architectures]
    print("| kernel |", " | ".join(heads), "|")
    print("|---|" + "---|" * len(heads))
    failed: list[str] = []
    for variant in variants():
        if not any(part in variant.name for part in options.kernels):
            continue
        cells = []
        for architecture in options.architectures:
            try:
                found = usage(compiled(variant, architecture))
            except Exception as error:  # of any kernel: the table says which, and the others are worth knowing
                found = None
                cells.append(f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " "))
            else:
                cells.append(" / ".join(map(str, found)))
            if found is None or found.spilled_bytes:
                failed.append(f"{variant.name} for sm_{architecture}")
        print(f"| {variant.name} |", " | ".join(cells), "|", flush=True)
    for name in failed:
        print(f"failed or spilled: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
