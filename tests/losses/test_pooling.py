"""Bins pooled over a batch, in one process and over the ranks of a distributed training."""

import pytest
import torch
from torch import distributed

from nnunet_calib.losses import DicePlusPlusLoss, FocalLoss, MDCALoss, ML1ACELoss, NACLLoss, SVLSLoss
from tests.worlds.ranks import RANKS, on_ranks

LOSSES = {
    "pooled": ML1ACELoss(pool="batch"),
    "pooled soft ece": ML1ACELoss(pool="batch", binning="soft", reduction="ece"),
    "per image": ML1ACELoss(),
    "nacl": NACLLoss(),
    "svls": SVLSLoss(),
    "focal": FocalLoss(),
    "dsc++": DicePlusPlusLoss(),
    "pooled dsc++": DicePlusPlusLoss(pool="batch"),
    "pooled mdca": MDCALoss(pool="batch"),
}


def batch(images: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(images, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 3, (images, 1, 4, 5, 6), generator=generator)


@pytest.mark.parametrize("options", [{}, {"binning": "soft"}, {"reduction": "ece"}, {"ignore_label": 2}])
def test_pooled_equals_one_long_image(options):
    """Binning all images together is binning one image that holds all their voxels; value and gradient."""
    logits, target = batch()
    pooled = logits.clone().requires_grad_()
    value = ML1ACELoss(pool="batch", **options)(pooled, target)
    value.backward()
    joined = torch.cat(list(logits), dim=1)[None].requires_grad_()
    expected = ML1ACELoss(**options)(joined, torch.cat(list(target), dim=1)[None])
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat(list(pooled.grad), dim=1)[None], joined.grad, rtol=1e-10, atol=1e-14)
    assert abs(value.item() - ML1ACELoss(**options)(logits, target).item()) > 1e-4  # pooling does change it


def test_unknown_pool():
    """Told at once."""
    with pytest.raises(ValueError, match="expected pool to be one of 'image', 'batch', got 'ranks'"):
        ML1ACELoss(pool="ranks")


def _gradient(name: str, scale: torch.Tensor, images: slice) -> torch.Tensor:
    """Gradient of a loss by a parameter that all ranks share: a factor of the logits of each class."""
    logits, target = batch()
    LOSSES[name](logits[images] * scale[None, :, None, None, None], target[images]).backward()
    return scale.grad


def _averaged_gradients(rank: int) -> dict[str, list[float]]:
    averaged = {}
    for name in LOSSES:
        scale = torch.linspace(0.5, 1.5, 3, dtype=torch.float64).requires_grad_()
        gradient = _gradient(name, scale, slice(2 * rank, 2 * rank + 2))
        distributed.all_reduce(gradient)
        averaged[name] = (gradient / RANKS).tolist()  # DDP averages over the ranks
    return averaged


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    """Two ranks with half of the batch each, averaged as DDP does, against one process with the whole batch."""
    for measured in on_ranks(_averaged_gradients, tmp_path):
        for name in LOSSES:
            scale = torch.linspace(0.5, 1.5, 3, dtype=torch.float64).requires_grad_()
            expected = _gradient(name, scale, slice(None)).tolist()
            assert measured[name] == pytest.approx(expected, rel=1e-10, abs=1e-15), name
