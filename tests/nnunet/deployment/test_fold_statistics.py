"""Disagreement of folds: by its definition, and as integers."""

import numpy as np
import pytest
from scipy.special import entr

from nnunet_calib.nnunet.deployment.fold_statistics import FoldStatistics
from nnunet_calib.nnunet.deployment.map_values import FOLD_KINDS, MapOptions, compute_maps, describe_maps

FOLDS = np.random.default_rng(0).dirichlet((1, 1, 1), (4, 300, 20, 5)).transpose(0, 4, 1, 2, 3).astype(np.float32)


def statistics(folds, *, regions=False) -> FoldStatistics:
    """Of some folds."""
    found = FoldStatistics(regions=regions, variance=True, entropies=True)
    for p in folds:
        found.add(p)
    return found


@pytest.mark.parametrize("regions", [False, True])
def test_definitions(regions):
    """In float64 all at once, and in slabs."""
    p, found = FOLDS.astype(np.float64), statistics(FOLDS, regions=regions)

    def entropy(p):
        return (entr(p) + entr(1 - p)).mean(-4) if regions else entr(p).sum(-4)

    everything = slice(0, 300)
    np.testing.assert_allclose(found.mean, p.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.variance(everything), p.var(0), atol=1e-6)
    information = entropy(p.mean(0)) - entropy(p).mean(0)
    np.testing.assert_allclose(found.mutual_information(everything)[0], information, atol=2e-6)
    np.testing.assert_array_equal(found.variance(slice(3, 5)), found.variance(everything)[:, 3:5])


def test_folds_that_agree():
    """No disagreement, not even by rounding of large probabilities."""
    found = statistics(FOLDS[[0, 0, 0]])
    assert found.variance(slice(0, 300)).max() < 1e-13
    assert found.mutual_information(slice(0, 300)).max() < 1e-6
    assert found.mutual_information(slice(0, 300)).min() >= 0


def test_integers():
    """Within half a step, on the scale that is described; nothing outside the crop."""
    options = MapOptions(FOLD_KINDS, "uint8")
    crop = (slice(1, 301), slice(0, 20), slice(0, 5))
    folds = statistics(FOLDS)
    maps = compute_maps(folds.mean, options, regions=False, shape=(302, 20, 5), crop=crop, folds=folds)
    about = describe_maps(options, 3, regions=False)
    values = (folds.mutual_information(slice(0, 300)), folds.variance(slice(0, 300)))
    for kind, expected in zip(FOLD_KINDS, values, strict=True):
        step = about[kind]["step"]
        np.testing.assert_allclose(maps[kind][(slice(None), *crop)] * step, expected, atol=step / 2 + 1e-6)
        assert not maps[kind][:, [0, 301]].any()
    assert about["variance"]["value"] == "variance = value / 255 / 4"
