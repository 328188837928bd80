"""Guards what a study puts on the shelf: which models segment which cases of which dataset."""

from copy import deepcopy

import pytest

from tests.workflow.study import TINY, changed
from ultrarefiner.errors import ConfigError
from ultrarefiner.study import load_study

PHANTOM = {"phantom": {"cases": 14, "size": 64}}
DATASETS = {
    "busi": PHANTOM,
    "busbra": PHANTOM,
    "stu": {**PHANTOM, "role": "unseen"},
}


def study(**changes):
    return load_study(changed(TINY, **{"datasets": deepcopy(DATASETS), **changes}))


def parts(some, dataset, method):
    return [
        one.part.name for one in some.shelf if (one.dataset, one.method.name) == (dataset, method)
    ]


def methods(some, dataset):
    return {one.method.name for one in some.shelf if one.dataset == dataset}


def test_a_dataset_is_tested_by_its_own_folds_and_nothing_else_by_default():
    some = load_study(TINY)
    assert parts(some, "busi", "transunet") == ["fold0", "fold1"]
    assert parts(some, "busi", "transunet-tuned") == ["fold0", "fold1"]
    assert parts(some, "busi", "tiny_sam-box_loose") == ["fold0", "fold1"]
    assert all(not one.method.at for one in some.shelf)


def test_an_unseen_dataset_is_tested_by_the_models_of_all_others():
    some = study()
    joint = ["unseen-fold0", "unseen-fold1", "unseen-mean", "unseen-vote"]
    for trainset in ("busi", "busbra"):
        assert parts(some, "stu", f"transunet@{trainset}") == joint
        assert parts(some, "stu", f"transunet-tuned@{trainset}") == ["unseen-mean"]
        assert parts(some, "stu", f"tiny_sam-box_loose@{trainset}") == ["unseen-mean"]
    assert "stu" not in some.trainsets and parts(some, "stu", "transunet") == []
    assert not any("@" in name for name in methods(some, "busi"))


def test_a_union_is_one_more_set_of_models_for_its_members_and_for_others():
    some = study(trainsets={"all": ["busi", "busbra"]})
    assert some.trainsets == {"busi": ["busi"], "busbra": ["busbra"], "all": ["busbra", "busi"]}
    assert parts(some, "busi", "transunet@all") == ["fold0", "fold1"]
    assert parts(some, "busi", "grabcut-mask@all") == ["fold0", "fold1"]
    assert "transunet@all" in methods(some, "stu")
    assert "transunet@busbra" not in methods(some, "busi")


def test_cross_tests_every_pair():
    some = study(compare__cross=True, trainsets={"all": ["busi", "busbra"]})
    assert parts(some, "busi", "transunet@busbra") == [
        *("unseen-fold0", "unseen-fold1", "unseen-mean", "unseen-vote")
    ]
    assert parts(some, "busi", "transunet@all") == ["fold0", "fold1"]
    assert {one.method.at for one in some.shelf if one.dataset == "busbra"} == {
        *("", "@all", "@busi")
    }


def test_the_hold_out_is_scored_by_each_model_and_by_their_ensembles():
    some = study(splits__holdout=0.2)
    folds = ["fold0", "fold1"]
    held = ["holdout-fold0", "holdout-fold1"]
    assert parts(some, "busi", "transunet") == [*folds, *held, "holdout-mean", "holdout-vote"]
    assert parts(some, "busi", "transunet-tuned") == [*folds, "holdout-mean"]
    assert parts(some, "busi", "grabcut-mask") == [*folds, *held, "holdout-mean"]
    assert not [one for one in some.shelf if one.dataset == "stu" and "holdout" in one.part.name]


def test_one_fold_is_no_ensemble():
    some = study(splits__holdout=0.2, splits__run=[1])
    assert parts(some, "busi", "transunet") == ["fold1", "holdout-fold1"]
    assert parts(some, "busi", "transunet-tuned") == ["fold1", "holdout-fold1"]
    assert parts(some, "stu", "grabcut-mask@busi") == ["unseen-fold1"]


def test_ensembles_are_those_that_are_asked_for():
    some = study(compare__ensembles=[])
    assert parts(some, "stu", "transunet@busi") == ["unseen-fold0", "unseen-fold1"]
    assert parts(some, "stu", "grabcut-mask@busi") == ["unseen-fold0", "unseen-fold1"]
    some = study(compare__ensembles=["vote"])
    assert parts(some, "stu", "transunet@busi")[2:] == ["unseen-vote"]


