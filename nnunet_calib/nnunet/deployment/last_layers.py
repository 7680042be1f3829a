"""Search for the last linear layers of a network, and the proof that calibrating them calibrates its logits.

The search walks the graph that PyTorch records for a pass: from each output back through operations that only move, add
or average numbers, to the convolutions and matrix products before them. No layer names are assumed. An operation that
is not known to be linear ends the search, and the message names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_calib.posthoc.calibrator import Calibrator

TOLERANCE = 1e-5  # for float32 sums, relative to the largest logit of a channel

# Node of a layer -> positions of weight and bias among its inputs.
_LAYERS = {"Convolution": (1, 2), "Addmm": (2, 0), "Mm": (1,), "Linear": (1, 2)}
# Homogeneous operations, f(a x) = a f(x): they only move, add or average numbers.
_HOMOGENEOUS = re.compile(
    r"(View|UnsafeView|ReshapeAlias|Permute|Transpose|T|Slice|Select|Index|Squeeze|Unsqueeze|Expand|Repeat|Clone|Alias|"
    r"Cat|Stack|Unbind|Split|SplitWithSizes|AsStrided|Flip|Roll|PixelShuffle|ConstantPadNd|"
    r"Upsample\w+|AvgPool\w+|Add|Sub|Neg|Sum|Mean|ToCopy)Backward\d*"
)


class LastLayer(NamedTuple):
    """Names of a layer's weight and bias in the network's state; a shared tensor has several names."""

    weight: tuple[str, ...]
    bias: tuple[str, ...]


def outputs_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Return all outputs of a network with their graph, but without the tensors that a backward pass would need.

    Raises:
        ValueError: if they are not floating-point tensors, not finite, or all zero.
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
        raise ValueError(f"expected logits, or a list of them, from {_name(network)}, got {type(result).__name__}")
    if not all(output.isfinite().all() and output.any() for output in outputs):
        raise ValueError(
            f"expected finite logits, not all zero, from {_name(network)}, got others: its weights are damaged"
        )
    return outputs


def find_heads(network: nn.Module, outputs: Sequence[Tensor]) -> set[LastLayer]:
    """Return the layers that directly produce `outputs`.

    Raises:
        ValueError: if there is no such layer, or if a non-linear operation follows it.
    """
    names: dict[int | None, tuple[str, ...]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        names[id(tensor)] = (*names.get(id(tensor), ()), name)
    pairs = {pair for output in outputs for pair in _heads_of(output.grad_fn, network)}
    return {LastLayer(*(names.get(None if p is None else id(p), ()) for p in pair)) for pair in pairs}


def _heads_of(end: Any, network: nn.Module) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Yield weight and bias of each layer; an added parameter is a bias without a weight."""
    nodes, seen = [end], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions]
        kind = node.name()
        places = _LAYERS.get(kind.partition("Backward")[0])
        if hasattr(node, "variable"):  # an added parameter
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
    """Return the deviation of logits from the calibrated logits before, relative to the largest of their channel.

    Args:
        before: outputs (B, C, *spatial).
        after: outputs of the same network for the same input, with calibrated last layers.
        calibrator: calibrator of the last layers.
        network: network that the message names.
        regions: whether each channel has its own sigmoid.

    Raises:
        ValueError: if they differ by more than `TOLERANCE`, or if an output did not change.
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
        f"expected a network whose logits come directly from linear layers, found {found} in {_name(network)}: its "
        f"temperature cannot be baked; apply it to probabilities instead (nnunet_calib.apply_temperature)"
    )
