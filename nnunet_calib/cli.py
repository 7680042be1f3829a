"""The command line: parses arguments, runs a command, tells errors."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from nnunet_calib.commands import (
    bake,
    compare,
    crossval,
    demo,
    evaluate,
    export,
    fit,
    predict,
    report,
    trainers,
    validate,
)
from nnunet_calib.io.processes import Terminated, sigterm_interrupts

# In the order in which they are used. Each imports what it needs when it runs: --help and errors come at once, and an
# import that fails is told in one sentence.
COMMANDS = (demo, trainers, validate, crossval, compare, report, bake, predict, evaluate, fit, export)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_calib",
        description="Calibrated probabilities for nnU-Net v2.",
        epilog="nnunet_calib COMMAND --help explains a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0, or 2 after an error of the user's, which is told in one sentence on stderr; 130 after Ctrl-C, 143 after
        SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of cases and folders may have letters that it cannot show
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        with sigterm_interrupts():
            args.run(args)
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 0
        print(f"nnunet_calib: {_told(error)}", file=sys.stderr)
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
    """What goes on with an interrupted command."""
    kept = {"validate": ", which keeps what is measured", "predict": " with --continue_prediction"}
    return f"type the same command again{kept.get(command, '')}"


def _nobody_reads() -> bool:
    """Whether what reads our output has enough, as `| head`; then what is left of it is dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return True
    return False  # it was a pipe to a process of ours


def _told(error: OSError) -> str:
    """An error of the system as a sentence; those that this package raises are one."""
    if error.errno is None:
        return str(error)
    return (
        f"expected to read or write {error.filename or 'a file'}, could not ({error.strerror}): is it there, and is "
        f"there space and permission?"
    )


if __name__ == "__main__":
    sys.exit(main())
