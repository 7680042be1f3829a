"""Triton's interpreter with an exact fused multiply-add."""

import numpy as np
import pytest


@pytest.fixture
def exact_fma(monkeypatch):
    """Round x y + z once, as a GPU does; the interpreter rounds the product too, and misses the edges of bins."""
    from triton.runtime import interpreter

    def fma(self, x, y, z):
        wide = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return interpreter.TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)
