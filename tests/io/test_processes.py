"""Processes that a command starts."""

import multiprocessing
import signal

import pytest

from nnunet_calib.io.processes import sigterm_interrupts


def handler():
    """Return whether SIGTERM ends this process at once."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_workers_end_at_once():
    """A pool of nnU-Net's that ends its workers does not wait for a handler that a command has set for itself."""
    with sigterm_interrupts():
        assert not handler()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(handler)
        assert not handler()
