"""The split of training and validation cases, recorded by the training itself."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_calib.io.atomic_files import write_json
from nnunet_calib.nnunet.training.ranks import is_first_process
from nnunet_calib.results.training_split import FILE, Split, read_split


@contextmanager
def collected_splits(trainer: Any) -> Iterator[list[Split]]:
    """Collect the splits that a trainer computes while the context lasts."""
    found: list[Split] = []
    own, do_split = vars(trainer).get("do_split"), trainer.do_split

    def collect(*args: Any, **kwargs: Any) -> Any:
        result = do_split(*args, **kwargs)
        with suppress(Exception):  # a trainer may return a form that only nnU-Net reads
            found.append(Split.of(result[0], result[1]))
        return result

    trainer.do_split = collect
    try:
        yield found
    finally:
        if own is None:
            del trainer.do_split
        else:
            trainer.do_split = own


@contextmanager
def recorded_training(trainer: Any) -> Iterator[None]:
    """Record the split that a training starts with; a failure is logged and does not end the training."""
    with collected_splits(trainer) as found:
        yield
    if not is_first_process(trainer):
        return
    file = Path(trainer.output_folder) / FILE
    try:
        _record(found, file, continued=trainer.current_epoch > 0)
    except Exception:
        with suppress(Exception):
            file.unlink(missing_ok=True)  # it may be that of an earlier training
        with suppress(Exception):
            trainer.print_to_log_file(
                f"The cases of this training could not be recorded in {file}; training continues, and nnunet_calib "
                f"will take them from splits_final.json. Reason:\n{traceback.format_exc()}"
            )


def _record(found: list[Split], file: Path, *, continued: bool) -> None:
    earlier = read_split(file.parent) if continued else None
    if not found:  # the trainer chooses its cases in another way
        file.unlink(missing_ok=True)
        return
    split = found[-1]
    if earlier is not None:  # the network has seen the cases of both
        split = Split.of([*earlier.training, *split.training], split.validation)
    write_json(split.as_json(), file)
