"""The content of a thresholds.json for a model of two structures or regions."""

from typing import Any

LEVELS = (("recall", 0.8), ("recall", 0.95))


def promised(
    heads: dict[str, Any], thresholds: dict[str, tuple[float | None, ...]], model: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content; for each structure a threshold for each of `LEVELS`."""
    return {
        "model": model or {},
        "heads": heads,
        "promise": "A promise.",
        "definitions": {"mask": "the voxels with p >= threshold", "recall": "a share", "found": "no mask is about it"},
        "levels": [
            {
                "of": of,
                "level": level,
                "structures": {key: {"threshold": values[i], "cases": 40} for key, values in thresholds.items()},
            }
            for i, (of, level) in enumerate(LEVELS)
        ],
    }
