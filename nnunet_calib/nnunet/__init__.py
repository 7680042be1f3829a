"""The wall to nnU-Net: only this folder and `nnunet_calib.trainers` import nnunetv2."""

import re
from importlib import metadata

MINIMUM_NNUNET = (2, 8)


def require_nnunet() -> None:
    """Raise ImportError, in one sentence, where nnU-Net is missing or older than this package can work with.

    Versions before 2.8 do not know `nnUNet_extTrainer` and would find none of our trainers.
    """
    wanted = ".".join(map(str, MINIMUM_NNUNET))
    try:
        found = metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:
        found = None
    if found is None or tuple(map(int, re.findall(r"\d+", found)[:2])) < MINIMUM_NNUNET:
        raise ImportError(
            f"nnunet-calib needs nnunetv2 {wanted} or newer, found {found or 'none'}: "
            f"run pip install --upgrade 'nnunetv2>={wanted}'"
        )


require_nnunet()
