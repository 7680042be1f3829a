"""What makes a notebook cheap: `prepare`, called in its kernel, runs its commands there, without a process for each."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_calib import cli, demo
from nnunet_calib.figures import fold_figures
from tests.worlds.quick_nnunet import list_in_threads, make_quick
from tests.worlds.trained_fold import use_threads

# as a shell reads it: the command, where its messages go, and how many of its last lines are shown
LINE = re.compile(r"nnunet_calib (?P<arguments>.+?)(?: 2> (?P<messages>\S+))?(?: \| tail -n (?P<lines>\d+))?")


def prepare(sizes: Mapping[str, Any]) -> None:
    """Set the sizes of the demo, draw no figures of folds, and run commands in this process, its workers as threads."""
    for name, value in sizes.items():
        setattr(demo, name, value)
    demo.run_commands = run_nnunet
    fold_figures.FIGURES = ()
    use_threads(pytest.MonkeyPatch())
    make_quick()
    list_in_threads()
    shell = get_ipython()  # type: ignore[name-defined]  # noqa: F821
    shell.system = lambda line: run_line(shell.var_expand(line))


def run_line(line: str) -> None:
    """Run a line of a notebook that begins with an exclamation mark."""
    match = LINE.fullmatch(line)
    assert match, line
    shown = io.StringIO()
    with ExitStack() as stack:
        if match["messages"]:
            messages = stack.enter_context(open(match["messages"], "w", encoding="utf-8"))
            stack.enter_context(redirect_stderr(messages))
        if match["lines"]:
            stack.enter_context(redirect_stdout(shown))
        status = cli.main(shlex.split(match["arguments"]))
    if match["lines"]:
        print(*shown.getvalue().splitlines()[-int(match["lines"]) :], sep="\n")
    if status:
        print(f"nnunet_calib: status {status}")


def run_nnunet(commands: Mapping[str, Sequence[str]], logs: Path, environment: Mapping[str, str]) -> None:
    """Run commands of nnU-Net that have no log yet, as `demo_commands.run_commands` does."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import run_training

    os.environ.update(environment)
    for name, (program, dataset, configuration, fold, *options) in commands.items():
        log = logs / f"{name}.txt"
        if log.exists():
            continue
        with open(logs / f"{name}.unfinished.txt", "w", encoding="utf-8") as file, redirect_stdout(file):
            if program == "nnUNetv2_train":
                trainer, plans = (options[options.index(option) + 1] for option in ("-tr", "-p"))
                run_training(dataset, configuration, int(fold), trainer, plans, device=torch.device("cpu"))
            else:
                extract_fingerprints([999], num_processes=1)
                plan_experiments([999])
                preprocess([999], "nnUNetPlans", ("2d",), (1,))
        Path(file.name).replace(log)
        sys.stdout.flush()
