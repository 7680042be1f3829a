"""Which tests run: those that this PyTorch can pass, and of those with many parameters the combinations that matter."""

from __future__ import annotations

import zlib
from collections import defaultdict
from itertools import combinations

import pytest

# of the commands that read checkpoints, which they refuse to do with an older PyTorch, as test_checkpoints tests
READING_CHECKPOINTS = (
    "test_bake",
    "test_checkpoints",
    "test_predict.py",
    "test_predict_",
    "test_validate",
    "test_trained_weights",
    "test_damaged.py::test_model[fold_all/checkpoint",
    "test_damaged.py::test_killed_",
    "test_damaged.py::test_bake_",
    "test_damaged.py::test_wrong_clock",
    "test_together.py::test_validate",
    "test_workers.py::test_validate",
    "test_determinism.py::test_same_",
)

# minutes long, in the order in which they begin
LONGEST = ("test_demo.py", "test_notebooks.py", "test_kernels.py", "test_interrupts.py", "test_training.py")

Combination = dict[str, int]  # of each parameter, the number of its value


def pairs_of(combination: Combination) -> set[tuple[tuple[str, int], ...]]:
    """Return the pairs of values that meet; a single parameter's value is a pair by itself."""
    values = sorted(combination.items())
    return {*combinations(values, min(2, len(values)))}


def covering(given: list[Combination], name: str = "") -> set[int]:
    """Return the indices of few combinations that hold all pairs; which of the equally good ones, the name decides."""
    pairs = dict(enumerate(map(pairs_of, given)))
    order = sorted(pairs, key=lambda i: zlib.crc32(f"{name}{given[i]}".encode()))
    missing = set().union(*pairs.values())
    chosen = set()
    while missing:
        best = max(order, key=lambda i: len(pairs[i] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return chosen


def combinations_of(tests: list[pytest.Item]) -> list[Combination]:
    """Return numbers of the values, which may be of any type, in the order in which they come up."""
    numbers: dict[str, dict[int, int]] = defaultdict(dict)
    return [
        {name: numbers[name].setdefault(id(value), len(numbers[name])) for name, value in test.callspec.params.items()}
        for test in tests
    ]


def leave_out_combinations(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let every two values of different parameters meet in tests that are marked `pairs`, not all values of all.

    A fault shows with one value, or with two together, far more often than with three; and the tests of a module leave
    out different combinations, so that most come up somewhere. A combination that is asked for by its id always runs.
    """
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("pairs") and hasattr(item, "callspec"):
            tests[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for name, marked in tests.items():
        kept = covering(combinations_of(marked), name)
        left_out |= {item for i, item in enumerate(marked) if i not in kept}
    if left_out:
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]


def skip_reading_of_checkpoints(items: list[pytest.Item]) -> None:
    """Skip what this PyTorch cannot do."""
    import torch  # after the settings of conftest.py

    if torch.__version__ >= (2, 6):  # type: ignore[operator]  # TorchVersion takes tuples
        return
    for item in items:
        of_reading = f"{item.path.name}::{item.name}".startswith(READING_CHECKPOINTS)
        if of_reading and item.name != "test_older_pytorch":
            item.add_marker(pytest.mark.skip(reason="PyTorch before 2.6 cannot read checkpoints safely"))


def begin_with_longest(items: list[pytest.Item]) -> None:
    """Sort the longest files first, then those with slow tests, so that in the end no process waits for another.

    Files stay together, and so do the tests that share what is made once for a file.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def rank(item: pytest.Item) -> int:
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST) + (item.path not in slow)

    items.sort(key=rank)
