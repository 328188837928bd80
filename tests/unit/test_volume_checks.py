"""Guards that no study tears volumes, and that what needs whole volumes says so without them."""

import pytest

from tests.workflow.study import TINY, changed
from ultrarefiner.errors import ConfigError
from ultrarefiner.study import load_study

SWEEP = {"layout": "volumes", "phantom": {}}
FLAT = {"phantom": {}}
CLIP = {"family": "medsam2", "weights": "tiny.pth", "finetune": {"data": "truth", "clip": 4}}


def study(datasets, refiner=None, **changes):
    """Return a study of datasets, with one refiner."""
    return load_study(
        changed(
            TINY,
            **{
                "datasets": datasets,
                "refiners": {"one": refiner or {**CLIP, "finetune": None}},
                "compare__refine": {"one": ["box_loose"]},
                **changes,
            },
        )
    )


@pytest.mark.parametrize(
    ("key", "value", "cure"),
    [
        ("protocol", "seed", "protocol: nested"),
        ("group", "image", "group: auto"),
        ("group", "duplicates", "group: auto"),
    ],
)
def test_folds_that_tear_volumes_are_refused(key, value, cure):
    words = (
        rf"splits\.{key}: {value} .*would part the slices of a volume of dataset 'sweep'.*{cure}"
    )
    change = {f"splits__{key}": value}
    with pytest.raises(ConfigError, match=words):
        study({"busi": FLAT, "sweep": SWEEP}, **change)
    # Images may be split so, and volumes that are in no fold.
    assert study({"busi": FLAT, "sweep": {**SWEEP, "role": "unseen"}}, **change).methods
    assert study({"abus": FLAT}, **change).methods


@pytest.mark.parametrize("group", ["auto", "patient"])
def test_folds_that_keep_volumes_together_are_taken(group):
    assert study({"sweep": SWEEP}, splits__group=group).methods


def test_only_whole_volumes_are_exported_as_such():
    words = r"datasets\.abus\.export: medsam2 writes whole volumes.*keep all slices"
    with pytest.raises(ConfigError, match=words):
        study({"abus": {**FLAT, "export": "medsam2"}})
    whole = {**FLAT, "options": {"slices": "all"}, "export": "medsam2"}
    assert study({"abus": whole}).methods


def test_only_a_memory_is_trained_on_clips():
    row = {**CLIP, "family": "sam"}
    words = r"refiners\.one\.finetune\.clip: family sam has no memory.*this has: medsam2"
    with pytest.raises(ConfigError, match=words):
        study({"sweep": SWEEP}, row)
    assert study({"busi": FLAT}, {**row, "finetune": {"data": "truth", "clip": 1}}).methods


def test_clips_are_cut_from_whole_volumes_alone():
    assert study({"sweep": SWEEP}, CLIP).methods
    assert study({"sweep": SWEEP, "busi": {**FLAT, "role": "unseen"}}, CLIP).methods
    with pytest.raises(ConfigError, match=r"one\.finetune\.clip: dataset 'busi', on which it"):
        study({"sweep": SWEEP, "busi": FLAT}, CLIP)


def test_a_dataset_that_cannot_be_read_is_told_once():
    for row, words in (
        ({"layout": "volume", "phantom": {}}, "unknown dataset layout 'volume'"),
        ({**SWEEP, "options": {"axis": "WHD"}}, r"datasets\.sweep\.options: "),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            study({"sweep": {**row, "export": "medsam2"}}, CLIP, splits__group="image")
        assert "whole" not in str(caught.value)
