"""Loss scaling in half precision: nnU-Net's GradScaler multiplies the loss, and no gradient may be lost before that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_calib.losses import DicePlusPlusLoss, FocalLoss, ML1ACELoss, NACLLoss, SVLSLoss

pytestmark = pytest.mark.skipif(
    not hasattr(torch.amp, "GradScaler"), reason="PyTorch before 2.3 has no scaler for a CPU"
)

LOSSES = {
    "ace": ML1ACELoss(),
    "ece": ML1ACELoss(reduction="ece"),
    "mce": ML1ACELoss(reduction="mce"),
    "soft": ML1ACELoss(binning="soft"),
    "pooled": ML1ACELoss(pool="batch"),
    "nacl": NACLLoss(),
    "svls": SVLSLoss(),
    "focal": FocalLoss(),
    "dsc++": DicePlusPlusLoss(),
}
SMALLEST_HALF = 2.0**-24  # what float16 can hold
SCALE = 2.0**16  # GradScaler's first
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def sure_batch(shape: tuple[int, ...] = (32, 32, 32)) -> tuple[torch.Tensor, torch.Tensor]:
    """What a trained network gives: a ball of one class in another, with a narrow border of doubt and noise."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    distance = 0.6 - sum(a**2 for a in axes).sqrt()
    generator = torch.Generator().manual_seed(1)
    logits = torch.stack([-20 * distance, 20 * distance, -8 - 4 * distance.abs()])
    return logits + torch.randn(2, 3, *shape, generator=generator), (distance > 0)[None, None].repeat(2, 1, 1, 1, 1)


@HALVES
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_the_logits(name, dtype):
    """Half logits get the float32 gradient times the scale, rounded once; float16 without scaling loses nearly all."""
    logits, target = sure_batch()
    logits = logits.to(dtype)
    plain = logits.float().requires_grad_()
    LOSSES[name](plain, target).backward()
    logits.requires_grad_()
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    with torch.autocast("cpu", dtype=dtype):
        loss = LOSSES[name](logits, target)
    scaler.scale(loss).backward()
    expected = SCALE * plain.grad
    assert expected.isfinite().all()
    absolute = SMALLEST_HALF if dtype == torch.float16 else 0
    torch.testing.assert_close(logits.grad, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=absolute)
    if name == "ace":  # the premise
        assert (plain.grad.abs() < SMALLEST_HALF).float().mean() > 0.9
        assert (logits.grad != 0).float().mean() > 3 * (plain.grad.abs() >= SMALLEST_HALF).float().mean()


@HALVES
@pytest.mark.parametrize("name", LOSSES)
def test_training_step(name, dtype):
    """The parameters of a network under autocast get, unscaled, the gradients of the same step in float32."""
    torch.manual_seed(0)
    image, (_, target) = torch.randn(2, 1, 16, 16, 16), sure_batch((16, 16, 16))
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(4, 3, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def gradients() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    LOSSES[name](network(image), target).backward()
    expected = gradients()
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    with torch.autocast("cpu", dtype=dtype):
        output = network(image)
        assert output.dtype == dtype
        loss = LOSSES[name](output, target)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    error = (gradients() - expected).norm() / expected.norm()
    assert error < 40 * torch.finfo(dtype).eps
