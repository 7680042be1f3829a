# ruff: noqa: D102 (forward is PyTorch's)
"""The last linear layers of networks: which are found, what dividing them does, and which networks are refused."""

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus, PrimusV2
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet
from torch import nn

from nnunet_calib.nnunet.deployment.bake import calibrated_weights
from nnunet_calib.nnunet.deployment.last_layers import TOLERANCE, LastLayer, find_heads, largest_deviation, outputs_of
from nnunet_calib.posthoc.temperature import Temperature

T = 1.7
UNET = {
    "input_channels": 1,
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "conv_op": nn.Conv3d,
    "kernel_sizes": 3,
    "strides": [1, 2, 2],
    "num_classes": 3,
    "n_conv_per_stage_decoder": 1,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"affine": True},
    "nonlin": nn.LeakyReLU,
}
PRIMUS = {
    "input_channels": 1,
    "embed_dim": 24,
    "patch_embed_size": (8, 8, 8),
    "num_classes": 3,
    "eva_depth": 1,
    "eva_numheads": 2,
    "input_shape": (16, 16, 16),
    "drop_path_rate": 0.5,
}
SEG_LAYERS = {f"decoder.seg_layers.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
PRIMUS_HEAD = {"up_projection.decode.2.weight", "up_projection.decode.2.bias"}


def divide(network: nn.Module, x: torch.Tensor) -> tuple[set[str], float]:
    """Names of the heads, and how far the logits are from being divided after dividing them."""
    before = outputs_of(network, x)
    layers = find_heads(network, before)
    state = copy.deepcopy(network.state_dict())
    network.load_state_dict(calibrated_weights(state, network, layers, Temperature(T)))
    heads = {name for layer in layers for names in layer for name in names}
    return heads, largest_deviation(before, outputs_of(network, x), Temperature(T), network, regions=False)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda **more: PlainConvUNet(n_conv_per_stage=1, **UNET, **more),
        lambda **more: PlainConvUNet(n_conv_per_stage=1, **UNET, nonlin_first=True, **more),
        lambda **more: ResidualEncoderUNet(n_blocks_per_stage=1, **UNET, **more),
        lambda **more: ResidualUNet(n_blocks_per_stage=1, **UNET, **more),
    ],
    ids=["plain", "nonlin_first", "residual_encoder", "residual"],
)
def test_unets(make, deep_supervision):
    """With deep supervision every head, without it the one that predicts."""
    heads, deviation = divide(make(deep_supervision=deep_supervision), torch.randn(1, 1, 8, 8, 8))
    assert heads == (SEG_LAYERS if deep_supervision else {name for name in SEG_LAYERS if ".1." in name})
    assert deviation < TOLERANCE / 5


@pytest.mark.parametrize("kind", [Primus, PrimusV2])
def test_primus(kind):
    """Its final transposed convolution; training would draw which paths to drop, inference does not."""
    heads, deviation = divide(kind(**PRIMUS).train(), torch.randn(1, 1, 16, 16, 16))
    assert heads == PRIMUS_HEAD
    assert deviation < TOLERANCE


class Small(nn.Module):
    """A block and a head, to which a test adds something."""

    def __init__(self, head: nn.Module | None = None, after=lambda z: z):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.ReLU())
        self.head = nn.Conv2d(4, 3, 1) if head is None else head
        self.after = after

    def forward(self, x):
        return self.after(self.head(self.block(x)))


class PerPixel(nn.Module):
    """A linear layer over the channels."""

    def __init__(self, bias: bool):
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=bias)

    def forward(self, x):
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


class PerRow(PerPixel):
    """The same through a matrix with a row for each pixel, where PyTorch adds the bias in the product."""

    def forward(self, x):
        rows = x.movedim(1, -1)
        return self.linear(rows.reshape(-1, 4)).view(*rows.shape[:-1], 3).movedim(-1, 1)


