"""Finds the last linear layers of a network, and proves that dividing them by T divides its logits by T.

They are found in the graph that PyTorch records for a pass: from each output back through operations that only move,
add or average numbers, to the convolutions and matrix products they come from. So no names of layers are assumed. An
operation that is not known to be linear ends the search, and its name is the reason that is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5  # of float32 sums, relative to the largest logit of a channel

# Layer -> where in its node weight and bias are.
_LAYERS = {"Convolution": (1, 2), "Addmm": (2, 0), "Mm": (1,), "Linear": (1, 2)}
# What only moves, adds or averages: of a x it gives a times what it gives of x.
_HOMOGENEOUS = re.compile(
    r"(View|UnsafeView|ReshapeAlias|Permute|Transpose|T|Slice|Select|Index|Squeeze|Unsqueeze|Expand|Repeat|Clone|Alias|"
    r"Cat|Stack|Unbind|Split|SplitWithSizes|AsStrided|Flip|Roll|PixelShuffle|ConstantPadNd|"
    r"Upsample\w+|AvgPool\w+|Add|Sub|Neg|Sum|Mean|ToCopy)Backward\d*"
)


def outputs_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    """All outputs of a network, with the graph they come from but without what a backward pass would need.

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


def find_heads(network: nn.Module, outputs: Sequence[Tensor]) -> set[str]:
    """Names, in the network's state, of weights and biases of the layers that `outputs` come straight from.

    A tensor that the state holds under several names is listed under each of them.

    Raises:
        ValueError: in one sentence, if there is no such layer, or if something else follows it.
    """
    parameters = {id(p) for output in outputs for p in _heads_of(output.grad_fn, network)}
    return {name for name, tensor in network.state_dict(keep_vars=True).items() if id(tensor) in parameters}


def _heads_of(end: Any, network: nn.Module) -> Iterator[Tensor]:
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
            yield node.variable
        elif places:
            yield from _parameters([parents[place] for place in places], network)
        elif _HOMOGENEOUS.fullmatch(kind):
            nodes += parents
        else:
            raise _refused(network, f"{kind.partition('Backward')[0]} after its last linear layer")
    if not seen:
        raise _refused(network, "an output that depends on no parameter")


def _parameters(parents: Sequence[Any], network: nn.Module) -> Iterator[Tensor]:
    """Weight and bias of a layer, seen through transpositions."""
    for node in parents:
        while node is not None and not hasattr(node, "variable"):
            if not re.fullmatch(r"(T|Transpose)Backward\d*", node.name()):
                kind = node.name().partition("Backward")[0]
                raise _refused(network, f"a last layer whose weights are computed ({kind}) rather than stored")
            ((node, _),) = node.next_functions
        if node is not None:
            yield node.variable


def largest_deviation(
    before: Sequence[Tensor], after: Sequence[Tensor], temperature: float, network: nn.Module
) -> float:
    """How far logits are from those before, divided by T, relative to the largest of their channel.

    Args:
        before: outputs (B, C, *spatial).
        after: outputs of the same network for the same input, with divided heads.
        temperature: T.
        network: for the message.

    Raises:
        ValueError: in one sentence, if they differ by more than `TOLERANCE`, or if an output did not change.
    """
    deviation = 0.0
    for old, new in zip(before, after, strict=True):
        old, new = old.detach().double(), new.detach().double()
        error, scale = ((a.abs().transpose(0, 1).flatten(1).amax(1)) for a in (new * temperature - old, old))
        deviation = max(deviation, float((error / scale.clamp_min(torch.finfo(torch.float32).tiny)).max()))
        changes = not torch.equal(old.float(), (old / temperature).float())
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
