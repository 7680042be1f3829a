"""nnU-Net's own look-up finds the trainers, and finds the same classes every time and in every process."""

import importlib.util
import json
import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from nnunet_calib import trainers
from nnunet_calib.io.wording import reason
from nnunet_calib.nnunet.deployment.networks import stock_trainer
from nnunet_calib.nnunet.lookup import MODULE, find_model, find_trainer, model_in, trainers_folder

NAMES = [trainer.__name__ for trainer in trainers.TRAINERS]

# nnU-Net's imports, and the paths that it does not find set
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def find(name: str) -> type:
    """What nnUNetv2_train and nnUNetv2_predict call."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    return recursive_find_trainer_class_by_name(name)


def is_what_the_lookup_finds(cls: type) -> bool:
    """Whether a class that came through a pickle is the one that this process finds."""
    return find(cls.__name__) is cls


@pytest.fixture
def folder(monkeypatch):
    """The trainers folder, as users set it."""
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    return trainers_folder()


@pytest.fixture
def other_folder(tmp_path):
    """A folder of trainers that a user has beside ours."""
    (tmp_path / "my_trainers.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class nnUNetTrainerOfTheUser(nnUNetTrainer):\n    pass\n"
    )
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_found_once_and_again(folder, name):
    """Each look-up returns the class of the installed package, where another one would break isinstance and pickles."""
    first, second = find(name), find(name)
    assert first is second is getattr(trainers, name)
    assert first.__name__ == name
    assert pickle.loads(pickle.dumps(first)) is first


@pytest.mark.usefixtures("warm_python")
def test_spawned_process(folder):
    """Spawned workers, which start without our imports, get the class that they find themselves."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(is_what_the_lookup_finds, trainers.TRAINERS)) == [True] * len(NAMES)


def test_no_trace_of_the_look_up(folder):
    """Neither the module nor the folder stays behind: the bare name would hide another module of that name."""
    path = [*sys.path]
    find(NAMES[0])
    assert MODULE.removesuffix(".py") not in sys.modules
    assert sys.path == path
    assert "nnunet_calib.trainers" in sys.modules


BROKEN = {
    "syntax": ("def broken(:\n", "invalid syntax"),
    "import": ("import a_module_that_is_nowhere\n", "No module named 'a_module_that_is_nowhere'"),
    "raises": ("raise RuntimeError('needs a licence')\n", "needs a licence"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_beside_a_broken_module(monkeypatch, tmp_path, capsys, what):
    """Named after ours it is not imported; before ours, a sentence names the file and the cause."""
    source, cause = BROKEN[what]
    file = tmp_path / "of_others.py"
    file.write_text(source)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(trainers_folder()), str(tmp_path)]))
    assert find_trainer("nnUNetTrainerNACL") is trainers.nnUNetTrainerNACL
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), str(trainers_folder())]))
    with pytest.raises(
        ValueError, match="expected modules that Python can import in nnUNet_extTrainer, found "
    ) as told:
        find_trainer("nnUNetTrainerNACL")
    assert f"found {file} broken (" in str(told.value)
    assert cause in str(told.value)
    assert "before nnUNetTrainerNACL: fix or remove it, or name its folder last" in str(told.value)


OF_OTHERS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunet_calib.trainers import nnUNetTrainerSVLS


class LoggingMixin:
    def on_epoch_end(self):
        super().on_epoch_end()


class nnUNetTrainerNACL(LoggingMixin, nnUNetTrainer):
    pass


class nnUNetTrainerLogging(LoggingMixin, nnUNetTrainerSVLS):
    pass