class Always(nn.Module):
    """Dropout in training and inference."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class LoRA(nn.Module):
    """A frozen layer and a low-rank one beside it: two last layers whose sum is the output."""

    def __init__(self):
        super().__init__()
        self.base = nn.Conv2d(4, 3, 1)
        self.down, self.up = nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 3, 1, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize(
    ("network", "heads"),
    [
        (Small(nn.Conv2d(4, 3, 1, bias=False)), {"head.weight"}),
        (Small(nn.ConvTranspose2d(4, 3, 2, 2)), {"head.weight", "head.bias"}),
        (Small(PerPixel(True)), {"head.linear.weight", "head.linear.bias"}),
        (Small(PerPixel(False)), {"head.linear.weight"}),
        (Small(PerRow(True)), {"head.linear.weight", "head.linear.bias"}),
        (Small(after=nn.Upsample(scale_factor=2, mode="bilinear")), {"head.weight", "head.bias"}),
        (Small(after=lambda z: [z, z[:, :, ::2].contiguous()]), {"head.weight", "head.bias"}),
        (Small(after=lambda z: torch.cat([z[:, 1:], -z[:, :1]], 1)), {"head.weight", "head.bias"}),
        (Small(LoRA()), {"head.base.weight", "head.base.bias", "head.up.weight"}),
    ],
    ids=["no bias", "transposed", "linear", "linear, no bias", "rows", "upsampled", "list", "moved", "sum"],
)
def test_other_heads(network, heads):
    """Heads are found by what they do, whatever they are called and whatever only moves their numbers."""
    found, deviation = divide(network, torch.randn(1, 1, 6, 6))
    assert found == heads
    assert deviation < TOLERANCE


def test_inference():
    """Networks are run as for inference: nothing they have learned changes."""
    network = Small()
    network.block.append(nn.BatchNorm2d(4))
    before = copy.deepcopy(network.train().state_dict())
    outputs_of(network, torch.randn(1, 1, 6, 6))
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)


def test_random_network():
    """Dropout that stays on in inference, for an ensemble of passes, draws the same numbers before and after."""
    network, x = Small(), torch.randn(1, 1, 6, 6)
    network.block.append(Always())
    with torch.random.fork_rng():
        state = torch.random.get_rng_state()
        assert divide(network, x)[0] == {"head.weight", "head.bias"}
        assert torch.equal(torch.random.get_rng_state(), state)


def test_parameter_added():
    """A parameter that is added to the logits is divided too."""
    network = Small()
    network.offset = nn.Parameter(torch.randn(3, 1, 1))
    network.after = lambda z: z + network.offset
    assert divide(network, torch.randn(1, 1, 6, 6))[0] == {"head.weight", "head.bias", "offset"}


def test_shared_weights():
    """A tensor under several names is divided under each of them, once, and stays one tensor."""
    network = Small()
    network.same_head = network.head
    state = network.state_dict()
    before = state["head.weight"].clone()
    layers = {LastLayer(("head.weight", "same_head.weight"), ())}
    result = calibrated_weights(state, network, layers, Temperature(T))
    torch.testing.assert_close(result["same_head.weight"], before / T)
    assert result["head.weight"] is result["same_head.weight"]
    assert torch.equal(state["head.weight"], before)
    assert [*result] == [*state]
    assert result._metadata == state._metadata
    assert divide(network, torch.randn(1, 1, 6, 6))[0] == {
        f"{a}.{b}" for a in ("head", "same_head") for b in ("weight", "bias")
    }


def refusal(network: nn.Module) -> str:
    with pytest.raises(ValueError, match="expected") as error:
        divide(network, torch.randn(1, 1, 6, 6))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (nn.Softmax(1), "Softmax after its last linear layer"),
        (nn.Sigmoid(), "Sigmoid after its last linear layer"),
        (lambda z: 30 * torch.tanh(z / 30), "Mul after its last linear layer"),
        (lambda z: torch.tanh(z), "Tanh after its last linear layer"),
        (lambda z: z.clamp(-50, 50), "Clamp after its last linear layer"),
        (nn.GroupNorm(1, 3), "NativeGroupNorm after its last linear layer"),
        (lambda z: z + 1, "logits that are off by"),
        (lambda z: z - z.detach().mean(), None),
        (lambda z: z.detach(), "an output that depends on no parameter"),
    ],
)
def test_not_linear(after, found):
    """Whatever follows the last layer is named; what looks linear and is not fails the proof."""
    network = Small(after=after)
    if found is None:  # homogeneous, though part of it is outside the graph
        divide(network, torch.randn(1, 1, 6, 6))
        return
    text = refusal(network)
    assert f"found {found}" in text
    assert "in Small: its temperature cannot be baked; apply it to probabilities instead" in text


def test_no_output():
    """Not logits at all, or none that say something."""
    assert "expected logits, or a list of them, from Small, got dict" in refusal(Small(after=lambda z: {"out": z}))
    assert "expected logits, or a list of them, from Small, got tuple" in refusal(Small(after=lambda z: ()))
    network = Small()
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    assert "expected finite logits, not all zero, from Small" in refusal(network)
    network.head.bias.data[0] = torch.nan
    assert "expected finite logits, not all zero, from Small" in refusal(network)


def test_computed_weights():
    """Weights that are computed have no tensor to divide: weight normalisation, merged low-rank updates."""
    text = refusal(Small(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 1))))
    assert "found a last layer whose weights are computed (WeightNormInterface) rather than stored" in text

    class Merged(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight + self.weight.mean(), self.bias)

    assert "whose weights are computed (Add) rather than stored" in refusal(Small(Merged(4, 3, 1)))


def test_tied_weights():
    """A head whose weights also stand elsewhere in the network: dividing them changes more than the logits."""
    network = Small(nn.Conv2d(4, 4, 1))
    network.block.insert(1, nn.Conv2d(4, 4, 1))
    network.block[1].weight = network.head.weight
    network.block.insert(2, nn.ReLU())
    del network.block[3]
    assert "found logits that are off by" in refusal(network)


def test_no_change():
    """Dividing by 1 is no change, and none is asked for; where one must be seen, none is an error."""
    network, x = Small(), torch.randn(1, 1, 6, 6)
    before = outputs_of(network, x)
    assert largest_deviation(before, outputs_of(network, x), Temperature(1.0), network, regions=False) == 0
    with pytest.raises(ValueError, match="off by"):
        largest_deviation(before, before, Temperature(1.0 + 1e-6), network, regions=False)
    with pytest.raises(ValueError, match="off by"):
        largest_deviation(before, [before[0] / T * (1 + 2 * TOLERANCE)], Temperature(T), network, regions=False)


class ShiftedAndScaled:
    """A calibrator with a factor and an offset for each channel, which changes weight and bias in two ways."""

    factor, offset = torch.tensor([0.5, 2.0, 1.5]), torch.tensor([0.1, -0.2, 0.3])

    def logits(self, z, *, regions):
        shape = (3, *[1] * (z.ndim - 1))
        return z * self.factor.view(shape) + self.offset.view(shape)

    def last_layer(self, weight, bias):
        return weight * self.factor.view(3, 1, 1, 1), (0 if bias is None else bias * self.factor) + self.offset


def test_other_calibrators():
    """Weight and bias come in pairs, so that a calibrator with an offset can be written into a layer too."""
    network, x = Small(), torch.randn(1, 1, 6, 6)
    before = outputs_of(network, x)
    layers = find_heads(network, before)
    assert layers == {LastLayer(("head.weight",), ("head.bias",))}
    state = calibrated_weights(copy.deepcopy(network.state_dict()), network, layers, ShiftedAndScaled())
    network.load_state_dict(state)
    assert largest_deviation(before, outputs_of(network, x), ShiftedAndScaled(), network, regions=False) < TOLERANCE
    with pytest.raises(ValueError, match=r"expected last layers with weight and bias, found head\.weight alone"):
        calibrated_weights(state, network, {LastLayer(("head.weight",), ())}, ShiftedAndScaled())
