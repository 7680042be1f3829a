"""Temperatures of cases that are read again for each pass: the same with any memory, threads and repetition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_calib.results import judged_cases as measured_cases
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.layout import case_file
from tests.results.test_fold_summary import LABELS, MODEL, REGIONS, case, files, fold, load
from tests.worlds.measured_folds import fit_cases


def test_standard_error(tmp_path):
    """Only cases are independent: every voxel of a case twice is no more evidence."""
    cases = [case(i) for i in range(4)]
    _, once = fold(tmp_path, {f"case{i}": c for i, c in enumerate(cases)})
    assert 0 < once["standard_error"] < np.inf
    assert once["standard_error"] == pytest.approx(fit_cases([c.measure() for c in cases]).standard_error, rel=3e-4)
    for i, c in enumerate(cases):
        twice = c.measure(model=MODEL) + c.measure(model=MODEL)
        replace(twice, cases=(f"case{i}",)).save(case_file(tmp_path, f"case{i}"))
    summary = write_fold(tmp_path, [f"case{i}" for i in range(4)], LABELS, MODEL)
    assert summary["metric_per_case"][0]["kept_voxels"] == 2 * cases[0].labels.size
    assert summary["temperature"]["standard_error"] == pytest.approx(once["standard_error"], rel=1e-4)


def test_cases_that_do_not_stay_in_memory(tmp_path, monkeypatch):
    """Read again for each pass, they give the same bytes; one that has changed meanwhile is told of."""
    cases = {f"case{i}": case(i) for i in range(4)}
    expected = [*fold(tmp_path, cases)]
    one = load(tmp_path, "case0")
    size = sum(array.nbytes for part in (one.histograms, one.sample) for array in vars(part).values())
    read = measured_cases.load_case
    reads: list[str] = []
    monkeypatch.setattr(measured_cases, "load_case", lambda folder, name: reads.append(name) or read(folder, name))
    write_fold(tmp_path, [*cases], LABELS, MODEL)
    assert reads == [*cases]
    reads.clear()
    for room, first in ((0, 0), (size, 1)):
        monkeypatch.setattr(measured_cases, "_HELD_BYTES", room)
        write_fold(tmp_path, [*cases], LABELS, MODEL)
        assert [*files(tmp_path)] == expected
        assert {name for name in reads if reads.count(name) > 1} == {*[*cases][first:]}
        assert reads.count("case3") >= 5
        reads.clear()

    def changed(folder, name):
        reads.append(name)
        return read(folder, name) if reads.count(name) == 1 else read(folder, name) + read(folder, name)

    monkeypatch.setattr(measured_cases, "load_case", changed)
    with pytest.raises(ValueError, match="expected case1 of fold 0 to stay as it was, found other statistics in"):
        write_fold(tmp_path, [*cases], LABELS, MODEL)


@pytest.mark.parametrize("mode", ["labels", "regions"])
def test_threads_do_not_matter(tmp_path, mode):
    """The files are the same to the last digit, and PyTorch's threads are as they were."""
    cases = {f"case{seed}": case(seed, mode, shape=(40, 40, 30)) for seed in range(3)}
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            _, temperature = fold(tmp_path, cases, LABELS if mode == "labels" else REGIONS)
            found.add((temperature["temperature"], temperature["standard_error"]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
