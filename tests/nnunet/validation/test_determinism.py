"""The same predictions give the same bytes, whenever and with however many processes they are measured."""

import numpy as np
import pytest
import torch

from nnunet_calib import CaseStatistics
from nnunet_calib.nnunet.predictions import for_each_case
from nnunet_calib.synthetic import synthetic_case


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("warm_python")
def test_same_checkpoint(trained):
    """Measured by the hook, then again in two processes of nnU-Net's: the same bytes in every file."""
    hook = trained.results()
    assert "summary.json" in hook
    assert trained.without_results().validate("-np", "2") == 0
    assert trained.results() == hook


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("warm_python")
def test_same_archives(trained):
    """From nnU-Net's .npz in one and in two processes."""
    results = []
    for processes in ("1", "2"):
        assert trained.without_results(npz=True).validate("-np", processes) == 0
        results.append(trained.results())
    assert results[0] == results[1]


def measured(case: str) -> CaseStatistics:
    """A case of which nearly all voxels are sure, so large that PyTorch would share the work among threads."""
    made = synthetic_case(int(case), (40, 60, 60))
    p = np.where(np.arange(3)[:, None, None, None] == made.labels, 0.9999, 0.00005).astype(np.float32)
    return CaseStatistics.from_probabilities(p, made.labels)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_threads(threads):
    """Whatever number of threads PyTorch has here, a case is measured with one, and the number stays as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seen = for_each_case(lambda case: torch.get_num_threads(), ["0", "1"], 1, "counting")
        (ours,) = for_each_case(measured, ["0"], 1, "measuring")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]
    torch.set_num_threads(1)
    try:
        expected = measured("0")
    finally:
        torch.set_num_threads(before)
    assert ours.histograms.brier.tolist() == expected.histograms.brier.tolist()
    assert ours.histograms.nll.tolist() == expected.histograms.nll.tolist()
