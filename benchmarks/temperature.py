"""Time and error of temperature fits on a CPU: ours, L-BFGS, and netcal's where it is installed.

    python benchmarks/temperature.py --voxels 20000000 --classes 4 --true 2

All methods fit the same voxels in one process and take turns; medians are compared. The error is that of T against the
minimiser of the mean NLL, found in float64 by SciPy's bounded scalar search.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from nnunet_calib import fit_temperature

# T, and a word on how it was found
Fit = Callable[[Tensor, Tensor], tuple[float, str]]
PART = 1 << 17  # voxels at a time, where memory matters


def make_voxels(n: int, classes: int, true: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return float32 logits (n, C) of a mostly confident network, and labels drawn from softmax(z / T)."""
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.empty(n, classes), torch.empty(n, dtype=torch.int64)
    for start in range(0, n, PART):
        z = torch.randn(len(logits[start : start + PART]), classes, generator=generator)
        winner = torch.randint(classes, (len(z), 1), generator=generator)
        z.scatter_add_(1, winner, 14 * torch.rand(len(z), 1, generator=generator) ** 0.3)
        cumulative = torch.softmax(z, 1).cumsum(1)[:, :-1]
        labels[start : start + PART] = (torch.rand(len(z), 1, generator=generator) > cumulative).sum(1)
        logits[start : start + PART] = z * true
    return logits, labels


def mean_nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Compute the mean NLL in float64, part by part."""
    total = 0.0
    for z, y in zip(logits.split(PART), labels.split(PART), strict=True):
        z = z.double().T.contiguous()  # a softmax over the first axis is the faster one
        log_p = torch.log_softmax(z / temperature, 0)
        total -= float(log_p.gather(0, y[None]).sum())
    return total / len(logits)


def reference(logits: Tensor, labels: Tensor, near: float) -> float:
    """Return the minimiser by an independent method, started near the solution."""
    result = minimize_scalar(
        lambda t: mean_nll(logits, labels, t),
        bounds=(near / 1.05, near * 1.05),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(result.x)


def ours(logits: Tensor, labels: Tensor) -> tuple[float, str]:
    """Fit by this package."""
    fit = fit_temperature(logits, labels)
    return fit.temperature, f"{fit.iterations} passes"


def lbfgs(lr: float, start: float, iterations: int, line_search: str | None) -> Fit:
    """Fit T by full-batch L-BFGS with PyTorch's tolerances."""

    def fit(logits: Tensor, labels: Tensor) -> tuple[float, str]:
        temperature = torch.full((1,), start, requires_grad=True)
        optimiser = torch.optim.LBFGS([temperature], lr=lr, max_iter=iterations, line_search_fn=line_search)
        calls = 0

        def closure() -> Tensor:
            nonlocal calls
            calls += 1
            optimiser.zero_grad()
            loss = cross_entropy(logits / temperature, labels)
            loss.backward()
            return loss

        optimiser.step(closure)
        return temperature.item(), f"{calls} passes, forward and backward"

    return fit


def netcal(dtype: torch.dtype) -> Fit:
    """Return the fit by netcal, which takes probabilities; the softmax is part of the time."""

    def fit(logits: Tensor, labels: Tensor) -> tuple[float, str]:
        from netcal.scaling import TemperatureScaling

        scaling = TemperatureScaling()
        p = torch.empty(logits.T.shape, dtype=dtype)
        torch.softmax(logits.T.to(dtype), 0, out=p)
        scaling.fit(p.T.numpy(), labels.numpy(), tensorboard=False)
        return 1 / float(scaling.temperature[0]), ""  # its temperature is a factor

    return fit


METHODS: dict[str, Fit] = {
    "fit_temperature": ours,
    "L-BFGS, lr 1": lbfgs(1, 1.5, 100, None),
    "L-BFGS, lr 1, strong Wolfe": lbfgs(1, 1.5, 100, "strong_wolfe"),
    "L-BFGS, lr 0.01, 50 iterations": lbfgs(0.01, 1.5, 50, None),
    "netcal, float32": netcal(torch.float32),
    "netcal, float64": netcal(torch.float64),
}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=20_000_000)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--true", type=float, default=2.0, help="the temperature that the labels were drawn with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--reference", type=float, help="the minimiser, from a run with the same voxels; not sought then"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    logits, labels = make_voxels(options.voxels, options.classes, options.true, options.seed)
    best = options.reference or reference(logits, labels, ours(logits, labels)[0])
    print(f"{options.voxels} voxels, {options.classes} classes, drawn with T = {options.true}; minimiser {best:.9f}\n")
    names = list(dict.fromkeys(["fit_temperature", *options.methods]))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, tuple[float, str]] = {}
    for _ in range(options.rounds):
        for name in names:
            start = time.perf_counter()
            try:
                found[name] = METHODS[name](logits, labels)
            except ImportError as error:
                found[name] = math.nan, f"not installed: {error.name}"
            seconds[name].append(time.perf_counter() - start)
    print("| method | s | times ours | T | off by | |\n|---|---|---|---|---|---|")
    unit = median(seconds["fit_temperature"])
    for name in names:
        (found_t, note), taken = found[name], median(seconds[name])
        print(f"| {name} | {taken:.2f} | {taken / unit:.1f} | {found_t:.7f} | {abs(found_t - best):.1e} | {note} |")


if __name__ == "__main__":
    main()
