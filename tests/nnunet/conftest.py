"""Measured folds, and files in the place of figures, which take seconds."""

from collections.abc import Iterator

import pytest
import torch

from tests.worlds.measured_world import model, no_figures  # noqa: F401

# helpers whose failed assertions tell what was found, too
pytest.register_assert_rewrite("tests.nnunet.faults.processes", "tests.nnunet.faults.training")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Take back the threads that predicting on a CPU sets: with a process of tests a core, they wait for each other."""
    yield
    torch.set_num_threads(1)
