"""Measured folds, and files in the place of figures, which take seconds."""

import pytest

from tests.worlds.measured_world import model, no_figures  # noqa: F401

# helpers whose failed assertions tell what was found, too
pytest.register_assert_rewrite("tests.nnunet.faults.processes", "tests.nnunet.faults.training")
