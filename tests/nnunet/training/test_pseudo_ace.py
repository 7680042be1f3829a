"""The pseudo ACE: against a loop over voxels, and in nnU-Net's own epochs, where it must change and cost nothing."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.nnunet.training import pseudo_ace as module
from nnunet_calib.nnunet.training.logit_sums import logit_quantiles
from nnunet_calib.nnunet.training.pseudo_ace import (
    LOGITS,
    MEAN,
    PER_CLASS,
    STRIDE,
    PatchSums,
    PseudoACEMixin,
    pseudo_ace,
)
from nnunet_calib.results.heads import Heads
from nnunet_calib.trainers import nnUNetTrainerML1ACE
from tests.losses.conftest import MODES, make_case
from tests.worlds.made_trainers import NoDeepSupervision, make
from tests.worlds.nnunet_world import LABEL_MODES
from tests.worlds.ranks import on_ranks

every_case = pytest.mark.parametrize("case", [make_case(m, s) for m in MODES for s in ((4, 5, 4), (9, 7))], ids=str)
nnunet = pytest.mark.filterwarnings("ignore")


def sums(case, logits=None, steps=STRIDE) -> PatchSums:
    """Those of a case; the same patches in as many steps as voxels are skipped count every voxel once."""
    made = PatchSums(3, case.regions, case.ignore_label, torch.device("cpu"))
    for _ in range(steps):
        made.add(case.logits if logits is None else logits, case.target)
    return made


def errors(case, **options) -> np.ndarray:
    return pseudo_ace(sums(case, **options).sums.numpy())


def slow_errors(case) -> list[float]:
    """Voxel by voxel, all images pooled."""
    volume, result = case.volume(), []
    for c in range(0 if case.regions else 1, 3):
        bins = [[] for _ in range(20)]
        for b, position in volume.voxels:
            p = volume.probabilities[(b, c, *position)]
            bins[min(int(p * 20), 19)].append(p - (volume.label(b, c, position) == volume.own_label(c)))
        result.append(np.mean([abs(np.mean(gaps)) for gaps in bins if gaps]))
    return result


@every_case
def test_against_a_loop(case):
    """Every label mode; in half precision up to its rounding."""
    assert errors(case) == pytest.approx(slow_errors(case), rel=1e-5)
    half = case.logits.half()
    assert errors(case, logits=half) == pytest.approx(errors(case, logits=half.float()), rel=1e-6)


def test_by_hand():
    """Two voxels, of class 0 and 1, both predicted .7, .3, .0: one bin, in which class 1 is found half of the time."""
    made = PatchSums(3, False, None, torch.device("cpu"))
    logits = torch.tensor([0.7, 0.3, 1e-9]).log()[None, :, None, None].expand(1, 3, 1, 2)
    for _ in range(STRIDE):
        made.add(logits, torch.tensor([0, 1])[None, None, None])
    assert made.sums[0].sum() == 2 * 2
    assert pseudo_ace(made.sums.numpy()) == pytest.approx([0.2, math.nan], rel=1e-6, nan_ok=True)


@every_case
def test_one_voxel_in_seventeen(case):
    """A step counts its share of the voxels, and after 17 of them every voxel has been counted once."""
    counts = [int(sums(case, steps=n).sums[0, 0].sum()) for n in range(STRIDE + 1)]
    assert max(np.diff(counts)) <= math.ceil(case.logits[:, 0].numel() / STRIDE) + 1
    assert counts[-1] == (~case.ignored).sum()


@every_case
def test_nan(case):
    """A NaN that counts is not hidden, one in an ignored voxel changes nothing."""
    assert np.array_equal(errors(case.with_bad_logits()), errors(case))
    logits = case.logits.clone()
    logits[(0, slice(None), *[-1] * (logits.ndim - 2))] = torch.nan
    assert np.isnan(errors(case, logits=logits)).all()


class OneRank(PseudoACEMixin):
    """What gathering needs of a trainer."""

    is_ddp = True

    def __init__(self, case, images: slice, failure: str = "") -> None:
        self._patch_sums = PatchSums(3, case.regions, case.ignore_label, torch.device("cpu"))
        for _ in range(STRIDE):
            self._patch_sums.add(case.logits[images], case.target[images])
        self._pseudo_ace_failure = failure
        self.label_manager = type("Labels", (), {"num_segmentation_heads": 3, "has_regions": case.regions})


def _gathered(rank: int) -> tuple[tuple[list[float], list], tuple[list[float], list], str]:
    case = make_case("labels+ignore", (4, 5, 4))
    well = OneRank(case, slice(rank, rank + 1))
    failing = OneRank(case, slice(rank, rank + 1), "out of order" if rank else "")
    return well._gathered_pseudo_ace(), failing._gathered_pseudo_ace(), failing._pseudo_ace_failure


@pytest.mark.slow
def test_ranks(tmp_path):
    """Two ranks pool their voxels; if one fails, both know why, have no value and do not wait for each other."""
    made = sums(make_case("labels+ignore", (4, 5, 4)))
    for well, failed, why in on_ranks(_gathered, tmp_path):
        assert well[0] == pytest.approx(pseudo_ace(made.sums.numpy()), rel=1e-12)
        np.testing.assert_allclose(well[1], logit_quantiles(made.logits.counts.numpy()), rtol=1e-12)
        assert failed[0] == pytest.approx([math.nan] * 2, nan_ok=True)
        assert np.shape(failed[1]) == np.shape(well[1])
        assert np.isnan(failed[1]).all()
        assert why == "out of order"


def validate(trainer, batch) -> dict:
    """A validation epoch of one step, on a copy of the batch, which nnU-Net writes to."""
    batch = {k: [x.clone() for x in v] if isinstance(v, list) else v for k, v in batch.items()}
    batch["target"] = batch["target"].clone() if torch.is_tensor(batch["target"]) else batch["target"]
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        result = trainer.validation_step(batch)
        trainer.on_validation_epoch_end([result])
    return result


@pytest.mark.slow
@nnunet
@pytest.mark.parametrize("world", LABEL_MODES, indirect=True)
@pytest.mark.parametrize("cls", [nnUNetTrainerML1ACE, NoDeepSupervision])
def test_validation_step(world, cls, monkeypatch):
    """It measures the full resolution of what the network put out, and nnU-Net's own numbers are as without it."""
    monkeypatch.setattr(module, "STRIDE", 1)
    trainer = make(cls, world)
    trainer.on_train_start()
    batch = next(trainer.dataloader_val)
    seen = []
    trainer.network.register_forward_hook(lambda network, arguments, output: seen.append(output))
    measured = validate(trainer, batch)
    output, target = (x[0] if isinstance(x, list | tuple) else x for x in (seen[0], batch["target"]))

    heads = Heads.of(trainer.label_manager)
    if heads.regions:
        p, labels, ignored = torch.sigmoid(output), target, target[:, -1].bool()
        expected = [
            calibration_errors(
                CaseStatistics.from_probabilities(
                    np.stack([1 - p[:, c], p[:, c]]),
                    np.where(ignored & (heads.ignore_label is not None), 9, labels[:, c].numpy()),
                    ignore_label=9,
                )
            )["ace"][1]
            for c in range(len(heads.regions))
        ]
    else:
        p = torch.softmax(output, 1).transpose(0, 1).numpy()
        labels = target[:, 0].numpy().astype(int)
        statistics = CaseStatistics.from_probabilities(p, labels, ignore_label=heads.ignore_label)
        expected = calibration_errors(statistics)["ace"][1:]
    assert trainer.logger.get_value(PER_CLASS, 0) == pytest.approx(list(expected), rel=1e-4, nan_ok=True)
    assert trainer.logger.get_value(MEAN, 0) == pytest.approx(np.nanmean(expected), rel=1e-4)

    own = {k: list(v) for k, v in trainer.logger.get_checkpoint().items() if "pseudo" not in k}
    trainer.measure_pseudo_ace = False
    plain = validate(trainer, batch)
    assert measured.keys() == plain.keys()
    assert all(np.array_equal(measured[k], plain[k]) for k in plain)
    assert not trainer.loss._forward_hooks
    logged = trainer.logger.get_checkpoint()
    assert {*logged} == {*own}  # and its own values are dropped, or progress.png would end where they do
    assert logged["mean_fg_dice"] == own["mean_fg_dice"]


