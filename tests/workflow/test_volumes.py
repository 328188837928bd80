"""Guards volumes from end to end: five strategies in two modes, a finetuned memory, scores in 3D."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.sam_fixture import write_tiny_medsam2
from tests.workflow.study import run_snakemake, write_study
from ultrarefiner.datasets.volume_files import read_geometry

pytestmark = pytest.mark.slow

VOLUMES = 6
STRATEGIES = {
    "mask": {"kind": "mask"},
    "point": {"kind": "point", "components": True},
    "box": {"kind": "box", "components": True},
    "mask_point": {"kind": "mask+point"},
    "box_point": {"kind": "box+point", "components": True},
    "oracle_mask": {"kind": "mask", "source": "ground_truth"},
}
TUNE = {
    **{"data": "truth", "epochs": 1, "batch_size": 8, "clip": 2, "prompts": ["box"]},
    **{"cache": "none", "augment": {}, "threads": 1},
}


def refiner(weights, **options):
    return {"family": "medsam2", "weights": str(weights), "seen": [], "image_size": 128, **options}


def study(weights):
    return {
        "run": "volumes",
        "device": "cpu",
        "datasets": {
            "sweep": {"layout": "volumes", "phantom": {"cases": VOLUMES, "size": 48, "seed": 4}}
        },
        "splits": {"folds": 2, "run": [0], "validation": 0.34},
        "coarse": {
            "net": {
                "model": "unet",
                "init": "random",
                "image_size": 64,
                "width": 8,
                "epochs": 50,
                "batch_size": 8,
                "optimizer": "adamw",
                "lr": 0.004,
                "threads": 1,
            }
        },
        "prompts": STRATEGIES,
        "refiners": {
            "slices": refiner(weights),
            "memory": refiner(weights, propagate="memory", fill_holes=True),
            "hybrid": refiner(weights, propagate="memory", reprompt=0.5, key="confident"),
            "chain": refiner(weights, propagate="masks", largest_component=True),
            "tuned": refiner(weights, propagate="memory", finetune=TUNE),
        },
        "compare": {
            "coarse": ["net"],
            "refine": {
                "slices": list(STRATEGIES),
                "memory": list(STRATEGIES),
                "hybrid": ["mask"],
                "chain": ["mask"],
                "tuned": ["box"],
            },
        },
        "report": {"bootstrap": 200, "gallery": 1},
    }


def table(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    write_study(folder, study(write_tiny_medsam2(folder / "medsam2.pt")))
    run_snakemake(folder)
    return folder


def test_volumes_never_straddle_a_split(finished):
    results = finished / "results" / "volumes" / "sweep"
    slices = {row["case"]: row["volume"] for row in table(results / "volumes" / "slices.csv")}
    roles = {}
    for row in table(results / "splits.csv"):
        roles.setdefault((row["fold"], slices[row["case"]]), set()).add(row["role"])
    assert len(roles) == 2 * VOLUMES
    assert all(len(found) == 1 for found in roles.values())
    card = json.loads((results / "models" / "tuned" / "fold0" / "card.json").read_text())
    seen = {slices[case] for case in card["trained_on"] + card["selected_on"]}
    tested = {volume for (fold, volume), role in roles.items() if fold == "0" and "test" in role}
    assert tested and not seen & tested


def test_every_strategy_has_every_mode_and_oracles_stand_apart(finished):
    rows = table(finished / "results" / "volumes" / "report" / "volumes.csv")
    found = {row["method"]: row for row in rows}
    for strategy in STRATEGIES:
        for mode in ("slices", "memory"):
            row = found[f"{mode}-{strategy}"]
            assert row["mode"] == mode
            assert (row["oracle"] == "true") == strategy.startswith("oracle")
            assert int(row["n"]) == VOLUMES // 2
            assert 0 <= float(row["dice_mean"]) <= 1
    assert {"net", "hybrid-mask", "chain-mask", "tuned-box"} <= set(found)
    assert float(found["net"]["dice_mean"]) > 0.5
    # Random weights and a mask prompt of the truth: the mask never comes back as it was.
    assert float(found["memory-oracle_mask"]["dice_mean"]) < 0.95
    assert float(found["slices-oracle_mask"]["dice_mean"]) < 0.95


def test_masks_lie_on_their_volumes(finished):
    results = finished / "results" / "volumes" / "sweep"
    written = sorted((results / "volumes" / "memory-box").glob("*/*.nii.gz"))
    assert len(written) == VOLUMES // 2
    sources = {
        row["volume"]: Path(row["image"]) for row in table(results / "volumes" / "volumes.csv")
    }
    for path in written:
        mask = nibabel.load(path)
        source = read_geometry(finished / sources[path.name.removesuffix(".nii.gz")])
        assert mask.shape == source.size
        # To the bit where the source is NIfTI; a NRRD file has more digits than NIfTI can hold.
        tolerance = 0.0 if ".nii" in source.path.name else 1e-6
        np.testing.assert_allclose(mask.affine, source.affine, rtol=tolerance, atol=0.0)
        assert set(np.unique(mask.dataobj)) <= {0, 1}


def test_the_report_shows_it_all(finished):
    report = finished / "results" / "volumes" / "report"
    page = (report / "report.html").read_text()
    for words in ("Volumes", "memory-box_point", "oracle", "HD95"):
        assert words in page
    pairs = table(report / "volume_comparisons.csv")
    assert any("memory-box" in row.values() for row in pairs)


def test_a_finished_study_plans_nothing(finished):
    assert "Nothing to be done" in run_snakemake(finished, "--dry-run")
