"""Files of a trained fold that are cut off, foreign, or of a wrong time: one sentence, or another way to numbers."""

import os
import resource
import time

import pytest
import torch

from nnunet_calib import cli
from nnunet_calib.nnunet.validation import trained_fold as revalidation
from tests.nnunet.faults.disks import read_only_disk
from tests.nnunet.faults.processes import ended, forked, killed, needs_fork
from tests.worlds.command_line import sentence
from tests.worlds.trained_fold import CONFIGURATION, snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def commands(trained):
    """Those that read a trained fold."""
    model = ["-d", trained.dataset, "-c", CONFIGURATION, "-tr", trained.trainer, "-f", "all"]
    images, out = trained.root / "images", trained.root / "predicted"
    images.mkdir(exist_ok=True)
    (images / "case_0000.nii.gz").touch()  # the model is looked at before an image is read
    return {
        "validate": trained.command("-f", "all"),
        "bake": ["bake", *model, "--temperature", "1.5"],
        "predict": ["predict", "-i", str(images), "-o", str(out), *model, "--temperature", "2", "-device", "cpu"],
    }


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_others(path):
    torch.save({"state_dict": {}}, path)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("fold_all/checkpoint_final.pth", cut, "expected a checkpoint of nnU-Net, found {file} unreadable ("),
        ("fold_all/checkpoint_final.pth", of_others, "expected a checkpoint of nnU-Net v2 with network_weights and"),
        ("plans.json", cut, "{model}"),
        ("dataset.json", cut, "{model}"),
    ],
)
def test_model(trained, capsys, name, damage, said):
    """Each command that reads it names it, and writes nothing."""
    trained.without_results()
    file = trained.model / name
    damage(file)
    before = snapshot(trained.model, without="")
    for command in commands(trained).values():
        assert cli.main(command) == 2
        assert said.format(file=file, model=trained.model) in sentence(capsys.readouterr().err.splitlines()[-1])
    assert snapshot(trained.model, without="") == before
    assert not (trained.root / "predicted").exists()


@needs_fork
def test_killed_bake(trained, capsys):
    """A checkpoint that is half written has another name, under which nothing looks for one."""
    bake = commands(trained)["bake"]
    assert killed(lambda: cli.main(bake), 1)
    (half,) = trained.fold.glob(".*.tmp.checkpoint_calibrated.pth")
    assert not (trained.fold / "checkpoint_calibrated.pth").exists()
    assert cli.main([*bake, "-chk", "checkpoint_none.pth"]) == 2
    assert half.name not in capsys.readouterr().err
    assert cli.main(bake) == 0
    content = torch.load(trained.fold / "checkpoint_calibrated.pth", weights_only=False)
    assert content["nnunet_calib"]["temperature"] == 1.5


@needs_fork
def test_bake_on_a_bad_disk(trained, tmp_path):
    """PyTorch's own error names no file."""
    bake, said = commands(trained)["bake"], tmp_path / "said"

    def small_files() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return cli.main(bake)

    def told() -> None:
        text = sentence(said.read_text().splitlines()[-1])
        assert f"write {trained.fold / 'checkpoint_calibrated.pth'}, could not (" in text
        assert text.endswith("is there space and permission?")
        assert not [*trained.fold.glob("*calibrated*"), *trained.fold.glob(".*.tmp.*")]

    assert ended(forked(small_files, said)) == 2
    told()
    with read_only_disk(trained.fold):
        assert ended(forked(lambda: cli.main(bake), said)) == 2
        told()


@needs_fork
def test_killed_validate(trained):
    """In the second file that it writes, again and again: a case more each time; then between its two results."""
    hook = trained.results()
    assert trained.without_results(npz=True).validate("-np", "1") == 0
    expected = trained.results()
    assert expected.keys() == hook.keys()
    trained.without_results(npz=True)
    cases = trained.calibration / "cases"
    for number in range(1, 6):
        assert killed(lambda: trained.validate("-np", "1"), 2)
        assert len(list(cases.glob("case.*.npz"))) == number
    assert killed(lambda: trained.validate("-np", "1"), 2)
    assert not (trained.calibration / "summary.json").exists()
    assert (trained.calibration / "temperature.json").is_file()
    assert trained.validate("-np", "1") == 0
    assert {name: content for name, content in trained.results().items() if ".tmp." not in name} == expected


@pytest.fixture
def predicted_cases(trained, monkeypatch):
    """The cases that a command would predict from the checkpoint, rather than read their .npz."""

    class Stop(Exception):
        pass

    def stop(trainer, weights, cases, measure, processes):
        raise Stop(*cases)

    def ask() -> list[str]:
        trained.without_results(npz=True)
        monkeypatch.setattr(revalidation, "predict", stop)
        monkeypatch.setattr(revalidation.Predictions, "save_all", lambda *arguments: None)
        monkeypatch.setattr(revalidation, "write_fold", lambda folder, *arguments: stop(None, None, (), None, None))
        with pytest.raises(Stop) as stopped:
            trained.validate("-np", "1")
        return list(stopped.value.args)

    return ask


def test_wrong_clock(trained, predicted_cases):
    """Where times cannot be true, the checkpoint is asked; a clock that was wrong all the time does not matter."""
    checkpoint = trained.fold / "checkpoint_final.pth"
    saved = trained.fold / "validation" / "case.1.npz"
    assert predicted_cases() == []
    os.utime(saved, (time.time() + 9e6,) * 2)  # could be of an earlier training
    assert predicted_cases() == ["case.1"]
    os.utime(checkpoint, (time.time() + 9e5,) * 2)
    assert predicted_cases() == trained.cases
    for path in trained.fold.rglob("*"):
        os.utime(path, (9e8, 9e8) if path == checkpoint else (9e8 + 1, 9e8 + 1))
    assert predicted_cases() == []
