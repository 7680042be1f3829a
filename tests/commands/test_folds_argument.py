"""-f means the same in every command that takes it."""

import pytest

from nnunet_calib import cli
from nnunet_calib.commands.arguments import fold

NEEDED = {
    "bake": ["-d", "4", "-c", "2d", "-tr", "T"],
    "compare": ["-d", "4", "-c", "2d", "-tr", "T", "U"],
    "crossval": ["-d", "4", "-c", "2d", "-tr", "T"],
    "demo": [],
    "predict": ["-d", "4", "-c", "2d", "-i", "in", "-o", "out"],
    "report": ["-d", "4", "-c", "2d", "-tr", "T"],
    "thresholds": ["-d", "4", "-c", "2d", "-tr", "T", "--recall", ".9"],
    "validate": ["-d", "4", "-c", "2d", "-tr", "T"],
}


@pytest.mark.parametrize("command", NEEDED)
def test_folds(command, capsys):
    """Numbers, and all; anything else is refused by name, with what to type."""
    args = cli._parser().parse_args([command, *NEEDED[command], "-f", "0", "07", "all"])
    assert args.folds == [0, 7, "all"]
    for wrong in ("x", "-1", "1.5", ""):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, *NEEDED[command], "-f", "0", wrong])
        assert stopped.value.code == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"expected the number of a fold, or all, got {wrong}: name them as in -f 0 1 2" in told


def test_every_command():
    """No command has a way of its own."""
    (commands,) = cli._parser()._subparsers._group_actions
    types = {
        name: action.type for name, c in commands.choices.items() for action in c._actions if action.dest == "folds"
    }
    assert types == dict.fromkeys(NEEDED, fold)
