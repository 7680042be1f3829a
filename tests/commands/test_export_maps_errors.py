"""What `export` refuses, each in one sentence, and how it leaves the folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_calib import cli
from nnunet_calib.results.heads import Heads
from tests.worlds.command_line import content, sentence
from tests.worlds.maps import export
from tests.worlds.predicted_folder import write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FORMATS = {
    "png float32": (".png", (), "expected --dtype uint8 or uint16 for images that end with .png, got float32"),
    "png 4d": (".png", ("--dtype", "uint8", "--layout", "4d"), "expected --layout files for images that end with .png"),
    "bmp uint16": (".bmp", ("--dtype", "uint16"), "expected --dtype uint8 for images that end with .bmp, got uint16"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, capsys, name):
    """What a format cannot hold is said before anything is written."""
    ending, options, text = FORMATS[name]
    write_world(tmp_path, "labels", ".png", [0])
    if ending != ".png":
        (tmp_path / "pred" / "case.0.png").rename(tmp_path / "pred" / f"case.0{ending}")
        change_json(tmp_path / "pred" / "dataset.json", file_ending=ending)
        change_json(tmp_path / "pred" / "plans.json", image_reader_writer="NaturalImage2DIO")
    before = content(tmp_path)
    assert cli.main(["export", "-i", str(tmp_path / "pred"), *options]) == 2
    assert text in sentence(capsys.readouterr().err)
    assert content(tmp_path) == before


def test_missing(tmp_path, capsys):
    """A case without its segmentation or its .npz is named, and left out if that is wished."""
    write_world(tmp_path, seeds=range(4))
    for name in ("case.0.nii.gz", "case.2.npz"):
        (tmp_path / "pred" / name).unlink()
    assert cli.main(["export", "-i", str(tmp_path / "pred")]) == 2
    text = sentence(capsys.readouterr().err)
    assert "expected a segmentation and an .npz for each case, found no segmentation for case.0; no .npz (" in text
    assert text.endswith(" for case.2: add what is missing, or take the others with --chill")
    folder = export(tmp_path, "--chill")
    assert "skipped (no segmentation or no .npz): case.0, case.2\n" in capsys.readouterr().err
    assert sorted(p.name for p in (folder / "probabilities" / "dark").iterdir()) == ["case.1.nii.gz", "case.3.nii.gz"]


def test_other_grid(tmp_path, capsys):
    """An .npz that does not belong to the segmentation."""
    write_world(tmp_path, seeds=[0])
    np.savez(tmp_path / "pred" / "case.0.npz", probabilities=np.full((3, 12, 14, 14), 1 / 3, np.float32))
    assert cli.main(["export", "-i", str(tmp_path / "pred"), "-np", "1"]) == 2
    text = capsys.readouterr().err.splitlines()[-1]
    assert "case case.0: expected probabilities (C, *spatial) on the grid (12, 14, 15) of" in text
    assert "found shape (3, 12, 14, 14) in" in text


def test_unreadable_segmentation(tmp_path, capsys):
    """Told in one sentence, whatever ITK says."""
    write_world(tmp_path, seeds=[0])
    (tmp_path / "pred" / "case.0.nii.gz").write_text("damaged")
    assert cli.main(["export", "-i", str(tmp_path / "pred"), "-np", "1"]) == 2
    assert "expected a segmentation that nnU-Net's SimpleITKIO can read" in capsys.readouterr().err.splitlines()[-1]


def test_other_maps(tmp_path, capsys):
    """Maps that were made in another way stay as they are; made in the same way, they are written again."""
    write_world(tmp_path, seeds=[0])
    folder = export(tmp_path, "--dtype", "uint8")
    before = content(folder)
    export(tmp_path, "--dtype", "uint8")
    assert content(folder) == before
    capsys.readouterr()
    for more, what in (
        ([], "dtype, maps"),
        (["--dtype", "uint8", "--temperature", "2"], "temperature"),
        (["--dtype", "uint8", "--maps", "entropy"], "maps"),
    ):
        assert cli.main(["export", "-i", str(tmp_path / "pred"), *more]) == 2
        expected = f"expected maps made in the same way, or none, in {folder}, found others ({what}): name another"
        assert expected in sentence(capsys.readouterr().err)
    (folder / "maps.json").write_text("[]")
    assert cli.main(["export", "-i", str(tmp_path / "pred")]) == 2
    assert "(no JSON of this command)" in sentence(capsys.readouterr().err)


def test_no_space(tmp_path, capsys, monkeypatch):
    """A map that cannot be written leaves nothing, not even a half."""
    import SimpleITK as sitk

    def full(image, name, compress):
        Path(name).write_text("half of it")
        raise RuntimeError("Exception thrown in SimpleITK\nNo space left on device")

    write_world(tmp_path, seeds=[0])
    monkeypatch.setattr(sitk, "WriteImage", full)
    assert cli.main(["export", "-i", str(tmp_path / "pred"), "-np", "1"]) == 2
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.endswith("could not (No space left on device): is there space and permission?")
    assert [p.name for p in (tmp_path / "pred" / "maps").rglob("*") if p.is_file()] == ["maps.json"]


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("background", "whole tumor", "a/b"), ["background", "whole_tumor", "a_b"]),
        (("..", "é", "T+2-x"), ["_", "é", "T+2-x"]),
        (("Tumor", "tumor"), ["0_Tumor", "1_tumor"]),
        (("a b", "a_b"), ["0_a_b", "1_a_b"]),
    ],
)
def test_names(names, folders):
    """Any name of a class makes a folder of its own."""
    assert Heads(tuple(map(str, range(len(names)))), names, None, None).folders == folders
