"""The combinations of parameters that tests marked `pairs` run with."""

from itertools import product

import pytest

from tests.selection import covering, pairs_of

SIZES = {"way": 3, "mode": 4, "axes": 2, "loss": 5}
ALL = [dict(zip(SIZES, values, strict=True)) for values in product(*map(range, SIZES.values()))]


def test_every_pair_is_there():
    """All pairs of the product, in hardly more combinations than its two longest parameters have pairs."""
    chosen = [ALL[i] for i in covering(ALL)]
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, ALL))
    assert 4 * 5 <= len(chosen) <= 4 * 5 + 4


def test_tests_differ():
    """Two tests with the same parameters run with different combinations, each time with the same."""
    assert covering(ALL, "a") == covering(ALL, "a") != covering(ALL, "b")


@pytest.mark.parametrize("given", [[], [{}], [{"way": 0}], [{"way": i} for i in range(3)], ALL[5:6], ALL[:2]])
def test_nothing_to_leave_out(given):
    """One or two parameters, or one combination that was asked for."""
    assert covering(given) == {*range(len(given))}