def continued(world, epochs: int, change=lambda logging: None, **attributes):
    """A short training, continued from its checkpoint, whose log `change` may edit, up to a number of epochs."""
    trainer = world.trainer("nnUNetTrainerCalib_drawn", "2d")
    trainer.save_every = 1
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint["logging"])
    torch.save(checkpoint, path)
    trainer = world.trainer("nnUNetTrainerCalib_drawn", "2d")
    trainer.num_epochs = epochs
    vars(trainer).update(attributes)
    trainer.load_checkpoint(str(path))
    trainer.run_training()
    return trainer


@pytest.mark.slow
@nnunet
def test_continued_training(world):
    """One value an epoch in the log file, the logger, the checkpoint and the figure, beside nnU-Net's own figure."""
    trainer = continued(world, 3)
    folder = Path(trainer.output_folder)
    logging = torch.load(folder / "checkpoint_final.pth", weights_only=False)["logging"]
    assert {len(values) for values in logging.values()} == {3}
    assert all(0 <= value <= 1 for value in logging[MEAN])
    assert [len(values) for values in logging[PER_CLASS]] == [2, 2, 2]
    lines = [line for line in Path(trainer.log_file).read_text().splitlines() if "Pseudo ACE" in line]
    written = [json.loads(line.split("Pseudo ACE ")[1].replace("nan", "NaN")) for line in lines[-2:]]
    np.testing.assert_allclose(written, np.round(logging[PER_CLASS][1:], 4))
    assert np.shape(logging[LOGITS]) == (3, 4, 2, 5)
    assert np.isfinite(logging[LOGITS])[:, 0].all()  # of the background; few voxels of such small patches are counted
    assert not (np.diff(logging[LOGITS]) < 0).any()
    assert (folder / "progress.png").is_file()
    for name in ("progress_calibration", "progress_logits"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in (folder / f"{name}.svg").read_bytes()


@pytest.mark.slow
@nnunet
def test_checkpoint_from_before(world):
    """A checkpoint without these values is continued: the epochs before have none, and nnU-Net's lists stay equal."""
    logging = continued(
        world, 3, lambda log: [log.pop(key) for key in (MEAN, PER_CLASS, LOGITS)]
    ).logger.get_checkpoint()
    assert {len(values) for values in logging.values()} == {3}
    assert np.isnan(logging[MEAN]).tolist() == [True, False, False]
    assert np.isnan(logging[PER_CLASS][0]).all()
    assert np.isnan(logging[LOGITS][0]).all()
    assert np.isfinite(logging[LOGITS][1:])[:, 0].all()


@pytest.mark.slow
@nnunet
@pytest.mark.parametrize("broken", ["add", "loss", "figure", "figure of logits"])
def test_failures_cost_nothing(world, monkeypatch, broken):
    """Whatever fails, the training ends, the reason is logged once, and every list has a value an epoch."""

    def fail(*arguments, **options):
        raise RuntimeError("out of order")

    if broken == "add":
        monkeypatch.setattr(PatchSums, "add", fail)
    # nnU-Net's log is named by the second, in which another of these trainings may have begun
    shutil.rmtree(world.fold("nnUNetTrainerCalib_short", "2d"), ignore_errors=True)
    trainer = world.trainer("nnUNetTrainerCalib_short", "2d")
    trainer.initialize()
    trainer.num_epochs = 2
    if broken == "loss":
        monkeypatch.setattr(trainer.loss, "register_forward_hook", fail)
    if broken == "figure":
        trainer.draw_pseudo_ace = fail
    if broken == "figure of logits":
        trainer.draw_logits = fail
    trainer.run_training()
    text = Path(trainer.log_file).read_text()
    assert text.count("RuntimeError: out of order") == 1
    assert text.count("The pseudo ACE could not be") == 1
    logging = trainer.logger.get_checkpoint()
    assert {len(values) for values in logging.values()} == {2}
    drawn = "figure" in broken
    assert np.isnan(logging[MEAN]).tolist() == [not drawn] * 2
    assert np.isnan(logging[LOGITS]).all() == (not drawn)
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
