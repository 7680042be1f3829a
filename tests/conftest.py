"""Settings that must be made before nnU-Net is imported."""

import os

# nnU-Net reads the first at import; one export worker and no augmentation process are enough for a few tiny cases.
os.environ["nnUNet_def_n_proc"] = "1"
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_wandb_enabled"] = "0"
os.environ.setdefault("MPLBACKEND", "agg")
