"""A training on several nodes, as nnU-Net's branch for them runs it: its ranks, its static graph, its signal to stop.

There `local_rank` is 0 once on every node, and `global_rank` 0 once in all. Two processes stand for two nodes.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.measuring.scopes import BOUNDARY_MM
from nnunet_calib.nnunet.training.loss_parts import parts
from nnunet_calib.nnunet.training.loss_terms import LossWithTerm, add_term, replace_cross_entropy
from nnunet_calib.nnunet.training.pseudo_ace import PER_CLASS, PseudoACEMixin
from nnunet_calib.nnunet.training.ranks import is_first_process
from nnunet_calib.nnunet.training.recorded_split import recorded_training
from nnunet_calib.nnunet.validation import hook
from nnunet_calib.results.layout import case_file
from nnunet_calib.results.training_split import read_split
from nnunet_calib.trainers import nnUNetTrainerCalib
from tests.worlds.joined_losses import nnunet_loss
from tests.worlds.made_trainers import make
from tests.worlds.measured_folds import LABELS, Model, made
from tests.worlds.ranks import RANKS, on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]

CASES = ["case.0", "case.1", "case.2"]


def test_first_process():
    """The global rank where there is one; nnU-Net's `local_rank` alone counts all processes."""
    ranks = [
        {"local_rank": 0},
        {"local_rank": 1},
        {"local_rank": 0, "global_rank": 4},
        {"local_rank": 1, "global_rank": 0},
    ]
    assert [is_first_process(SimpleNamespace(**each)) for each in ranks] == [True, False, False, True]


class EpochEnd:
    """The trainer below the mixin."""

    def on_epoch_end(self) -> None:
        """Nothing of interest."""


class Drawing(PseudoACEMixin, EpochEnd):
    """What drawing the pseudo ACE needs of a trainer."""

    def __init__(self, rank: int) -> None:
        self.local_rank, self.global_rank, self.output_folder = 0, rank, "."
        self.label_manager = SimpleNamespace(
            has_regions=False, all_labels=[0, 1], label_dict={"background": 0, "a": 1}, ignore_label=None
        )
        self.logger = SimpleNamespace(get_value=lambda key, step: [[0.5]] if key == PER_CLASS else [0.5])
        self.drawn: list[Path] = []
        self.draw_pseudo_ace = lambda folder, *values: self.drawn.append(folder)


def _node(folder: Path, rank: int) -> dict:
    """Start a training, end an epoch and validate a share of the cases; returns what this node has written."""
    model, told, drawn = Model(folder), [], []
    training, validation = folder / "training", model.calibration(0)
    training.mkdir(exist_ok=True)
    trainer = SimpleNamespace(
        is_ddp=True,
        local_rank=0,
        global_rank=rank,
        current_epoch=0,
        output_folder=str(training),
        do_split=lambda: (["case.9"], CASES),
        print_to_log_file=lambda text, **options: told.append(text),
        logger=SimpleNamespace(log_summary=lambda key, value: told.append(key)),
        draw_figures=drawn.append,
    )
    with recorded_training(trainer):
        trainer.do_split()
    recorded = read_split(training) is not None
    distributed.barrier()

    def validate() -> None:
        _, cases = trainer.do_split()
        for number, case in enumerate(cases):
            if number % RANKS == rank:
                path = case_file(validation, case)
                path.parent.mkdir(parents=True, exist_ok=True)
                made(number).measure(case=case, model=model.identity(0)).save(path)
        distributed.barrier()

    hook._measure_for = lambda trainer: SimpleNamespace(
        calibration_folder=validation, heads=LABELS, model=model.identity(0), boundary_mm=BOUNDARY_MM
    )
    hook.measured_validation(trainer, validate)
    drawing = Drawing(rank)
    drawing.on_epoch_end()
    return {"recorded": recorded, "told": told, "figures": len(drawn), "epochs": len(drawing.drawn)}


def test_one_node_writes(tmp_path):
    """The cases of both nodes are merged once, with the bytes of one process; so with split, log and figures."""
    first, second = on_ranks(partial(_node, tmp_path), tmp_path)
    assert second["told"] == []
    assert (second["figures"], second["epochs"]) == (0, 0)
    assert first["recorded"]
    assert (first["figures"], first["epochs"]) == (1, 1)
    assert [text for text in first["told"] if "not measured" in text or "failed" in text] == []
    assert first["told"][0].startswith("Mean Validation Calibration: ACE")
    assert read_split(tmp_path / "training").validation == tuple(CASES)
    alone = Model(tmp_path / "alone")
    alone.write(0, {case: made(number) for number, case in enumerate(CASES)}, split=read_split(tmp_path / "training"))
    for name in ("summary.json", "temperature.json"):
        merged = Model(tmp_path).calibration(0) / name
        assert merged.read_bytes() == (alone.calibration(0) / name).read_bytes()


