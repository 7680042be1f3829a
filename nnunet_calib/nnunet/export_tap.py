"""Access to the logits of a case while nnU-Net exports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class TappedConfiguration:
    """nnU-Net's configuration manager that also keeps the logits it resamples to the image's grid.

    Attributes:
        logits: the logits resampled last.
        resample_alike: function that resamples other logits in the same way.
    """

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self.logits: Any = None
        self.resample_alike: Callable[[Any], Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._configuration, name)

    def resampling_fn_probabilities(self, logits: Any, *args: Any, **kwargs: Any) -> Any:
        """Resample as nnU-Net does, and keep the result."""
        resample = self._configuration.resampling_fn_probabilities
        self.resample_alike = lambda other: resample(other, *args, **kwargs)
        self.logits = self.resample_alike(logits)
        return self.logits


class LazyProbabilities:
    """Probabilities of logits, computed on indexing, so that they never exist for the whole volume."""

    def __init__(self, logits: torch.Tensor, nonlinearity: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._logits = logits
        self._nonlinearity = nonlinearity
        self.shape = tuple(logits.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        return self._nonlinearity(self._logits[key]).numpy()


def on_image_axes(array: Any, arguments: dict[str, Any]) -> tuple[torch.Tensor, tuple[int, ...], tuple[slice, ...]]:
    """Revert nnU-Net's transposition.

    Args:
        array: (C, *spatial) on the grid of the cropped image, with the axes of nnU-Net's network.
        arguments: arguments of `export_prediction_from_logits`, by name.

    Returns:
        A view of the array on the axes of nnU-Net's reader, the shape of the whole image, and the box that the array
        fills in it.
    """
    properties, back = arguments["properties_dict"], arguments["plans_manager"].transpose_backward
    shape, box = properties["shape_before_cropping"], properties["bbox_used_for_cropping"]
    return (
        torch.as_tensor(array).permute(0, *(axis + 1 for axis in back)),
        tuple(int(shape[axis]) for axis in back),
        tuple(slice(*map(int, box[axis])) for axis in back),
    )