"""


@pytest.mark.parametrize("ours_first", [True, False])
def test_same_name(monkeypatch, tmp_path, capsys, ours_first):
    """A trainer of the same name is told of, with both folders; an import of ours is none, nor is a mixin."""
    (tmp_path / "of_others.py").write_text(OF_OTHERS)
    folders = [str(trainers_folder()), str(tmp_path)][:: 1 if ours_first else -1]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(folders))
    assert (find_trainer("nnUNetTrainerNACL") is trainers.nnUNetTrainerNACL) == ours_first
    told = capsys.readouterr().err
    assert told.startswith(
        f"nnUNet_extTrainer has different trainers nnUNetTrainerNACL in {folders[0]} and {folders[1]}: nnU-Net takes"
    )
    assert find_trainer("nnUNetTrainerSVLS") is trainers.nnUNetTrainerSVLS
    theirs = find_trainer("nnUNetTrainerLogging")
    assert issubclass(theirs, trainers.nnUNetTrainerSVLS)
    assert [cls.__name__ for cls in theirs.__mro__][:3] == ["nnUNetTrainerLogging", "LoggingMixin", "nnUNetTrainerSVLS"]
    assert capsys.readouterr().err == ""


def test_inside_nnunet(monkeypatch, tmp_path):
    """A link in nnU-Net's own folder of trainers, where nnUNetv2_train_pretrained alone looks, gives the same class."""
    import nnunetv2.training.nnUNetTrainer as inside
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    (tmp_path / MODULE).symlink_to(trainers_folder() / MODULE)
    monkeypatch.setattr(inside, "__path__", [*inside.__path__, str(tmp_path)])
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    try:
        found = recursive_find_python_class(str(tmp_path), "nnUNetTrainerNACL", inside.__name__)
        assert found is trainers.nnUNetTrainerNACL
        assert recursive_find_python_class(str(tmp_path), "nnUNetTrainerNone", inside.__name__) is None
        linked = type("Linked", (found,), {"__module__": f"{inside.__name__}.my_trainers"})
        assert stock_trainer(linked).__name__ == "nnUNetTrainer"  # bake --portable needs nnU-Net's own
    finally:
        sys.modules.pop(f"{inside.__name__}.{MODULE.removesuffix('.py')}", None)


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_another_folder(monkeypatch, other_folder, ours_first):
    """Both folders of nnUNet_extTrainer are searched, whichever comes first."""
    paths = [str(trainers_folder()), str(other_folder)]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(paths if ours_first else paths[::-1]))
    for name in NAMES:
        assert find(name) is getattr(trainers, name)
    assert find("nnUNetTrainerOfTheUser").__module__ == "my_trainers"


def test_not_found_without_the_folder(monkeypatch, other_folder):
    """The classes are found through the folder alone, so that the tests above say something."""
    monkeypatch.setenv("nnUNet_extTrainer", str(other_folder))
    with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {NAMES[0]}"):
        find(NAMES[0])


def test_content_of_the_folder(folder):
    """Only modules, since nnU-Net imports all it finds, and no package, which it would walk into."""
    content = [p for p in folder.iterdir() if p.name != "__pycache__"]  # Python's own
    assert MODULE in [p.name for p in content]
    assert all(p.is_file() and p.suffix == ".py" for p in content)
    assert not (folder / "__init__.py").exists()


def test_every_trainer_is_exported(folder):
    """The folder's module names the trainers of the package, all of them and nothing else."""
    spec = importlib.util.spec_from_file_location("exported", folder / MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    exported = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    assert exported == dict(zip(NAMES, trainers.TRAINERS, strict=True))


def test_errors_of_several_lines(monkeypatch, tmp_path):
    """nnU-Net's whole error is told, on one line: here the folders in which it looked for a dataset."""
    variables = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
    for variable in variables:
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    with pytest.raises(ValueError, match="expected the name or number of a dataset") as refusal:
        find_model("77", "2d", "nnUNetTrainer", "nnUNetPlans")
    assert "\n" not in str(refusal.value)
    assert all(str(tmp_path / variable) in str(refusal.value) for variable in variables)


def test_both_ends_of_a_long_error():
    """What failed stands in the beginning, and often why in the end."""
    assert reason(RuntimeError("start\n" + "x" * 1000 + "\nend")).startswith("start x")
    assert reason(RuntimeError("start\n" + "x" * 1000 + "\nend")).endswith("x end")
    assert reason(RuntimeError()) == "RuntimeError"


def write_model(folder, **content):
    """Write what says which model it is, into a folder whose name says something else."""
    (folder / "fold_1").mkdir(parents=True)
    plans = {"dataset_name": "Dataset005_A", "plans_name": "my__Plans"}
    (folder / "plans.json").write_text(json.dumps(plans))
    whole = {"network_weights": {}, "trainer_name": "nnUNetTrainerNACL", "init_args": {"configuration": "2d__a"}}
    torch.save(whole | content, folder / "fold_1" / "checkpoint_best.pth")
    return folder


def test_model_in_a_folder(tmp_path):
    """Its files say what model it is, not the names of folders."""
    folder = write_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    found = model_in(folder, 1, "checkpoint_best.pth")
    assert found.path == folder
    assert found.identity == {
        "dataset": "Dataset005_A",
        "trainer": "nnUNetTrainerNACL",
        "plans": "my__Plans",
        "configuration": "2d__a",
    }


def test_no_model_in_a_folder(tmp_path):
    """What is not there is named, with what is."""
    with pytest.raises(ValueError, match=r"with plans\.json and fold_X, found no .*: name another with -m"):
        model_in(tmp_path, 0, "checkpoint_final.pth")
    folder = write_model(tmp_path / "model", init_args={"configuration": "../3d"})
    with pytest.raises(ValueError, match=r"checkpoint_final\.pth, found none: .* \(fold_1/checkpoint_best\.pth\)"):
        model_in(folder, 1, "checkpoint_final.pth")
    with pytest.raises(ValueError, match=r"expected init_args\.configuration to be a plain name without folders"):
        model_in(folder, 1, "checkpoint_best.pth")
