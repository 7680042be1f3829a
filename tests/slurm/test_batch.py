"""The batch scripts of docs/cluster on a real SLURM of one node: they write the bytes of the same commands by hand."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.slurm.one_node import Slurm, one_node
from tests.slurm.study import PLAIN, TRAINER, Study, prepare, write_commands

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    """A SLURM of one node."""
    if not all(shutil.which(name) for name in ("sbatch", "slurmctld", "slurmd", "munged")) or os.getuid() != 0:
        pytest.skip("needs root and Debian's packages slurm-wlm and munge")
    with one_node(tmp_path_factory.mktemp("slurm")) as node:
        yield node


def test_batch_scripts(slurm, world, tmp_path, monkeypatch, in_threads):
    """A study whose training runs out of time and whose `validate` is killed; both are requeued and go on.

    `crossval` waits for the trainings, `compare` for it and `validate`, and `predict` for the temperature.
    """
    prepare(world, tmp_path)
    by_hand, by_slurm = (Study(world, tmp_path, tmp_path / name) for name in ("hand", "slurm"))
    by_hand.train_by_hand(monkeypatch, PLAIN)
    shutil.copytree(by_hand.model(PLAIN), by_slurm.model(PLAIN))

    write_commands(slurm.folder / "bin")
    slurm.environment |= by_slurm.environment()
    hold = by_slurm.root / "results" / "hold_0"
    hold.touch()
    train = slurm.submit("train.sh", "--array=0-1", TRAINER=TRAINER)
    slurm.wait(lambda: not hold.exists())
    # the first fold is in its second epoch; SLURM looks every thirty seconds who is out of time, and refuses an end
    # that has passed when the request arrives
    slurm.call("scontrol", "update", f"JobId={train}_0", "EndTime=now+5")

    validate = slurm.submit("validate.sh", "--array=0-1", TRAINER=PLAIN)
    killed, log = f"{validate}_0", slurm.folder / f"validate-{validate}_0.log"
    slurm.wait(lambda: log.exists() and "to predict" in log.read_text(), every=0.02)
    slurm.call("scancel", killed)
    slurm.wait_for("CANCELLED", killed)
    slurm.requeue(killed)
    assert not (by_slurm.calibration(PLAIN, 0) / "summary.json").exists()
    slurm.wait_for("TIMEOUT", f"{train}_0")
    assert (by_slurm.model(TRAINER) / "fold_0" / "checkpoint_latest.pth").exists()
    slurm.requeue(f"{train}_0")
    # afterok would be lost with the first task of an array that is killed, although it is requeued and succeeds
    crossval = slurm.submit("crossval.sh", f"--dependency=afterany:{train}", TRAINER=TRAINER)
    after = f"--dependency=afterok:{crossval},afterany:{validate}"
    compare = slurm.submit("compare.sh", after, TRAINERS=f"{PLAIN} {TRAINER}")
    predict = slurm.submit("predict.sh", "--array=0-1", f"--dependency=afterok:{crossval}", TRAINER=TRAINER)

    tasks = [f"{job}_{task}" for job in (train, validate, predict) for task in range(2)]
    slurm.wait_for("COMPLETED", *tasks, crossval, compare)
    assert slurm.history(train) == {"0": ["TIMEOUT", "PENDING", "COMPLETED"], "1": ["COMPLETED"]}
    assert slurm.history(validate) == {"0": ["CANCELLED", "PENDING", "COMPLETED"], "1": ["COMPLETED"]}

    monkeypatch.setattr("nnunet_calib.figures.fold_figures.FIGURES", ())
    by_hand.train_by_hand(monkeypatch, TRAINER)
    for part in "01":
        by_hand.by_hand(
            monkeypatch, "validate", "-num_parts", "2", "-part_id", part, "-device", "cpu", trainers=(PLAIN,)
        )
    by_hand.by_hand(monkeypatch, "crossval", trainers=(TRAINER,))
    by_hand.by_hand(monkeypatch, "compare", trainers=(PLAIN, TRAINER))
    images = ("-i", str(tmp_path / "images"), "-o", str(by_hand.root / "predicted"), "-device", "cpu")
    by_hand.by_hand(monkeypatch, "predict", *images, "-npp", "0", "-nps", "0", trainers=(TRAINER,))
    expected, found = by_hand.files(), by_slurm.files()
    assert {path.rpartition("/")[2] for path in expected} >= {"comparison.json", "temperature.json", "maps.json"}
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
