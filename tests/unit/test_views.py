"""Prompt modes share embeddings exactly when they see the same pixels through the same encoder."""

import pytest

from tests.workflow.study import TINY, changed
from ultrarefiner.config import PromptConfig
from ultrarefiner.study import View, load_study

CROP = {"expand": 0.5, "min_size": 32}
PROMPTS = {
    "box": {"kind": "box", "expand": 0.2},
    "point": {"kind": "point"},
    "oracle_box": {"kind": "box", "source": "ground_truth"},
    "box_crop": {"kind": "box", "expand": 0.1, "crop": CROP},
    "mask_crop": {"kind": "mask", "crop": CROP},
    "square_crop": {"kind": "box", "crop": {**CROP, "aspect": 1}},
    "tight_crop": {"kind": "box", "expand": 0.3, "crop": {"expand": 0.2, "min_size": 32}},
    "oracle_crop": {"kind": "point", "source": "ground_truth", "crop": CROP},
    "unused_crop": {"kind": "box", "crop": {"expand": 0.7, "min_size": 32}},
}


def study(*prompts, **changes):
    used = {"compare__refine": {"tiny_sam": list(prompts), "grabcut": ["grab_crop"]}}
    more = {**PROMPTS, "grab_crop": {"kind": "mask", "crop": {"expand": 1.5, "min_size": 32}}}
    return load_study(changed(TINY, prompts=more, **used, **changes))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("box", "full"),
        ("point", "full"),
        ("oracle_box", "full"),
        ("box_crop", "crop-0.5-32-free"),
        ("mask_crop", "crop-0.5-32-free"),
        ("square_crop", "crop-0.5-32-1"),
        ("tight_crop", "crop-0.2-32-free-reach0.3"),
        ("oracle_crop", "crop-0.5-32-free-oracle"),
    ],
)
def test_a_view_is_named_by_what_its_windows_depend_on(prompt, name):
    view = study("box").view_of(prompt)
    oracle = prompt == "oracle_crop"
    assert view == View(name, PromptConfig(**PROMPTS[prompt]).window, oracle)


def test_only_views_that_a_refiner_with_embeddings_uses_are_encoded():
    assert list(study("box", "point").views) == ["full"]
    some = study("box", "box_crop", "mask_crop", "oracle_crop")
    assert list(some.views) == ["full", "crop-0.5-32-free", "crop-0.5-32-free-oracle"]


def test_options_that_change_an_embedding_have_a_shelf_name_of_their_own():
    rows = {
        "plain": {"family": "sam", "weights": "sam_vit_b"},
        "spelled_out": {"family": "sam", "weights": "sam_vit_b", "precision": "float32"},
        "single": {"family": "sam", "weights": "sam_vit_b", "mask_choice": "single"},
        "rounded": {"family": "sam", "weights": "sam_vit_b", "precision": "bfloat16"},
        "other": {"family": "sam", "weights": "sam_vit_l", "precision": "bfloat16"},
        "grabcut": {"family": "grabcut"},
    }
    used = {name: ["box_loose"] for name in ("plain", "spelled_out", "rounded", "other")}
    some = load_study(changed(TINY, refiners=rows, compare__refine=used))
    names = {name: some.embeddings_of(name) for name in rows}
    assert names["plain"] == names["spelled_out"] == names["single"] == "sam_vit_b"
    assert names["rounded"].startswith("sam_vit_b_") and len(names["rounded"]) == 18
    assert names["other"] == names["rounded"].replace("_b_", "_l_")
    assert names["grabcut"] is None
    assert set(some.embedders) == {"sam_vit_b", names["rounded"], names["other"]}
    assert some.embedder_options("sam_vit_b") == {}
    assert some.embedder_options(names["rounded"]) == {"precision": "bfloat16"}


def test_compiling_reaches_the_encoder_and_shares_its_embeddings():
    rows = {
        "plain": {"family": "sam", "weights": "sam_vit_b"},
        "compiled": {"family": "sam", "weights": "sam_vit_b", "compile": True},
    }
    used = {"plain": ["box_loose"], "compiled": ["box_loose"]}
    some = load_study(changed(TINY, refiners=rows, compare__refine=used))
    assert some.embeddings_of("plain") == some.embeddings_of("compiled") == "sam_vit_b"
    assert some.embedder_options("sam_vit_b") == {"compile": True}
    used.pop("compiled")  # a row that nobody asks for has no say
    some = load_study(changed(TINY, refiners=rows, compare__refine=used))
    assert some.embedder_options("sam_vit_b") == {}


def test_one_file_read_as_two_families_has_two_shelf_names():
    rows = {name: {"family": name, "weights": "own/sam.pth"} for name in ("sam", "ultrasam")}
    used = {name: ["box_loose"] for name in rows}
    some = load_study(changed(TINY, refiners=rows, compare__refine=used))
    plain, other = some.embeddings_of("sam"), some.embeddings_of("ultrasam")
    assert other == f"{plain}_ultrasam"
    assert some.embedders == {plain: "sam", other: "ultrasam"}


def test_crops_wait_for_full_images_only_where_there_are_some():
    rows = {name: {"family": "sam", "weights": f"sam_vit_{name}"} for name in ("b", "l")}
    crop = {"kind": "box", "crop": {"expand": 0.3}}
    used = {"b": ["crop"], "l": ["crop", "box_loose"]}
    study = changed(TINY, refiners=rows, prompts__crop=crop, compare__refine=used)
    some = load_study(study)
    assert not some.embeds_full_images("sam_vit_b", "folds")
    assert some.embeds_full_images("sam_vit_l", "unseen")
    some = load_study(changed(study, points={"refiners": ["b"]}))  # analysed in folds alone
    assert some.embeds_full_images("sam_vit_b", "folds")
    assert not some.embeds_full_images("sam_vit_b", "holdout")
    assert not some.embeds_full_images("sam_vit_b", "unseen")


def test_a_preset_names_the_same_shelf_as_its_keys():
    weights = {"family": "ultrasam", "weights": "ultrasam.pth"}
    rows = {
        "preset": {**weights, "compat": "reference"},
        "keys": {**weights, "padding": "before"},
        "ours": weights,
    }
    some = load_study(changed(TINY, refiners=rows, compare__refine={"ours": ["box_loose"]}))
    assert some.embeddings_of("preset") == some.embeddings_of("keys") != some.embeddings_of("ours")
