"""Calibrators fitted after training, by kind."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nnunet_calib.io.json_forms import problems
from nnunet_calib.posthoc.calibrator import Calibrator, Fit, Key, WeightedVoxels
from nnunet_calib.posthoc.classwise import Classwise, fit_classwise
from nnunet_calib.posthoc.many_fits import fit_jointly
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.posthoc.vector import Vector, fit_vector


class Kind(NamedTuple):
    """A class of calibrators and the function that fits it to many sets of cases.

    `fit` takes the voxels of cases and the sets like `many_fits.fit_jointly`, and the fold of each case or None.
    """

    calibrator: type[Calibrator]
    fit: Callable[
        [Callable[[], Iterable[WeightedVoxels]], Mapping[Any, Container[int]], Sequence[int] | None], Mapping[Any, Fit]
    ]


KINDS = {
    Temperature.kind: Kind(Temperature, lambda cases, sets, _: fit_jointly(cases, sets)),
    Classwise.kind: Kind(Classwise, lambda cases, sets, _: fit_classwise(cases, sets)),
    Vector.kind: Kind(Vector, fit_vector),
}
IDENTITY = Temperature(1.0)


def fit(
    kind: str,
    cases: Callable[[], Iterable[WeightedVoxels]],
    sets: Mapping[Key, Container[int]],
    groups: Sequence[int] | None = None,
) -> Mapping[Key, Fit]:
    """Fit a calibrator of a kind to each set of cases.

    Args:
        kind: a key of `KINDS`.
        cases: returns the voxels of the cases, as for `many_fits.fit_jointly`, which also has the errors raised.
        sets: the cases of each set, by their index.
        groups: the fold of each case; None for a single fold.
    """
    return KINDS[kind].fit(cases, sets, groups)


def kind_of(content: Mapping[str, Any]) -> type[Calibrator]:
    """Return the class of the calibrator in JSON values; without a kind, it is a temperature.

    Raises:
        ValueError: for a kind that this version does not know.
    """
    name = content.get("kind", Temperature.kind)
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(
            f"expected a calibrator of kind {' or '.join(KINDS)}, found {name!r:.99}: use the version that wrote it"
        )
    return KINDS[name].calibrator


def from_json(content: Mapping[str, Any]) -> Calibrator:
    """Return the calibrator that JSON values describe.

    Raises:
        ValueError: for an unknown kind, or for values that are invalid for the kind.
    """
    kind = kind_of(content)
    if problem := next(problems(content, kind.form), None):
        raise ValueError(problem)
    return kind.from_json(content)


def calibrator_of(value: Calibrator | float) -> Calibrator:
    """Return a calibrator unchanged, and a number as a temperature."""
    return Temperature(value) if isinstance(value, int | float | np.number) else value
