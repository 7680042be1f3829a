"""Run or resume the study: plan, preprocess, then train and validate one run after the other.

    nnUNet_raw=... python -m benchmarks.study.run lidc FOLDER
    nnUNet_raw=... python -m benchmarks.study.run lidc FOLDER --only Calib_fold1 ML1ACE_fold1

Everything goes to FOLDER: preprocessed/, results/ (as nnU-Net lays them out), logs/, runs/ (the facts of each finished
run) and STATUS. Killed, it can be started again: finished runs are kept, and an unfinished validation is repeated. A
training goes on from nnU-Net's last checkpoint, of every 50 epochs, with other patches than it would have seen; one
without a checkpoint begins anew with the same seed, so that it is the run it would have been.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from subprocess import STDOUT, run

from benchmarks.study import settings
from benchmarks.study.facts import REPOSITORY, common_settings, plan_facts, provenance, validation_facts
from benchmarks.study.plan import prepare, preprocessed_dataset
from nnunet_calib.io.atomic_files import replaced_when_complete, write_json
from nnunet_calib.results.layout import ModelFolder

TRAIN = "from nnunetv2.run.run_training import run_training_entry as main; main()"


def run_name(method: str, fold: int) -> str:
    """Return the name of a run's files."""
    return f"{method}_fold{fold}"


class Study:
    """A study folder and the environment that nnU-Net's commands get."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.runs = self.folder / "runs"
        for path in (self.runs, self.folder / "logs", self.folder / "preprocessed", self.folder / "results"):
            path.mkdir(parents=True, exist_ok=True)
        os.environ.update(
            nnUNet_preprocessed=str(self.folder / "preprocessed"), nnUNet_results=str(self.folder / "results")
        )

        def first(path: Path, name: str) -> str:
            return os.pathsep.join([str(path), *filter(None, [os.environ.get(name)])])

        self.environment = {
            **os.environ,
            "PYTHONPATH": first(REPOSITORY, "PYTHONPATH"),
            "nnUNet_extTrainer": first(Path(__file__).parent / "trainers", "nnUNet_extTrainer"),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "OMP_NUM_THREADS": str(settings.THREADS),
        }
        self.failed: list[str] = []

    def check_settings(self) -> None:
        """Refuse a folder whose runs had other settings."""
        path, mine = self.folder / "settings.json", json.loads(json.dumps(common_settings()))
        if path.is_file():
            theirs = json.loads(path.read_text(encoding="utf-8"))
            if theirs != mine:
                changed = sorted(key for key in mine | theirs if mine.get(key) != theirs.get(key))
                sys.exit(f"expected the settings of {path}, got others for {', '.join(changed)}: name a new folder")
        write_json(mine, path)

    def model_folder(self, method: str) -> ModelFolder:
        """Return nnU-Net's folder with the folds of a method."""
        return ModelFolder.below(
            self.folder / "results",
            preprocessed_dataset().name,
            settings.PREFIX + method,
            settings.SMALL_PLANS,
            settings.chosen().configuration,
        )

    def fold_folder(self, method: str, fold: int) -> Path:
        """Return nnU-Net's folder of a run."""
        return self.model_folder(method).fold(fold)

    def execute(self, method: str, fold: int) -> bool:
        """Train and validate, or only validate if training is done; return False if nnU-Net failed."""
        folder = self.fold_folder(method, fold)
        trained = (folder / "checkpoint_final.pth").is_file()
        continued = not trained and (folder / "checkpoint_latest.pth").is_file()
        if not trained and not continued and folder.exists():
            shutil.rmtree(folder)
        study = settings.chosen()
        command = [
            sys.executable,
            "-c",
            TRAIN,
            str(study.dataset),
            study.configuration,
            str(fold),
            "-tr",
            settings.PREFIX + method,
            "-p",
            settings.SMALL_PLANS,
            "-device",
            settings.DEVICE,
            *(["--val"] if trained else []),
            *(["--c"] if continued else []),
            *(["--npz"] if study.probabilities else []),
        ]
        begin, started = time.monotonic(), datetime.now()
        with (self.folder / "logs" / f"{run_name(method, fold)}.log").open("a", encoding="utf-8") as log:
            code = run(command, env=self.environment, stdout=log, stderr=STDOUT, check=False).returncode
        if code or not (folder / "validation" / "calibration" / "summary.json").is_file():
            return False
        study_run = {
            "method": method,
            "fold": fold,
            "trainer": settings.PREFIX + method,
            "seed": settings.ALL[method].seed + fold,
            "started": started.isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - begin),
            "validation_only": trained,
            "continued": continued,
        }
        facts = {
            "run": study_run,
            "settings": common_settings(),
            "plan": plan_facts(),
            **validation_facts(folder),
            "provenance": provenance(),
        }
        write_json(facts, self.runs / f"{run_name(method, fold)}.json")
        return True

    def tell(self, running: str) -> None:
        """Write STATUS."""
        lines = [f"{datetime.now().isoformat(timespec='seconds')}  {running}", ""]
        for method, fold in settings.chosen().queue():
            name = run_name(method, fold)
            path = self.runs / f"{name}.json"
            state = "failed, see logs" if name in self.failed else "waiting"
            if path.is_file():
                facts = json.loads(path.read_text(encoding="utf-8"))
                ace = facts["calibration"]["uncalibrated"]["image"]["foreground_mean"]["ace"]
                state = (
                    f"finished, Dice {facts['dice']['foreground_mean']:.4f}, ACE {ace:.4f}, "
                    f"T {facts['temperature']['temperature']:.3f}, {facts['run']['wall_seconds']} s"
                )
            lines.append(f"{name:24} {state}")
        with replaced_when_complete(self.folder / "STATUS") as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def select(names: list[str] | None) -> list[tuple[str, int]]:
    """Return method and fold of the named runs, in this order; without names all of them, in the study's order."""
    queue = {run_name(*of_run): of_run for of_run in settings.chosen().queue()}
    if unknown := sorted({*(names or ())} - {*queue}):
        sys.exit(f"expected --only with runs of the study, got {', '.join(unknown)}: it has {', '.join(queue)}")
    return [queue[name] for name in names or queue]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.run", description=__doc__.split("\n")[0])
    parser.add_argument("study", choices=settings.STUDIES, help="what is trained, see settings.py")
    parser.add_argument("folder", type=Path, help="where everything goes; the same again to go on")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="these runs in this order, as STATUS names them")
    args = parser.parse_args()
    os.environ[settings.CHOSEN] = args.study
    runs = select(args.only)
    if "nnUNet_raw" not in os.environ:
        sys.exit("expected nnUNet_raw to name the folder of the raw data sets, got none: set it")
    study = Study(args.folder)
    with (study.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"expected nobody else at work in {study.folder}, got a running study: wait, or end it")
        study.check_settings()
        prepare(study.environment)
        for method, fold in runs:
            if (study.runs / f"{run_name(method, fold)}.json").is_file():
                continue
            name = run_name(method, fold)
            study.tell(f"running {name}")
            if not study.execute(method, fold):
                study.failed.append(name)
        study.tell("nothing left to run" if not study.failed else f"failed: {', '.join(study.failed)}")
    if study.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
