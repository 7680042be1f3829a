"""The command line: parse arguments, run a command, report errors."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import signal
import sys
from collections.abc import Sequence

import nnunet_calib
from nnunet_calib.commands import (
    bake,
    compare,
    crossval,
    demo,
    doctor,
    evaluate,
    export,
    fit,
    predict,
    report,
    thresholds,
    trainers,
    validate,
)
from nnunet_calib.io.processes import Terminated, sigterm_interrupts

# In the order of use. A command imports what it needs when it runs, so that --help and errors appear at once and a
# failing import is reported in one sentence.
COMMANDS = (
    demo,
    doctor,
    trainers,
    validate,
    crossval,
    compare,
    report,
    thresholds,
    bake,
    predict,
    evaluate,
    fit,
    export,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_calib",
        description="Calibrated probabilities for nnU-Net v2.",
        epilog="nnunet_calib COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet_calib {nnunet_calib.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


# What to type after each command, with the options of the model or of the predictions that were typed before.
_NEXT = {
    "validate": "nnunet_calib crossval {model}, when all folds are measured",
    "crossval": "nnunet_calib report {model} {folds}, or nnunet_calib bake {model} {folds}",
    "report": "open the file in a browser",
    "compare": "open report.html there in a browser",
    "thresholds": "nnunet_calib predict with --masks and this file",
    "bake": "nnUNetv2_predict with -chk and the name of this file",
    "predict": "look at maps/cases.csv, sorted by its expected Dice",
    "evaluate": "nnunet_calib report {predictions}",
    "fit": "nnunet_calib export or predict with --temperature and this file",
    "export": "open the maps in a viewer; maps.json says how to read them",
}


def _following(args: argparse.Namespace) -> str:
    """Return what to type after a command that succeeded; empty for one that says so itself."""
    if args.command == "evaluate" and args.output is not None:
        return "open summary.json there, or its figures"
    named = {"-d": "dataset", "-c": "configuration", "-tr": "trainer", "-p": "plans"}
    given = {flag: getattr(args, name, None) for flag, name in named.items()}
    return _NEXT.get(args.command, "").format(
        model=" ".join(f"{flag} {value}" for flag, value in given.items() if isinstance(value, str)),
        folds=f"-f {' '.join(map(str, getattr(args, 'folds', None) or ()))}",
        predictions=f"-i {getattr(args, 'predictions', None)}",
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; for an unknown one, end with the closest option of the command."""
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        (commands,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        known = [option for action in commands[args.command]._actions for option in action.option_strings]
        meant = difflib.get_close_matches(unknown[0], known, n=1)
        advice = f"did you mean {meant[0]}? " if meant else ""
        print(
            f"nnunet_calib: expected the options of {args.command}, got {' '.join(unknown)}: {advice}nnunet_calib "
            f"{args.command} --help lists them",
            file=sys.stderr,
        )
        sys.exit(2)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 2 after an error, which is reported in one sentence on stderr; 130 after Ctrl-C; 143 after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # names of cases and folders may hold characters that the terminal cannot encode
            stream.reconfigure(errors="backslashreplace")
    args = _arguments(argv)
    try:
        with sigterm_interrupts():
            args.run(args)
        sys.stdout.flush()
        if following := _following(args):
            print(f"next: {following}", file=sys.stderr)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 0
        print(f"nnunet_calib: {_sentence(error)}", file=sys.stderr)
        return 2
    except (ImportError, ValueError) as error:
        print(f"nnunet_calib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(
            f"nnunet_calib: {args.command} was interrupted, and no file is half written: {_again(args.command)}",
            file=sys.stderr,
        )
        return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
    return 0


def _again(command: str) -> str:
    """Return how to continue an interrupted command."""
    kept = {"validate": ", which keeps the measured cases", "predict": " with --continue_prediction"}
    return f"type the same command again{kept.get(command, '')}"


def _output_is_closed() -> bool:
    """Return whether the reader of stdout has closed it, as `| head` does; if so, drop the rest of the output."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return True
    return False  # the broken pipe was to a process of ours


def _sentence(error: OSError) -> str:
    """Return an error of the system as a sentence; errors of this package already are one."""
    if error.errno is None:
        return str(error)
    return (
        f"expected to read or write {error.filename or 'a file'}, could not ({error.strerror}): is it there, and is "
        f"there space and permission?"
    )


if __name__ == "__main__":
    sys.exit(main())
