"""Measured folds, and files in the place of figures, which take seconds."""

from tests.worlds.measured_world import model, no_figures  # noqa: F401