def test_an_oracle_belongs_to_the_method_that_is_prompted_alike():
    prompts = {
        **TINY["prompts"],
        "tight": {"kind": "box"},
        "oracle_tight": {"kind": "box", "source": "ground_truth"},
    }
    refine = {"tiny_sam": ["tight", "box_loose", "oracle_tight"], "grabcut": ["mask"]}
    some = study(prompts=prompts, compare__refine=refine)
    assert {pair["method"]: pair["oracle_method"] for pair in some.oracle_pairs} == {
        f"tiny_sam-tight{at}": f"tiny_sam-oracle_tight{at}" for at in ("", "@busi", "@busbra")
    }


@pytest.mark.parametrize(
    ("weights", "seen", "layout", "expected"),
    [
        ("ultrasam", None, "busi", "yes"),
        ("ultrasam", None, "stu", "yes"),
        ("sam_vit_b", None, "busi", "no"),
        ("medsam_vit_b", None, "busi", "yes"),
        ("medsam_vit_b", None, "busbra", "no"),
        ("own.pth", None, "busi", "unknown"),
        ("own.pth", [], "busi", "no"),
        ("own.pth", ["busi"], "busi", "yes"),
    ],
)
def test_weights_that_saw_a_dataset_say_so(weights, seen, layout, expected):
    family = "ultrasam" if weights == "ultrasam" else "sam"
    row = {"family": family, "weights": weights} | ({} if seen is None else {"seen": seen})
    some = load_study(
        changed(
            TINY,
            refiners__tiny_sam=row,
            weights={"accept": ["ultrasam"]},
            datasets={"mine": {**PHANTOM, "layout": layout}},
        )
    )
    labels = {one.method.base: some.scored_on(one)["seen"] for one in some.shelf}
    assert labels["tiny_sam-box_loose"] == expected
    assert labels["transunet"] == labels["grabcut-mask"] == "no"


WRONG = [
    ({"trainsets": {"all": ["busi"]}}, ("trainsets.all", "two datasets")),
    ({"trainsets": {"all": ["busi", "busbar"]}}, ("trainsets.all", "Did you mean 'busbra'")),
    ({"trainsets": {"all": ["busi", "stu"]}}, ("trainsets.all", "`unseen`")),
    ({"trainsets": {"busi": ["busi", "busbra"]}}, ("trainsets.busi", "another name")),
    ({"trainsets": {"report": ["busi", "busbra"]}}, ("trainsets", "'report'")),
    ({"datasets": {"busi": {**PHANTOM, "role": "unseen"}}}, ("nothing to train on",)),
    ({"datasets": {"busi": PHANTOM}, "compare__cross": True}, ("compare.cross", "one dataset")),
    (
        {"datasets__busi__shares_images_with": ["udait"]},
        ("datasets.busi.shares_images_with", "udait"),
    ),
    ({"datasets__busi__shares_images_with": ["busi"]}, ("names itself",)),
    ({"datasets__stu__official_test": True}, ("datasets.stu.official_test", "no effect")),
    ({"datasets__stu__folds": "published"}, ("datasets.stu", "no effect")),
    ({"datasets__busi__options": {"axis": 1}}, ("datasets.busi.options", "no options", "axis")),
    ({"points": {"refiners": ["grabcut"]}}, ("points.refiners", "grabcut")),
    ({"points": {"refiners": ["tiny"]}}, ("points.refiners", "Did you mean 'tiny_sam'")),
    ({"points": {"refiners": ["tiny_sam"], "sigmas": [5, 3]}}, ("points.sigmas", "ascending")),
    ({"refiners__grabcut__seen": ["busi"]}, ("refiners.grabcut.seen", "remove the key")),
    ({"refiners__tiny_sam__seen": ["bsui"]}, ("refiners.tiny_sam.seen", "Did you mean 'busi'")),
    (
        {"refiners__tiny_sam": {"family": "sam", "weights": "sam_vit_b", "seen": []}},
        ("refiners.tiny_sam.seen", "on record"),
    ),
    (
        {"prompts__tuned": {"kind": "mask"}, "compare__refine": {"transunet": ["tuned"]},
         "refiners__transunet": {"family": "grabcut"}},
        ("transunet-tuned", "another name"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words[0] for _, words in WRONG])
def test_what_cannot_work_is_told_with_its_key(changes, words):
    with pytest.raises(ConfigError) as error:
        study(**changes)
    for word in words:
        assert word in str(error.value)
