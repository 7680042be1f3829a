"""Everything that touches nnU-Net. No other part of the package imports nnunetv2."""

import re
from importlib import metadata

MINIMUM_NNUNET = (2, 8)


def require_nnunet() -> None:
    """Raise ImportError, in one sentence, where nnU-Net is missing or older than this package can work with.

    Before 2.8 nnU-Net does not know `nnUNet_extTrainer`, and none of the trainers could be found.
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
