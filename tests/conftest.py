"""Settings that must be made before nnU-Net is imported, and the fixtures that need it."""

import os
from contextlib import suppress

# nnU-Net reads the first at import; one export worker and no augmentation process are enough for a few tiny cases.
os.environ["nnUNet_def_n_proc"] = "1"
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_wandb_enabled"] = "0"
os.environ.setdefault("MPLBACKEND", "agg")

with suppress(ImportError):  # without nnU-Net, what lies below it can be tested all the same
    from tests.worlds.nnunet_world import (  # noqa: F401
        calls,
        deployed,
        in_threads,
        make_trained,
        make_world,
        pytest_collection_modifyitems,
        train_once,
        trained,
        untrained,
        world,
    )
