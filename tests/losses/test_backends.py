"""The choice of a backend: by call, for a block, by the environment variable; what cannot be is refused."""

from __future__ import annotations

import re

import pytest
import torch

from nnunet_calib.losses import backends, cpu, ml1_ace_loss, nacl_loss, svls_loss, use
from nnunet_calib.losses.backends import VARIABLE, choice

LOGITS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2, 1, 4, 5), generator=torch.Generator().manual_seed(1))
every_loss = pytest.mark.parametrize("loss", [ml1_ace_loss, nacl_loss, svls_loss], ids=lambda loss: loss.__name__)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Begin without a choice."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(backends, "_chosen", None)


@pytest.fixture
def cpu_calls(monkeypatch):
    """The operations of the CPU's backend that are called."""
    made = []

    def counted(name, operation):
        def call(*args, **options):
            made.append(name)
            return operation(*args, **options)

        return call

    for name in ("voxel_sums", "nacl", "label_smoothing"):
        monkeypatch.setattr(cpu, name, counted(name, getattr(cpu, name)))
    return made


def refused(text: str):
    """Expect a ValueError with exactly this text."""
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


def test_setter_and_block():
    """A call chooses for good, a block until it ends, even by an error."""
    assert choice() == "auto"
    use("reference")
    assert choice() == "reference"
    with use("cpu"):
        assert choice() == "cpu"
        with use("auto"):
            assert choice() == "auto"
        assert choice() == "cpu"
    with pytest.raises(KeyError), use("cpu"):
        raise KeyError
    assert choice() == "reference"


def test_variable(monkeypatch):
    """The variable chooses where nothing else does; empty it is as if it were not there."""
    monkeypatch.setenv(VARIABLE, "reference")
    assert choice() == "reference"
    with use("cpu"):
        assert choice() == "cpu"
    monkeypatch.setenv(VARIABLE, "")
    assert choice() == "auto"


@every_loss
def test_choice_is_obeyed(cpu_calls, loss):
    """The formulas call no backend; "auto" on a CPU calls its own; the numbers are the same."""
    with use("reference"):
        expected = loss(LOGITS, LABELS)
    assert cpu_calls == []
    for name in ("auto", "cpu"):
        with use(name):
            torch.testing.assert_close(loss(LOGITS, LABELS), expected, rtol=1e-6, atol=0)
    assert len(cpu_calls) in (2, 4)


def test_unknown_choice(monkeypatch):
    """One sentence with the choices that there are."""
    choices = ", ".join(("auto", "reference", *backends.NAMES))
    with refused(f"expected nnunet_calib.losses.use to be one of {choices}, got 'gpu'"):
        use("gpu")
    assert choice() == "auto"
    monkeypatch.setenv(VARIABLE, "fast")
    with refused(f"expected the environment variable {VARIABLE} to be one of {choices}, got 'fast'"):
        ml1_ace_loss(LOGITS, LABELS)


def test_backend_that_this_machine_cannot_run(monkeypatch):
    """An explicit choice says why; "auto" has another way."""
    monkeypatch.setattr(cpu, "why_missing", lambda: "there is no CPU")
    text = "expected losses that can be computed here, got 'cpu' from {}: there is no CPU"
    with refused(text.format("nnunet_calib.losses.use")):
        use("cpu")
    monkeypatch.setenv(VARIABLE, "cpu")
    with refused(text.format(f"the environment variable {VARIABLE}")):
        choice()


def test_logits_that_a_backend_cannot_take():
    """Chosen, it says why; "auto" has another way."""
    labels = torch.zeros(2, 1, 4, 5, dtype=torch.int16)
    with (
        use("cpu"),
        refused(
            "expected logits that the losses' backend 'cpu' can take: it takes two or more classes, and up to 2^31 "
            "entries, and they are (2, 1, 4, 5)"
        ),
    ):
        nacl_loss(LOGITS[:, :1], labels)
    assert nacl_loss(LOGITS[:, :1], labels).isfinite()


def test_option_beyond_a_backend(cpu_calls):
    """It is left to the formulas, chosen or not."""
    with use("reference"):
        expected = nacl_loss(LOGITS, LABELS, prior="median")
    with use("cpu"):
        assert torch.equal(nacl_loss(LOGITS, LABELS, prior="median"), expected)
    assert cpu_calls == ["nacl"]


@every_loss
def test_maps_of_fractions(loss):
    """Region maps of floats may hold fractions: the formulas know what to do with them."""
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    with use("reference"):
        expected = loss(LOGITS, maps, regions=True)
    for name in ("auto", "cpu", "chunked"):
        with use(name):
            assert torch.equal(loss(LOGITS, maps, regions=True), expected)
