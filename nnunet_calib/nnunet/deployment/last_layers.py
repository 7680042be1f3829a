"""Finds the last linear layers of a network, and proves that calibrating them calibrates its logits.

They are found in the graph that PyTorch records for a pass: from each output back through operations that only move,
add or average numbers, to the convolutions and matrix products they come from. So no names of layers are assumed. An
operation that is not known to be linear ends the search, and its name is the reason that is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_calib.posthoc.calibrator import Calibrator

TOLERANCE = 1e-5  # of float32 sums, relative to the largest logit of a channel

# Layer -> where in its node weight and bias are.
_LAYERS = {"Convolution": (1, 2), "Addmm": (2, 0), "Mm": (1,), "Linear": (1, 2)}
# What only moves, adds or averages: of a x it gives a times what it gives of x.
_HOMOGENEOUS = re.compile(
    r"(View|UnsafeView|ReshapeAlias|Permute|Transpose|T|Slice|Select|Index|Squeeze|Unsqueeze|Expand|Repeat|Clone|Alias|"
    r"Cat|Stack|Unbind|Split|SplitWithSizes|AsStrided|Flip|Roll|PixelShuffle|ConstantPadNd|"
    r"Upsample\w+|AvgPool\w+|Add|Sub|Neg|Sum|Mean|ToCopy)Backward\d*"
)


class LastLayer(NamedTuple):
    """Names, in the network's state, of the weight and of the bias of a layer; a shared tensor has several."""

    weight: tuple[str, ...]
    bias: tuple[str, ...]


def outputs_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Return all outputs of a network, with the graph they come from but without what a backward pass would need.

    Raises:
        ValueError: in one sentence, if they are no floating-point tensors, or are not finite, or all zero.
    """
    network.eval().requires_grad_(True)
    with (
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),  # a network that draws random numbers draws the same in each pass
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing),
    ):
        result = network(x)
    outputs = [*result] if isinstance(result, list | tuple) else [result]
    if not outputs or not all(isinstance(output, Tensor) and output.is_floating_point() for output in outputs):
        raise ValueError(f"expected logits, or a list of them, of {_name(network)}, got {type(result).__name__}")
    if not all(output.isfinite().all() and output.any() for output in outputs):
        raise ValueError(
            f"expected finite logits that are not all zero of {_name(network)}, got others: its weights are damaged"
        )
    return outputs


def find_heads(network: nn.Module, outputs: Sequence[Tensor]) -> set[LastLayer]:
    """Return the layers that `outputs` come straight from.

    Raises:
        ValueError: in one sentence, if there is no such layer, or if something else follows it.
    """
    names: dict[int | None, tuple[str, ...]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        names[id(tensor)] = (*names.get(id(tensor), ()), name)
    pairs = {pair for output in outputs for pair in _heads_of(output.grad_fn, network)}
    return {LastLayer(*(names.get(None if p is None else id(p), ()) for p in pair)) for pair in pairs}


def _heads_of(end: Any, network: nn.Module) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Yield weight and bias of each layer; a parameter that is added is a bias without a weight."""
    nodes, seen = [end], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions]
        kind = node.name()
        places = _LAYERS.get(kind.partition("Backward")[0])
        if hasattr(node, "variable"):  # a parameter that is added
            yield None, node.variable
        elif places:
            weight, bias = (*(parents[place] for place in places), None)[:2]
            yield _parameter(weight, network), _parameter(bias, network)
        elif _HOMOGENEOUS.fullmatch(kind):
            nodes += parents
        else:
            raise _refused(network, f"{kind.partition('Backward')[0]} after its last linear layer")
    if not seen:
        raise _refused(network, "an output that depends on no parameter")


def _parameter(node: Any, network: nn.Module) -> Tensor | None:
    """Return weight or bias of a layer, seen through transpositions."""
    while node is not None and not hasattr(node, "variable"):
        if not re.fullmatch(r"(T|Transpose)Backward\d*", node.name()):
            kind = node.name().partition("Backward")[0]
            raise _refused(network, f"a last layer whose weights are computed ({kind}) rather than stored")
        ((node, _),) = node.next_functions
    return None if node is None else node.variable


def largest_deviation(
    before: Sequence[Tensor], after: Sequence[Tensor], calibrator: Calibrator, network: nn.Module, *, regions: bool
) -> float:
    """Return how far logits are from those before, calibrated, relative to the largest of their channel.

    Args:
        before: outputs (B, C, *spatial).
        after: outputs of the same network for the same input, with calibrated last layers.
        calibrator: with which they were calibrated.
        network: for the message.
        regions: whether each channel is a sigmoid of its own.

    Raises:
        ValueError: in one sentence, if they differ by more than `TOLERANCE`, or if an output did not change.
    """
    deviation = 0.0
    for old, new in zip(before, after, strict=True):
        old, new = old.detach().double().transpose(0, 1), new.detach().double().transpose(0, 1)
        expected = calibrator.logits(old, regions=regions)
        error, scale = (a.abs().flatten(1).amax(1) for a in (new - expected, expected))
        deviation = max(deviation, float((error / scale.clamp_min(torch.finfo(torch.float32).tiny)).max()))
        changes = not torch.equal(old.float(), expected.float())
        if not deviation <= TOLERANCE or (changes and torch.equal(old, new)):
            raise _refused(network, f"logits that are off by {deviation:.1g} after dividing its last layers by T")
    return deviation


def _name(network: nn.Module) -> str:
    return type(network).__name__


def _refused(network: nn.Module, found: str) -> ValueError:
    return ValueError(
        f"expected a network whose logits come straight from linear layers, found {found} in {_name(network)}: its "
        f"temperature cannot be baked, apply it to probabilities instead (nnunet_calib.apply_temperature)"
    )
