"""The losses by themselves: whether each backend is right, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from benchmarks.gpu.setting import Setting, waiting_is_an_error
from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss, use
from nnunet_calib.nnunet.training.loss_terms import add_term, replace_cross_entropy

IGNORE = 99
TERMS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "mL1-ACE": (ML1ACELoss, {}),
    "mL1-ACE, soft": (ML1ACELoss, {"binning": "soft"}),
    "NACL": (NACLLoss, {}),
    "SVLS": (SVLSLoss, {}),
}


def nnunet_loss(regions: bool, ignore: bool = False) -> nn.Module:
    """Return nnU-Net's own loss, as its trainers build it."""
    dice = {"batch_dice": False, "smooth": 1e-5, "ddp": False, "do_bg": regions}
    if regions:
        return DC_and_BCE_loss({}, dice, use_ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
    ignore_label = IGNORE if ignore else None
    return DC_and_CE_loss(dice, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)


def with_term(name: str, heads: int, regions: bool, ignore: bool = False) -> nn.Module:
    """Return nnU-Net's loss with a term, or alone."""
    base = nnunet_loss(regions, ignore)
    if name not in TERMS:
        return base
    kind, options = TERMS[name]
    term = kind(**options, regions=regions, ignore_label=IGNORE if ignore else None)
    return replace_cross_entropy(base, term, heads) if kind is SVLSLoss else add_term(base, term, 1.0)


def batch(
    setting: Setting, heads: int, shape: tuple[int, ...], regions: bool, *, trained: bool = True, ignore: bool = False
) -> tuple[Tensor, Tensor]:
    """Return logits, half-precision on a GPU, of two volumes of blocks, and nnU-Net's target."""
    generator = torch.Generator(device=setting.device).manual_seed(0)
    coarse = torch.randint(
        0, heads, (2, 1, *(-(-s // 8) for s in shape)), generator=generator, device=setting.device
    ).float()
    labels = torch.nn.functional.interpolate(coarse, size=shape).long()
    maps = torch.zeros((2, heads, *shape), device=setting.device).scatter_(1, labels, 1)
    logits = torch.randn(maps.shape, generator=generator, device=setting.device)
    if trained:
        logits += 11 * maps - 5 * regions
    ignored = torch.rand(labels.shape, generator=generator, device=setting.device) < 0.1
    if regions:
        target = torch.cat([maps.bool(), ignored], 1) if ignore else maps.bool()
    else:
        target = (torch.where(ignored, IGNORE, labels) if ignore else labels).short()
    return (logits.half() if setting.on_gpu else logits).requires_grad_(), target


def step(setting: Setting, loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Return a loss whose gradient has been computed, scaled as by a gradient scaler."""
    logits.grad = None
    with setting.autocast():
        value = loss(logits, target)
    (value * 1024).backward()
    return value.detach()


def compared(setting: Setting, name: str, loss: nn.Module, logits: Tensor, target: Tensor) -> tuple[float, float]:
    """Return the difference of a backend's value and gradient from the formulas', the latter by its largest entry."""
    with use("reference"):
        expected = step(setting, loss, logits, target)
    assert logits.grad is not None
    gradient = logits.grad.float()
    with use(name):
        actual = step(setting, loss, logits, target)
    off = (logits.grad.float() - gradient).abs() > 2e-3 * gradient.abs() + 2e-3 * gradient.abs().max()
    return abs(float(actual) - float(expected)), float(off.float().mean())


def correctness(setting: Setting) -> bool:
    """Compare every backend with the formulas, and see that its steps wait for nothing and repeat to the last bit."""
    good = True
    print("| backend | target | shape | loss | value off by | share of gradient off | waits | repeats |")
    print("|---|---|---|---|---|---|---|---|")
    shapes = [(6, 7, 9), (7, 10)] if not setting.on_gpu else [(32, 40, 48), (33, 35, 37), (96, 128)]
    for regions, ignore, shape in product((False, True), (False, True), shapes):
        logits, target = batch(setting, 4, shape, regions, ignore=ignore)
        for name, term in product(setting.backends[1:], TERMS):
            loss = with_term(term, 4, regions, ignore)
            kind = f"{'regions' if regions else 'labels'}{' with ignore' if ignore else ''}"
            try:
                value, gradient = compared(setting, name, loss, logits, target)
            except ValueError as error:
                print(f"| {name} | {kind} | {shape} | {term} | {error} | | | |")
                continue
            repeats, waits = _repeats(setting, name, loss, logits, target)
            right = value < 1e-4 and gradient < 1e-3 and repeats and not waits
            good &= right or name != "triton"
            mark = "" if right else " **wrong**"
            cells = (name, kind, shape, term, f"{value:.1e}", f"{gradient:.1e}", waits or "no", f"{repeats}{mark}")
            print("|", " | ".join(map(str, cells)), "|", flush=True)
    return good


def _repeats(setting: Setting, name: str, loss: nn.Module, logits: Tensor, target: Tensor) -> tuple[bool, str]:
    """Return whether two steps are the same to the last bit, and where the host waited for the device, if it did."""
    found, waits = [], ""
    with use(name):
        for _ in range(2):
            try:
                with waiting_is_an_error(setting):
                    value = step(setting, loss, logits, target)
            except RuntimeError as error:
                waits = str(error)[:80]
                value = step(setting, loss, logits, target)
            found.append((value, logits.grad))
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True)), waits


def costs(setting: Setting) -> bool:
    """Time a loss with its gradient, and its memory, beside nnU-Net's own loss."""
    print("| target | logits | C | loss | backend | ms | x own | peak, MB | x float32 logits |")
    print("|---|---|---|---|---|---|---|---|---|")
    for regions, heads, trained in product((False, True), setting.classes, (True, False)):
        logits, target = batch(setting, heads, (setting.size,) * 3, regions, trained=trained)
        described = f"{'regions' if regions else 'labels'} | {'trained' if trained else 'fresh'} | {heads}"
        own = None
        for term, name in [("own", "reference"), *product(TERMS, setting.backends)]:
            loss = with_term(term, heads, regions)
            try:
                with use(name):
                    milliseconds, peak = setting.time(lambda f=loss, z=logits, y=target: step(setting, f, z, y))
            except torch.cuda.OutOfMemoryError:
                print(f"| {described} | {term} | {name} | out of memory | | | |", flush=True)
                torch.cuda.empty_cache()
                continue
            except ValueError:  # a backend that is not for these logits
                continue
            own = own or milliseconds or 1.0
            share = peak / (4 * logits.numel())
            cells = f"{milliseconds:.2f} | {milliseconds / own:.2f} | {peak / 1e6:.0f} | {share:.2f}"
            print(f"| {described} | {term} | {name} | {cells} |", flush=True)
    return True
