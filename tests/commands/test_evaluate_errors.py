"""What `evaluate` and `fit` refuse, each in one sentence and without writing anything."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_calib import cli
from tests.worlds.command_line import content, sentence
from tests.worlds.predicted_folder import arguments, write_labels, write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports


def cut(path: Path, at: float) -> None:
    """Damage the bytes behind a place: without the end of the archive if it is 1 / 2, inside it otherwise."""
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2]) if at == 0.5 else path.write_bytes(
        bytes(data[: int(at * len(data))]) + b"\0" * 64 + bytes(data[int(at * len(data)) + 64 :])
    )


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shape(folder: Path, *new: int) -> None:
    np.savez(folder / "pred" / "case.1.npz", probabilities=np.full(new, 1 / new[0], np.float32))


NO_NPZ = "(predict with --save_probabilities, or validate with --npz)"
REFUSALS = {
    "no folder": (lambda f: (f / "labels").rename(f / "l"), "expected a folder with labels, found none at {f}/labels"),
    "swapped": (
        lambda f: [p.rename(f / "labels" / p.name) for p in (f / "pred").glob("*.npz")],
        "expected predictions with .npz in {f}/pred, found them beside the labels: swap -i and -gt",
    ),
    "no label": (
        lambda f: (f / "labels/case.1.nii.gz").unlink(),
        "expected a label map and an .npz for each case, found no label for case.1: add "
        "what is missing, or take the others with --chill",
    ),
    "no npz": (
        lambda f: [(f / f"pred/case.{i}.npz").unlink() for i in (0, 2)],
        f"no .npz {NO_NPZ} for case.0, case.2: ",
    ),
    "no prediction": (
        lambda f: [p.unlink() for p in (f / "pred").glob("case.0.*")],
        "found no prediction for case.0: add",
    ),
    "several": (
        lambda f: [(f / p).unlink() for p in ("labels/case.0.nii.gz", "pred/case.1.npz")],
        f"found no label for case.0; no .npz {NO_NPZ} for case.1: add",
    ),
    "other cases": (
        lambda f: [p.rename(p.with_name(f"a{p.name}")) for p in (f / "labels").iterdir()],
        "no prediction for acase.0, acase.1, acase.2: do both folders hold the same cases?",
    ),
    "no npz at all": (
        lambda f: [p.unlink() for p in f.rglob("*.npz")],
        "expected an .npz for each case, found none in {f}/pred",
    ),
    "other ending": (
        lambda f: change_json(f / "pred/dataset.json", file_ending=".mha"),
        "expected label maps that end with .mha, as {f}/pred/dataset.json says, found none in {f}/labels",
    ),
    "no dataset.json": (
        lambda f: (f / "pred/dataset.json").unlink(),
        "expected nnU-Net's dataset.json in {f}/pred or up to 2 folders above, found none: name it with -djfile",
    ),
    "no JSON": (
        lambda f: (f / "pred/dataset.json").write_text("{"),
        "expected JSON, found {f}/pred/dataset.json damaged (",
    ),
    "other JSON": (
        lambda f: (f / "pred/dataset.json").write_text("[]"),
        "expected the content to be an object, found [] in {f}/pred/dataset.json",
    ),
    "labels": (lambda f: change_json(f / "pred/dataset.json", labels={"a": 1}), "expected labels that nnU-Net accepts"),
    "no reader": (
        lambda f: change_json(f / "pred/plans.json", image_reader_writer="None"),
        "for which nnU-Net has a reader",
    ),
    "no archive": (
        lambda f: cut(f / "pred/case.1.npz", 0.5),
        "that nnU-Net has written, found {f}/pred/case.1.npz damaged",
    ),
    "damaged array": (
        lambda f: cut(f / "pred/case.1.npz", 0.8),
        "that nnU-Net has written, found {f}/pred/case.1.npz damaged",
    ),
    "other array": (
        lambda f: np.savez(f / "pred/case.1.npz", softmax=[1.0]),
        "expected an .npz with an array 'probabilities', as nnU-Net writes it, found 'softmax' in {f}/pred/case.1.npz",
    ),
    "integers": (
        lambda f: np.savez(f / "pred/case.1.npz", probabilities=np.ones((3, 2, 2, 2), np.int16)),
        "expected floating-point probabilities, or uint8 or uint16 as steps to 1, found int16 in {f}/pred/case.1.npz",
    ),
    "other classes": (
        lambda f: shape(f, 2, 12, 14, 15),
        "of the 3 classes of {f}/pred/dataset.json (background, bright, dark), found shape (2, 12, 14, 15) in {f}/pred",
    ),
    "other shape": (
        lambda f: shape(f, 3, 12, 14, 14),
        "case case.1 ({f}/pred/case.1.npz and {f}/labels/case.1.nii.gz): expected probabilities (C, *spatial) on the "
        "grid of the labels, (12, 14, 15), got (3, 12, 14, 14)",
    ),
    "damaged labels": (
        lambda f: (f / "labels/case.1.nii.gz").write_text("no image"),
        "case case.1: expected a label map that nnU-Net's SimpleITKIO can read, found {f}/labels/case.1.nii.gz",
    ),
    "damaged properties": (
        lambda f: (f / "pred/case.1.pkl").write_text("no pickle"),
        "expected nnU-Net's properties of the image, found {f}/pred/case.1.pkl unreadable",
    ),
    "output": (lambda f: (f / "pred/calibration").write_text(""), "a folder that can be written, got {f}/pred/calib"),
    "foreign output": (
        lambda f: ((f / "pred/calibration").mkdir(), (f / "pred/calibration/summary.json").write_text("{}")),
        "found {f}/pred/calibration/summary.json of a training or of other software: name another folder with -o",
    ),
}


@pytest.mark.parametrize("command", ["evaluate", "fit"])
@pytest.mark.parametrize("reason", REFUSALS)
def test_refusals(tmp_path, capsys, reason, command):
    """One sentence that names the file or the case; nothing is written."""
    write_world(tmp_path)
    spoil, expected = REFUSALS[reason]
    spoil(tmp_path)
    before = content(tmp_path)
    assert cli.main(arguments(tmp_path, command)) == 2
    captured = capsys.readouterr()
    text = captured.err.splitlines()[-1]  # below the progress bar
    assert sentence(text)
    assert expected.replace("{f}", str(tmp_path)) in text
    assert captured.out == ""
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", "expected a temperature above 0, or a temperature.json of nnunet_calib, got 0.0"),
        ("-1.5", "got -1.5"),
        ("nan", "got nan"),
        ("inf", "got inf"),
        ("nowhere.json", "got nowhere.json, which is neither: name a number, or an existing file"),
        ("{f}/pred/dataset.json", "got {f}/pred/dataset.json (ValueError: expected temperature, found none)"),
        ("{f}/bound.json", "expected a temperature that the data determine, found T = 20.0 on the bound of the search"),
    ],
)
def test_no_temperature(tmp_path, capsys, value, expected):
    """Neither a number nor a usable file."""
    write_world(tmp_path)
    (tmp_path / "bound.json").write_text(json.dumps({"temperature": 20, "at_bound": True}))
    assert cli.main(arguments(tmp_path, "evaluate", f"--temperature={value.format(f=tmp_path)}")) == 2
    assert expected.format(f=tmp_path) in sentence(capsys.readouterr().err)


def test_ignored_everywhere(tmp_path, capsys):
    """No voxel that counts."""
    (case,) = write_world(tmp_path, "ignore", seeds=[0]).values()
    write_labels(tmp_path / "labels" / "case.0.nii.gz", replace(case, labels=np.full_like(case.labels, 3)))
    assert cli.main(arguments(tmp_path)) == 2
    assert "found no voxel that counts in 1 cases" in capsys.readouterr().err
    assert not (tmp_path / "pred" / "calibration").exists()


def test_processes_are_counted_from_one(tmp_path, capsys):
    """The message is argparse's own."""
    with pytest.raises(SystemExit):
        cli.main(["fit", "-i", "a", "-gt", "b", "-np", "0"])
    assert "-np: expected at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["fit", "-i", "a", "-gt", "b", "-np", "many"])
    assert "-np: expected a whole number, got many" in capsys.readouterr().err
