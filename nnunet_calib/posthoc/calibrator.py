"""The interface of post-hoc calibrators to measuring, deployment and the report.

To add a kind, write a module in this folder with a class like `temperature.Temperature` and a function that fits it to
many sets of cases like `many_fits.fit_jointly`, and enter both in `nnunet_calib.posthoc.KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from nnunet_calib.posthoc.temperature import TemperatureFit

Key = TypeVar("Key")


class Calibrator(Protocol):
    """A map of a network's logits to calibrated ones; immutable, hashable and picklable.

    Attributes:
        kind: name in `KINDS`.
        noun: name in sentences, as in "with temperature".
        indefinite: the noun with its article, as in "judged by a temperature".
        short: name in legends and column heads, as in "ACE, T".
        effect: sentence on what it does to the probabilities and to the segmentation.
        keeps_segmentation: whether the segmentation always stays as it is.
        form: form of the JSON values, see `nnunet_calib.io.json_forms`.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    indefinite: ClassVar[str]
    short: ClassVar[str]
    effect: ClassVar[str]
    keeps_segmentation: ClassVar[bool]
    form: ClassVar[dict[str, Any]]

    @property
    def at_bound(self) -> bool:
        """Whether a parameter lies on a bound of its search, so that the data did not determine it."""
        ...

    def logits(self, z: Tensor, *, regions: bool) -> Tensor:
        """Return the calibrated logits for the logits z, (C, ...), in the same precision."""
        ...

    def last_layer(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias, (C, ...) each, of a last linear layer that outputs calibrated logits.

        Raises:
            ValueError: if no linear layer can.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values for temperature.json and summary.json."""
        ...

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibrator:
        """Return the calibrator that `to_json` described; other entries of the content are ignored."""
        ...

    def words(self, digits: str = ".4f") -> str:
        """Return the parameters in a few words, with numbers in the given format."""
        ...

    def meaning(self) -> str:
        """Return a clause on what the fitted parameters say about the model."""
        ...


class Fit(Protocol):
    """Result of fitting a calibrator."""

    @property
    def calibrator(self) -> Calibrator:
        """The fitted calibrator."""
        ...

    @property
    def of_all(self) -> TemperatureFit:
        """Fit of one temperature to the same voxels."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the calibrator's values with their standard errors and the NLL."""
        ...


class WeightedVoxels(Protocol):
    """Voxels to fit on, such as a `VoxelSample`."""

    @property
    def logits(self) -> NDArray[np.float16]:
        """Logits, (n, C)."""
        ...

    @property
    def labels(self) -> NDArray[Any]:
        """Labels, (n,), or for regions (n, C)."""
        ...

    @property
    def weights(self) -> NDArray[np.float32]:
        """Number of voxels that each one stands for, (n,)."""
        ...

    def __len__(self) -> int: ...
