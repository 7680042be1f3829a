"""The case of each label mode that tests measure."""

from tests.worlds.measured_cases import case  # noqa: F401
