"""What is found in a loss, however it was put together, and that nothing else is."""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.nnunet.training.loss_parts import missing_terms, parts
from nnunet_calib.nnunet.training.loss_terms import NoTerm, add_term, replace_cross_entropy
from tests.nnunet.training.test_loss_terms import MODES, nnunet_loss


class Attribute:
    """Holds a loss in an attribute, and has it as a method."""

    def __init__(self, loss):
        self.loss = loss

    def compute(self, x, y):
        """Its value."""
        return self.loss(x, y)


@dataclass(slots=True)
class Slot:
    """Holds it in a slot."""

    loss: object


class Compiled(nn.Module):
    """What torch.compile returns, and DDP, in names."""

    def __init__(self, loss):
        super().__init__()
        self._orig_mod = loss


class Hidden:
    """What Attribute holds, behind a proxy that fails when it is asked for anything."""

    def __init__(self, loss):
        object.__setattr__(self, "inner", loss)

    def __getattribute__(self, name):
        raise ReferenceError(name)


def local_class(loss):
    """A module whose class, not whose instance, holds the loss: it is captured by the method."""

    class Local(nn.Module):
        def forward(self, x, y):
            return 2 * loss(x, y)

    return Local()


def default(loss):
    """A function with it as a default."""

    def compute(x, y, inner=loss):
        return inner(x, y)

    return compute


def decorated(loss):
    """A function with it in an attribute, as functools.wraps leaves."""

    @functools.wraps(loss)
    def compute(x, y):
        return loss(x, y)

    return compute


FORMS = {
    "module": lambda loss: loss,
    "modules": lambda loss: nn.Sequential(nn.Identity(), nn.ModuleList([loss])),
    "orig_mod": Compiled,
    "compile": lambda loss: torch.compile(loss, backend="eager"),
    "compiled function": lambda loss: torch.compile(lambda x, y: loss(x, y), backend="eager"),
    "attribute": Attribute,
    "method": lambda loss: Attribute(loss).compute,
    "slot": Slot,
    "function": lambda loss: lambda x, y: loss(x, y),
    "default": default,
    "decorated": decorated,
    "local class": local_class,
    "partial": lambda loss: functools.partial(lambda f, x, y: f(x, y), loss),
    "containers": lambda loss: Attribute([({"a": [loss]},), {1}]),
    "deep": lambda loss: Compiled(nn.ModuleList([local_class(Attribute(functools.partial(loss)))])),
}


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, id=name, marks=pytest.mark.slow if "compile" in name else ()) for name, form in FORMS.items()],
)
def test_found(form):
    """A term in a loss of every form; and without the term nothing passes for it."""
    plain, loss = nnunet_loss(MODES["labels"], deep=True), nnunet_loss(MODES["labels"], deep=True)
    term = NACLLoss()
    loss = form(add_term(loss, term, 0.1))
    assert any(part is term for part in parts(loss))
    assert missing_terms(loss, [NACLLoss, nn.Module]) == []
    assert missing_terms(loss, [NACLLoss, ML1ACELoss, NoTerm]) == [ML1ACELoss, NoTerm]
    assert missing_terms(form(plain), [NACLLoss]) == [NACLLoss]


def test_replaced():
    """What stands in the place of the cross-entropy."""
    loss = replace_cross_entropy(nnunet_loss(MODES["labels"], deep=True), SVLSLoss())
    assert missing_terms(loss, [SVLSLoss, NoTerm, NACLLoss]) == [NACLLoss]


def test_subclass():
    """A term derived from the promised one is one."""

    class Mine(NACLLoss):
        pass

    assert missing_terms(add_term(nn.Identity(), Mine(), 1.0), [NACLLoss]) == []


def test_odd():
    """Circles, empty cells, no loss at all, and objects that fail when they are looked at."""
    circle = Attribute([])
    circle.loss.append(circle)
    assert len([part for part in parts(circle) if part is circle]) == 1

    def empty():
        return late

    assert missing_terms(empty, [NACLLoss]) == [NACLLoss]
    late = NACLLoss()
    assert missing_terms(empty, [NACLLoss]) == []
    assert missing_terms(None, [NACLLoss]) == [NACLLoss]
    assert missing_terms(Attribute([Hidden(1), NACLLoss()]), [NACLLoss]) == []
