"""Cost of the losses on a CPU, forward + backward, as ratios to nnU-Net's own loss on the same tensors.

    python benchmarks/losses.py --classes 2 4 15 60 --sizes 64 96
    python benchmarks/losses.py --regions --classes 1 3 15 --sizes 48 64

All losses take turns in one process, and medians are compared, so that a slow spell of the machine meets all of them.
Run it with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=99999999999 in the environment to keep the kernel's handling of
fresh memory, which differs between machines, out of the times. With --ace-checkout, a path to a checkout of
github.com/cai4cai/ACE-DLIRIS, the code of mL1-ACE's authors takes part; MONAI's NACL does if MONAI is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from scipy.ndimage import gaussian_filter
from torch import Tensor

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss, ml1_ace_loss, nacl_loss
from nnunet_calib.nnunet.training.loss_terms import add_term, replace_cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]
STOCK = "nnU-Net's own"
TRAINED, UNDECIDED = "trained", "undecided"


def label_map(rng: np.random.Generator, classes: int, size: int) -> np.ndarray:
    """Return background and a bumpy ball per other class; for any number, 3 to 10 % are border voxels."""
    radius = 0.4 * size / np.sqrt(classes - 1)
    bumps = gaussian_filter(rng.standard_normal((size,) * 3), 3, mode="wrap")
    bumps *= 0.1 * radius / bumps.std()
    labels = np.zeros((size,) * 3, np.int64)
    for c in range(1, classes):
        centre = rng.integers(0, size, 3)
        # distance on a torus, so that no ball is cut off
        offsets = [(np.arange(size) - x + size // 2) % size - size // 2 for x in centre]
        distance = np.sqrt(sum(o**2 for o in np.meshgrid(*offsets, indexing="ij")))
        labels[distance + bumps < radius] = c
    return labels


def border_share(labels: np.ndarray) -> float:
    """Return the fraction of voxels with a face neighbour of another label."""
    border = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        differs = np.diff(labels, axis=axis) != 0
        for ahead in (0, 1):
            where = [slice(None)] * labels.ndim
            where[axis] = slice(ahead, labels.shape[axis] - 1 + ahead)
            border[tuple(where)] |= differs
    return float(border.mean())


def make_batch(classes: int, size: int, images: int, kind: str) -> tuple[Tensor, Tensor, float]:
    """Return logits of a trained or a fresh network, int16 labels, and their fraction of border voxels."""
    rng = np.random.default_rng(classes)
    maps = [label_map(rng, classes, size) for _ in range(images)]
    target = torch.from_numpy(np.stack(maps)[:, None]).to(torch.int16)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, *(size,) * 3, generator=generator)
    if kind == TRAINED:
        for image, labels in enumerate(maps):
            for c in range(classes):
                logits[image, c] += torch.from_numpy(14 * gaussian_filter((labels == c).astype(np.float32), 0.8))
    return logits.requires_grad_(), target, float(np.mean([border_share(m) for m in maps]))


def nnunet_loss() -> DC_and_CE_loss:
    """Return nnU-Net's loss, as its trainers build it."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)


def region_batch(heads: int, size: int, images: int, kind: str) -> tuple[Tensor, Tensor, float]:
    """Return logits of nested regions, bool maps and their share of borders, like those of `make_batch`."""
    rng = np.random.default_rng(heads)
    labels = [label_map(rng, heads + 1, size) for _ in range(images)]
    target = torch.from_numpy(np.stack([[x > c for c in range(heads)] for x in labels]))
    logits = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    if kind == TRAINED:
        for index in np.ndindex(target.shape[:2]):
            logits[index] += torch.from_numpy(14 * gaussian_filter(target[index].numpy().astype(np.float32), 0.8) - 7)
    return logits.requires_grad_(), target, float(np.mean([border_share(x) for x in labels]))


def region_losses(heads: int) -> dict[str, Loss]:
    """Return the losses for regions by name, first nnU-Net's own."""

    def stock() -> DC_and_BCE_loss:
        dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
        return DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)

    return {
        STOCK: stock(),
        "Dice + BCE + mL1-ACE": add_term(stock(), ML1ACELoss(regions=True), 1.0),
        "Dice + BCE + NACL": add_term(stock(), NACLLoss(regions=True), 0.1),
        "Dice + SVLS": replace_cross_entropy(stock(), SVLSLoss(regions=True), heads),
    }