class TwoOutputs(nn.Module):
    """A network with deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.full, self.lower = nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(1, 3, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return logits of two resolutions."""
        return [self.full(x), self.lower(x)]


def _loss(name: str) -> nn.Module:
    """Return nnU-Net's loss with a term whose warm-up begins at weight 0, or with SVLS."""
    base = DeepSupervisionWrapper(nnunet_loss(), [1, 1e-6])  # nnU-Net's weights with DDP
    if name == "SVLS":
        return replace_cross_entropy(base, SVLSLoss(), 3)
    term = {"NACL": NACLLoss(), "ML1ACE": ML1ACELoss(), "pooled": ML1ACELoss(pool="batch")}[name]
    return add_term(base, term, 0.0, every_resolution=name != "NACL")


def _weights_after_training(rank: int) -> dict[str, list[list[float]]]:
    """Train three steps with each loss, with a static graph and without; returns the weights at the end."""
    found = {}
    for name in ("NACL", "ML1ACE", "pooled", "SVLS"):
        found[name] = []
        for static in (True, False):
            network = DistributedDataParallel(TwoOutputs(), static_graph=static)
            loss, optimizer = _loss(name), torch.optim.SGD(network.parameters(), 0.1)
            generator = torch.Generator().manual_seed(rank)
            for step in range(3):
                for part in parts(loss):
                    if isinstance(part, LossWithTerm) and name != "SVLS":
                        part.weight = step / 2
                target = torch.randint(0, 3, (2, 1, 8, 8, 8), generator=generator)
                outputs = network(torch.randn(2, 1, 8, 8, 8, generator=generator) + target)
                optimizer.zero_grad()
                loss(outputs, [target, target[..., ::2, ::2, ::2]]).backward()
                optimizer.step()
            found[name].append(torch.cat([p.detach().flatten() for p in network.parameters()]).tolist())
    return found


def test_static_graph(tmp_path):
    """A term that comes in from weight 0 is trained with as without a static graph, and both ranks stay equal."""
    first, second = on_ranks(_weights_after_training, tmp_path)
    begun = torch.cat([p.detach().flatten() for p in TwoOutputs().parameters()]).tolist()
    assert first == second
    for name, (static, plain) in first.items():
        assert static == pytest.approx(plain, rel=1e-6), name
        assert max(abs(a - b) for a, b in zip(static, begun, strict=True)) > 1e-3, name


class Stoppable(nnUNetTrainer):
    """nnU-Net's trainer with the way out of that branch: SIGUSR1 ends the training after the epoch."""

    stopped = False

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch, self.num_epochs = 2, 1, 3
        signal.signal(signal.SIGUSR1, self.exit_training)

    def exit_training(self, *arguments):
        """Remember the signal."""
        self.stopped = True

    def on_epoch_end(self):
        """Save the checkpoint and exit, before the epoch is counted."""
        epoch = self.current_epoch
        super().on_epoch_end()
        if self.stopped:
            self.current_epoch = epoch
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
            sys.exit(0)


class Calibrated(nnUNetTrainerCalib, Stoppable):
    """Ours on top of it."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("moment", ["figure", "measuring"])
def test_stopped_by_signal(world, tmp_path, monkeypatch, moment):
    """The signal comes while we draw or measure: what we write is whole, and the training continues to its end."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    before = signal.getsignal(signal.SIGUSR1)
    try:
        trainer = make(Calibrated, world, "2d")
        draw, log = trainer.draw_pseudo_ace, trainer._log_pseudo_ace

        def signalled(own):
            def call(*arguments):
                os.kill(os.getpid(), signal.SIGUSR1)
                return own(*arguments)

            return call

        if moment == "figure":
            trainer.draw_pseudo_ace = signalled(draw)
        else:
            trainer._log_pseudo_ace = signalled(log)
        with pytest.raises(SystemExit) as ended:
            trainer.run_training()
        assert ended.value.code == 0
        folder, epochs = Path(trainer.output_folder), 2 if moment == "figure" else 1
        checkpoint = torch.load(folder / "checkpoint_latest.pth", weights_only=False)
        assert {len(values) for values in checkpoint["logging"].values()} == {epochs}
        assert (folder / "progress_calibration.png").exists() == (moment == "figure")
        recorded = read_split(folder)
        assert recorded.validation
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []

        trainer = make(Calibrated, world, "2d")
        trainer.load_checkpoint(str(folder / "checkpoint_latest.pth"))
        trainer.run_training()
        logging = torch.load(folder / "checkpoint_final.pth", weights_only=False)["logging"]
        assert {len(values) for values in logging.values()} == {3}
        assert (folder / "progress_calibration.png").read_bytes().startswith(b"\x89PNG")
        assert read_split(folder) == recorded
    finally:
        signal.signal(signal.SIGUSR1, before)
