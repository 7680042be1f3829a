"""The seam of post-hoc calibrators: what every kind offers to measuring, deployment and the report.

To add a kind, write a module in this folder with a class like `temperature.Temperature` and a function that fits it to
many sets of cases like `many_fits.fit_jointly`, and enter both in `nnunet_calib.posthoc.KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Key = TypeVar("Key")


class Calibrator(Protocol):
    """A map of a network's logits to calibrated ones; immutable, hashable and picklable.

    Attributes:
        kind: its name in `KINDS`.
        noun: its name in sentences, as in "with temperature".
        short: its name in legends and above columns, as in "ACE, T".
        form: of its JSON values, see `nnunet_calib.io.json_forms`.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    short: ClassVar[str]
    form: ClassVar[dict[str, Any]]

    @property
    def at_bound(self) -> bool:
        """Whether a parameter lies on a bound of its search, so that the data did not determine it."""
        ...

    def logits(self, z: Tensor, *, regions: bool) -> Tensor:
        """Return the calibrated logits of z, (C, ...), in the same precision."""
        ...

    def last_layer(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias of a last linear layer, (C, ...) each, that gives calibrated logits.

        Raises:
            ValueError: if no linear layer does.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Return its parameters as JSON values, which stand in temperature.json and summary.json."""
        ...

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibrator:
        """Return the calibrator that `to_json` described, among whatever else the content holds."""
        ...

    def words(self, digits: str = ".4f") -> str:
        """Return its parameters in a few words, with numbers in the given format."""
        ...

    def meaning(self) -> str:
        """Return, as a clause, what a fit of it says of the model."""
        ...


class Fit(Protocol):
    """A calibrator that was fitted."""

    @property
    def calibrator(self) -> Calibrator:
        """What was found."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the calibrator's values, and how well they are known."""
        ...


class WeightedVoxels(Protocol):
    """Voxels to fit on, as a `VoxelSample` has them."""

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
        """How many voxels each one stands for, (n,)."""
        ...

    def __len__(self) -> int: ...