def losses(classes: int, ace_checkout: Path | None = None) -> dict[str, Loss]:
    """Return the losses to measure by name; the first is the baseline."""
    chosen: dict[str, Loss] = {
        STOCK: nnunet_loss(),
        "Dice + CE + mL1-ACE": add_term(nnunet_loss(), ML1ACELoss(), 1.0),
        "Dice + CE + NACL": add_term(nnunet_loss(), NACLLoss(), 0.1),
        "Dice + SVLS": replace_cross_entropy(nnunet_loss(), SVLSLoss(), classes),
        "mL1-ACE": ml1_ace_loss,
        "NACL": nacl_loss,
    }
    if ace_checkout is not None:
        file = ace_checkout / "ace_dliris/losses/hardl1ace.py"
        spec = importlib.util.spec_from_file_location("hardl1ace", file)
        if spec is None or spec.loader is None or not file.is_file():
            raise SystemExit(f"expected a checkout of ACE-DLIRIS, found no {file}: give its path")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        theirs, stock = module.HardL1ACELoss(to_onehot_y=True, softmax=True), nnunet_loss()
        chosen["authors' mL1-ACE"] = theirs
        chosen["Dice + CE + authors'"] = lambda z, y: stock(z, y) + theirs(z, y)
    try:
        from monai.losses import NACLLoss as MonaiNACLLoss
    except ImportError:
        return chosen
    monai = MonaiNACLLoss(classes=classes, dim=3)
    chosen["MONAI's CE + NACL"] = lambda z, y: monai(z, y[:, 0].long())
    ce = torch.nn.CrossEntropyLoss()
    chosen["CE + NACL"] = lambda z, y: ce(z, y[:, 0].long()) + 0.1 * nacl_loss(z, y)
    return chosen


def step(loss: Loss, logits: Tensor, target: Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of forward + backward."""
    logits.grad = None
    start = clock()
    loss(logits, target).backward()
    return clock() - start


def peak_memory(name: str, classes: int, size: int, images: int, kind: str, ace_checkout: Path | None) -> float:
    """Return a step's peak memory with the gradient, in multiples of the logits', from a fresh process (Linux)."""
    loss = losses(classes, ace_checkout)[name]
    step(loss, *make_batch(classes, 16, images, kind)[:2])  # what is loaded or cached once does not count
    logits, target, _ = make_batch(classes, size, images, kind)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten

    def status(key: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
        return 1024 * int(line.split()[1])

    before = status("VmRSS")
    step(loss, logits, target)
    return (status("VmHWM") - before) / (logits.numel() * 4)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4, 15, 60])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96], help="voxels along each axis")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=(TRAINED, UNDECIDED), default=[TRAINED, UNDECIDED])
    parser.add_argument("--only", nargs="+", help="measure only losses with one of these words in their names")
    parser.add_argument("--regions", action="store_true", help="regions instead of labels, as many as --classes says")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time, for a busy machine (with --threads 1)")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time (without MALLOC settings)")
    parser.add_argument("--ace-checkout", type=Path, help="checkout of the code of mL1-ACE's authors")
    options = parser.parse_args()
    if options.regions and options.memory:
        parser.error("--memory measures labels: leave out --regions")
    torch.set_num_threads(options.threads)

    clock = time.process_time if options.cpu_time else time.perf_counter
    names = list(region_losses(2) if options.regions else losses(2, options.ace_checkout))
    if options.only:
        names = [name for name in names if name == STOCK or any(word in name for word in options.only)]
    print("| logits | C | size | borders | " + " | ".join(names) + " |\n" + "|---" * (4 + len(names)) + "|")
    for kind in options.kinds:
        for classes in options.classes:
            for size in options.sizes:
                make = region_batch if options.regions else make_batch
                logits, target, border = make(classes, size, options.batch, kind)
                measured = region_losses(classes) if options.regions else losses(classes, options.ace_checkout)
                chosen = {n: loss for n, loss in measured.items() if n in names}
                if options.memory:
                    of = [(name, classes, size, options.batch, kind, options.ace_checkout) for name in names]
                    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                        cells = [f"{ratio:.2f} x" for ratio in pool.starmap(peak_memory, of, chunksize=1)]
                else:
                    for loss in chosen.values():
                        step(loss, logits, target)
                    rounds = [[step(x, logits, target, clock) for x in chosen.values()] for _ in range(options.rounds)]
                    seconds = [median(times) for times in zip(*rounds, strict=True)]
                    cells = [f"{1e3 * seconds[0]:.0f} ms", *(f"{s / seconds[0]:.2f}" for s in seconds[1:])]
                print(f"| {kind} | {classes} | {size}^3 | {border:.1%} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
