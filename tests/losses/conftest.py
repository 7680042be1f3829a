"""The volumes the losses are tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_calib.losses import use
from nnunet_calib.losses.chunked import parts
from tests.losses.reference import Volume

pytest.register_assert_rewrite("tests.losses.properties")

MODES = ("labels", "labels+ignore", "regions", "regions+ignore")
IGNORE_LABEL = 3
SHAPES = ((4, 5, 4), (5, 6))
CASES = {  # fixture -> label modes and shapes
    "case": (MODES, SHAPES),
    "small_case": (MODES, ((3, 3, 2), (4, 3))),  # small enough for a whole Jacobian
    "plain_case": (MODES[::2], SHAPES),
    "ignoring_case": (MODES[1::2], SHAPES),
    "case_3d": (MODES, SHAPES[:1]),
}


@dataclass(frozen=True)
class Case:
    """Two images with three heads. Head 2 is absent from the second image; the last voxel always counts."""

    logits: Tensor
    target: Tensor
    ignored: Tensor
    regions: bool
    ignore_label: int | None

    @property
    def mode(self) -> dict[str, Any]:
        """The options that go with the target."""
        return {"regions": self.regions, "ignore_label": self.ignore_label}

    def volume(self, logits: Any = None) -> Volume:
        """The same for the reference, optionally with other logits."""
        return Volume(self.logits.numpy() if logits is None else logits, self.target.numpy(), **self.mode)

    def ignore(self, where: Any) -> Case:
        """The same with some voxels ignored."""
        target, ignored = self.target.clone(), self.ignored.clone()
        target[:, -1:][where] = 1 if self.regions else IGNORE_LABEL
        ignored[where] = True
        return replace(self, target=target, ignored=ignored)

    def with_bad_logits(self) -> Case:
        """The same with NaN, Inf and -Inf for logits of the three heads in all ignored voxels."""
        bad = torch.tensor([torch.nan, torch.inf, -torch.inf]).reshape(1, 3, *[1] * (self.logits.ndim - 2))
        return replace(self, logits=torch.where(self.ignored, bad, self.logits))


def make_case(mode: str, shape: tuple[int, ...]) -> Case:
    """Random logits and target of one label mode. Ignored are a corner of the first image and a quarter of the rest."""
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 1, *shape), generator=generator)
    labels[1].clamp_(max=1)
    maps = (torch.rand(2, 3, *shape, generator=generator) < 0.4).long()
    maps[1, 2] = 0
    ignored = torch.rand(2, 1, *shape, generator=generator) < 0.25
    ignored[(0, 0, *[slice(2)] * len(shape))] = True
    ignored[(..., *[-1] * len(shape))] = False
    nothing = torch.zeros_like(ignored)
    if not mode.endswith("ignore"):
        return Case(logits, maps if mode == "regions" else labels, nothing, mode == "regions", None)
    if mode.startswith("regions"):
        return Case(logits, torch.cat([maps, nothing], dim=1).long(), nothing, True, IGNORE_LABEL).ignore(ignored)
    return Case(logits, labels, nothing, False, IGNORE_LABEL).ignore(ignored)


def case_fixture(name: str) -> Callable[..., Case]:
    """Make a fixture that runs over label modes and shapes."""

    @pytest.fixture(name=name)
    def fixture(label_mode: str, size: tuple[int, ...]) -> Case:
        return make_case(label_mode, size)

    return fixture


case, small_case, plain_case, ignoring_case, case_3d = map(case_fixture, CASES)


@pytest.fixture(params=["reference", "auto", "chunked"])
def every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The formulas, and each backend where it does not repeat another; parts so small that all volumes take several."""
    monkeypatch.setattr(parts, "ON_CPU", 60)
    with use(request.param):
        yield


def repeats_another(way: str, options: dict[str, Any]) -> bool:
    """Whether a loss with these options is computed in another way than this one, which has a test of its own."""
    if options.get("on") == "probabilities" or options.get("prior", "mean") not in ("mean", "gaussian"):
        return way != "reference"
    return way == "auto" and options.get("binning") == "soft"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out exact repeats."""
    left_out = []
    for item in items:
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        if "every_way" in params:
            options = params | params.get("variant", {}) | params.get("symmetric_variant", {})
            if repeats_another(params["every_way"], options):
                left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def value_and_gradient(
    loss: Callable[..., Tensor], logits: Tensor, target: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Loss and its gradient with respect to the logits."""
    logits = logits.clone().requires_grad_()
    value = loss(logits, target, **options)
    value.backward()
    return value.detach(), logits.grad


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Any, Any], rtol: float = 1e-12) -> None:
    """Values agree, and gradients up to `rtol` of their largest entry."""
    value, gradient = actual
    expected_value, expected_gradient = (torch.as_tensor(x, dtype=torch.float64) for x in expected)
    torch.testing.assert_close(value, expected_value, rtol=rtol, atol=0)
    largest = float(expected_gradient.abs().max())
    assert largest > 0
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=rtol * largest)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run over the label modes and shapes of a case, and the shared properties with every variant of their loss."""
    cases = CASES | getattr(metafunc.module, "SMALLER_CASES", {})
    for name in {*cases} & {*metafunc.fixturenames}:
        modes, sizes = cases[name]
        metafunc.parametrize("label_mode", modes)
        metafunc.parametrize("size", sizes, ids=lambda size: f"{len(size)}d")
    for name, values in (("variant", "variants"), ("symmetric_variant", "symmetric_variants")):
        if name in metafunc.fixturenames:
            options = getattr(metafunc.cls, values)
            metafunc.parametrize(name, options, ids=["-".join(map(str, o.values())) or "default" for o in options])
