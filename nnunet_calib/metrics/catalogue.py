"""What each calibration error means, in words that travel with its value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# e_m: mean probability of the n_m voxels of bin m, o_m: the frequency of the class among them, N: voxels of the scope
DEFINITIONS = {
    "ece": "expected calibration error: sum over bins of n_m / N * |o_m - e_m|",
    "ace": "average calibration error: mean of |o_m - e_m| over the bins of at least min_count voxels",
    "mce": "maximum calibration error: the largest |o_m - e_m| of a bin of at least min_count voxels",
    "adaptive_ece": "ECE, which here is also ACE, over bins that hold N / bins voxels each, in the order of p; a fine "
    "bin of width 1/1200 in which such a bin ends is divided in proportion",
    "ks": "Kolmogorov-Smirnov calibration error: the largest |sum of (y - p) over the voxels with p < t| / N over "
    "the thresholds t that are multiples of 1/1200",
    "squared_error": "Brier score of one class: mean of (p - y)^2, from bins of width 1/1200",
    "reliability": "sum over bins of n_m / N * (o_m - e_m)^2",
    "resolution": "sum over bins of n_m / N * (o_m - o)^2, with the frequency o of the class in all voxels",
    "uncertainty": "o * (1 - o)",
    "within_bin": "what remains of the score: score = reliability - resolution + uncertainty + within_bin",
    "nll": "negative log-likelihood per voxel in nats; regions: binary cross-entropy, mean over regions",
    "brier": "sum over classes of (p - y)^2 per voxel; regions: mean over regions",
    "per_class": "marginal: the probability of one class against the presence of that class",
    "top_label": "the largest probability against whether its class is the true one; regions: max(p, 1 - p) of each "
    "region against whether p > 1/2 is right, regions pooled",
    "brier_terms": "summed over classes; regions: mean over regions",
}

# Which of them depend on more than the voxels.
BINNED = ("ece", "ace", "mce", "adaptive_ece", "reliability", "resolution", "within_bin")
COUNTED = ("ace", "mce")
BRIER_TERMS = ("reliability", "resolution", "uncertainty", "within_bin")


class CalibrationErrors(dict[str, NDArray[np.float64]]):
    """Errors by name, which know how they were computed.

    Attributes:
        options: bins, min_count, scope, boundary_mm (of the boundary scope alone), and the number of pooled cases.
    """

    def __init__(self, values: dict[str, NDArray[np.float64]], options: dict[str, Any]) -> None:
        super().__init__(values)
        self.options = options

    def definition(self, name: str) -> dict[str, Any]:
        """All that a reader needs to know of one value, as JSON values.

        Args:
            name: a key of this dictionary.

        Returns:
            "metric", "definition" in words, "of" (what p and y are), and those of `options` that the value depends on.

        Raises:
            KeyError: for a name that is not here.
        """
        if name not in self:
            raise KeyError(f"expected one of {', '.join(self)}, got {name!r}")
        metric, of = name, "per_class"
        for prefix, what in (("top_label_", "top_label"), ("brier_", "brier_terms")):
            if name.startswith(prefix):
                metric, of = name.removeprefix(prefix), what
        unused = set() if metric in BINNED else {"bins"}
        unused |= set() if metric in COUNTED else {"min_count"}
        about = {} if metric in ("nll", "brier") else {"of": DEFINITIONS[of]}
        return (
            {"metric": name, "definition": DEFINITIONS[metric]}
            | about
            | {option: value for option, value in self.options.items() if option not in unused}
        )
