"""Guards what a study asks of datasets of volumes: nothing without one, and each mode's partner."""

import pytest

from ultrarefiner.study import load_study, volumes

BASE = {
    "run": "v",
    "device": "cpu",
    "datasets": {"sweep": {"layout": "volumes", "phantom": {}}},
    "splits": {"folds": 2, "holdout": 0.2},
    "coarse": {"unet": {"model": "unet", "init": "random"}},
    "prompts": {
        "box": {"kind": "box"},
        "truth": {"kind": "box", "source": "ground_truth"},
    },
    "refiners": {
        "plain": {"family": "medsam2", "weights": "tiny.pth"},
        "memory": {"family": "medsam2", "weights": "tiny.pth", "propagate": "memory"},
        "masks": {"family": "medsam2", "weights": "tiny.pth", "propagate": "masks"},
        "other": {"family": "medsam2", "weights": "other.pth"},
    },
    "compare": {
        "coarse": ["unet"],
        "refine": {
            "plain": ["box", "truth"],
            "memory": ["box", "truth"],
            "masks": ["box"],
            "other": ["box"],
        },
    },
}


def study_with(**datasets):
    refine = {"plain": ["box"]} if "busi" in datasets else BASE["compare"]["refine"]
    compare = BASE["compare"] | {"refine": refine}
    return load_study(BASE | {"datasets": datasets, "compare": compare})


@pytest.fixture(scope="module")
def study():
    return study_with(**BASE["datasets"])


def test_a_dataset_of_images_asks_for_nothing():
    flat = study_with(busi={"phantom": {}})
    assert volumes.report_parts(flat) == {}
    for made in (
        volumes.volume_datasets,
        volumes.mask_volumes,
        volumes.score_tables,
        volumes.report_tables,
        volumes.report_pictures,
        volumes.volume_entries,
        volumes.montage_inputs,
    ):
        assert made(flat) == []


def test_beside_images_only_the_volumes_are_scored_in_3d():
    both = study_with(busi={"phantom": {}}, sweep=BASE["datasets"]["sweep"])
    assert volumes.volume_datasets(both) == ["sweep"]
    assert volumes.mask_volumes(both) and volumes.montage_inputs(both)
    for paths in (volumes.mask_volumes(both), volumes.score_tables(both)):
        assert all(path.startswith("results/v/sweep/") for path in paths)


def test_every_folder_of_masks_of_volumes_is_scored(study):
    shelf = {(one.dataset, one.method.name, one.part.name) for one in study.shelf}
    assert set(volumes.score_tables(study)) == {
        f"results/v/{dataset}/volume_scores/{method}/{part}.csv" for dataset, method, part in shelf
    }
    entries = volumes.volume_entries(study)
    assert {(one["dataset"], one["method"], one["part"]) for one in entries} == shelf


def test_modes_are_those_of_the_refiner(study):
    modes = {one["method"]: one["mode"] for one in volumes.volume_entries(study)}
    assert modes["unet"] == modes["unet-tuned"] == modes["plain-box"] == "slices"
    assert modes["memory-box"] == modes["memory-truth"] == "memory"
    assert modes["masks-box"] == "masks"
    kinds = {one["method"]: one["prompt_kind"] for one in volumes.volume_entries(study)}
    assert kinds["unet"] == "" and kinds["memory-truth"] == "box"


def test_propagation_is_compared_with_the_same_model_and_prompt(study):
    pairs = {(pair["method"], pair["reference"]) for pair in volumes.mode_pairs(study)}
    # Not with the other weights, and never a mask from the truth with one from the coarse model.
    assert pairs == {
        ("memory-box", "plain-box"),
        ("masks-box", "plain-box"),
        ("memory-truth", "plain-truth"),
    }


def test_times_are_those_of_the_jobs_that_make_the_masks(study):
    entries = {(one["method"], one["part"]): one for one in volumes.volume_entries(study)}
    base = "results/v/benchmarks"
    coarse = entries["unet-tuned", "fold0"]["benchmarks"]
    assert coarse == [f"{base}/predict_coarse/sweep/unet/fold0.tsv"]
    for method in ("plain-box", "memory-box"):
        mine = entries[method, "holdout-fold1"]["benchmarks"]
        assert mine[0] == f"{base}/refine_masks/sweep/{method}/holdout-fold1.tsv"
    index = study.index("plain", study.full_view, "sweep", "", study.shelf[0].part)
    encoded = [path for path in entries["plain-box", "fold0"]["benchmarks"] if "embed" in path]
    assert bool(encoded) == (index is not None)
    for path in encoded:
        below = path.removeprefix(f"{base}/embed_images/sweep/").removesuffix(".tsv")
        assert index == f"results/v/sweep/embeddings/{below}.csv"


def test_pictures_know_their_tables(study):
    for entry in volumes.montage_entries(study):
        assert entry["volumes"] == "results/v/sweep/volumes/volumes.csv"
        assert entry["masks"] in volumes.montage_inputs(study)
