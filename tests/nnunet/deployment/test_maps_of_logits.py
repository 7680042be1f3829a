"""The mean over folds that maps are made of, each fold with its temperature."""

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits

from nnunet_calib.nnunet.deployment.maps_of_logits import LOGITS, ExportWithMaps
from nnunet_calib.posthoc.temperature import Temperature

TEMPERATURES = (1.75, 0.7, 3.1)


@pytest.mark.parametrize("as_handed_over", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_mean_of_scaled_logits(as_handed_over, dtype):
    """In float32 whatever nnU-Net summed the tiles in, and of the type that it handed over, which is not changed."""
    rng = np.random.default_rng(0)
    logits = [(12 * rng.standard_normal((3, 5, 6, 7))).astype(dtype) for _ in TEMPERATURES]
    expected = np.mean([z.astype(np.float64) / t for z, t in zip(logits, TEMPERATURES, strict=True)], 0)
    given = [as_handed_over(z.copy()) for z in logits]
    calibrators = tuple(map(Temperature, TEMPERATURES))
    export = ExportWithMaps(export_prediction_from_logits, None, calibrators, LOGITS)  # type: ignore[arg-type]
    mean = export._mean(given, regions=False)
    assert type(mean) is type(given[0])
    np.testing.assert_allclose(np.asarray(mean), expected, rtol=0, atol=5e-6)
    assert np.asarray(mean).dtype == np.float32
    for z, original in zip(given, logits, strict=True):
        np.testing.assert_array_equal(np.asarray(z), original)
