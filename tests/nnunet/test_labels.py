"""What datasets and plans say: heads as nnU-Net names them, datasets it cannot train on, neighbourhoods of a plan."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_calib.nnunet.labels import check_dataset, plan_kernel_size
from nnunet_calib.results.heads import Heads
from tests.worlds.nnunet_world import LABEL_MODES


def test_labels():
    """Classes in the order of their values, whatever the order in dataset.json."""
    heads = Heads.of(LabelManager({"dark": 2, "background": 0, "bright": [1]}, None))
    assert heads == Heads(("0", "1", "2"), ("background", "bright", "dark"), None, None)
    assert heads.background == 0


def test_ignore_label():
    """It is no head."""
    heads = Heads.of(LabelManager({"background": 0, "bright": 1, "ignore": 2}, None))
    assert heads == Heads(("0", "1"), ("background", "bright"), None, 2)
    assert heads.background == 0


@pytest.mark.parametrize("ignore", [{}, {"ignore": 4}])
def test_regions(ignore):
    """Regions in the order of dataset.json, which is that of the channels; one label is a region too, int or list."""
    labels = {"background": 0, "whole": [1, 2, 3], "dark": 2, "core": (3,)} | ignore
    heads = Heads.of(LabelManager(labels, [1, 2, 3]))
    assert heads.keys == ("(1, 2, 3)", "2", "(3,)")
    assert heads.names == ("whole", "dark", "core")
    assert heads.regions == ((1, 2, 3), (2,), (3,))
    assert heads.ignore_label == ignore.get("ignore")
    assert heads.background is None


@pytest.mark.parametrize(("labels", "order"), LABEL_MODES.values(), ids=LABEL_MODES.keys())
def test_as_nnunet_has_them(labels, order):
    """As many heads as the network, keyed as in nnU-Net's summary.json, and of values that JSON can hold."""
    manager = LabelManager(labels, order)
    heads = Heads.of(manager)
    assert len(heads.keys) == len(heads.names) == manager.num_segmentation_heads
    foreground = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    assert [*heads.keys][heads.background is not None :] == [label_or_region_to_key(x) for x in foreground]
    assert json.loads(json.dumps(asdict(heads)))["ignore_label"] == heads.ignore_label


REGIONS = {"background": 0, "any": [1, 2], "dark": 2, "ignore": 3}


@pytest.mark.parametrize("order", [None, [], [1], [1, 2, 3]])
def test_refused_datasets(order):
    """What nnU-Net stops at with an assertion is told in a sentence that says what to add and where."""
    content = {"labels": REGIONS} | ({} if order is None else {"regions_class_order": order})
    with pytest.raises(AssertionError):
        LabelManager(REGIONS, order)
    with pytest.raises(ValueError, match="regions_class_order with 2 labels") as error:
        check_dataset(content)
    text = str(error.value)
    assert f"one for each region (any, dark), found {order}: add it" in text
    assert text.endswith("to dataset.json in nnUNet_raw and nnUNet_preprocessed")


@pytest.mark.parametrize(
    ("labels", "order"), [*LABEL_MODES.values(), ({"background": 0, "bright": [1], "dark": 2}, None)]
)
def test_fine_datasets(labels, order):
    """What nnU-Net accepts passes, also a list of one label, which makes no region."""
    LabelManager(labels, order)
    check_dataset({"labels": labels, "regions_class_order": order})
    if order is None:
        check_dataset({"labels": labels})


@pytest.mark.parametrize(
    ("size", "planned", "expected"),
    [
        (3, [[1, 3, 3], [3, 3, 3]], (1, 3, 3)),
        (5, [[1, 3, 3], [3, 3, 3]], (1, 5, 5)),
        (3, [[3, 3, 3], [3, 3, 3]], (3, 3, 3)),
        (5, [[3, 3], [3, 3]], (5, 5)),
        (1, [[3, 3, 3]], (1, 1, 1)),
        (3, [3, 3], 3),
        (5, 3, 5),
        (3, [], 3),
    ],
)
def test_kernel_size(size, planned, expected):
    """The asked size along the axes that the first stage convolves; where the plan does not tell axes apart, on all."""
    configuration = SimpleNamespace(network_arch_init_kwargs={"kernel_sizes": planned})
    assert plan_kernel_size(size, configuration) == expected


def test_kernel_size_of_other_architectures():
    """Plans without kernel sizes, as transformers have them."""
    assert plan_kernel_size(3, SimpleNamespace(network_arch_init_kwargs={})) == 3


def test_kernel_size_without_an_architecture():
    """Plans that name none: the trainer builds a network of its own."""
    configuration = ConfigurationManager.__new__(ConfigurationManager)
    configuration.configuration = {"patch_size": [24, 24]}
    assert plan_kernel_size(3, configuration) == 3
