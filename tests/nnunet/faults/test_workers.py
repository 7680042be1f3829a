"""A worker that dies, as one does that the system kills for its memory: nothing waits for it, and nothing is lost."""

import multiprocessing
import os
from multiprocessing.pool import ThreadPool

import pytest
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module

from nnunet_calib.nnunet.validation import hook as validation
from nnunet_calib.nnunet.validation import predict_cases as predicting
from nnunet_calib.nnunet.validation.replaced_names import Watched
from tests.nnunet.faults.dying import LAST, convert_and_die, die, export_and_die
from tests.nnunet.faults.processes import needs_fork, one_figure
from tests.nnunet.faults.training import check_same_files, log_of, nnunet_files, validate
from tests.worlds.trained_fold import THREADS, snapshot, use_threads

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@needs_fork
def test_no_waiting_for_the_dead():
    """The result of a worker that died raises; multiprocessing itself waits for ever."""
    with Watched(multiprocessing).get_context("fork").Pool(1) as pool:
        with pytest.raises(RuntimeError, match="background workers are no longer alive"):
            pool.starmap_async(die, ((),)).get()
        with pytest.raises(multiprocessing.TimeoutError):
            pool.starmap_async(die, ((),)).get(timeout=0.2)


def test_results_of_the_living():
    """Results, and errors of the work itself, come as they are; so does everything else of multiprocessing."""
    assert Watched(multiprocessing).cpu_count() == multiprocessing.cpu_count()
    with ThreadPool(1) as threads:
        watched = Watched(type("Own", (), {"Pool": staticmethod(lambda processes: threads)}))
        with watched.Pool(1) as pool:
            assert pool.starmap_async(divmod, ((7, 2), (9, 2))).get() == [(3, 1), (4, 1)]
            with pytest.raises(ZeroDivisionError):
                pool.starmap_async(divmod, ((7, 0),)).get()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.usefixtures("warm_python")
def test_training(trained, monkeypatch):
    """Killed with the last case: nnU-Net validates once more, and its files are as if all had gone well."""
    expected = nnunet_files(trained)
    monkeypatch.setattr(validation, "export_prediction_from_logits", export_and_die)
    monkeypatch.setattr(trainer_module, "default_num_processes", 1)
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", THREADS)
    trained.without_results()
    for name in expected:
        (trained.fold / "validation" / name).unlink(missing_ok=True)
    with one_figure(monkeypatch):
        validate(trained)
    check_same_files(nnunet_files(trained), expected)
    text = log_of(trained)
    assert "Some background workers are no longer alive" in text
    assert "nnU-Net's validation is run without measuring, since it stopped while cases were measured" in text
    assert f"nothing was written for {LAST}" in text
    assert len(list(trained.calibration.glob("cases/*.npz"))) == len(trained.cases) - 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.usefixtures("warm_python")
def test_validate(trained, monkeypatch, capsys):
    """One sentence; what was measured before is kept when the command is typed again."""
    hook, before = trained.results(), snapshot(trained.without_results().model)
    with monkeypatch.context() as patch:
        patch.setattr(predicting, "convert_only", convert_and_die)
        assert trained.validate("-np", "1") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("nnunet_calib: expected memory to predict with and to measure 1 cases at once, ran out of")
    assert "run the same command again, which keeps the measured cases" in last
    use_threads(monkeypatch)
    assert trained.validate("-np", "1") == 0
    assert "4 measured before, 0 with .npz, 1 to predict" in capsys.readouterr().err
    assert trained.results() == hook
    assert snapshot(trained.model) == before
