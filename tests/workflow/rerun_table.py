"""Which rules run again when a key of the configuration changes: one row for every key.

`tests/workflow/test_rerun_table.py` compares each row with what Snakemake plans, and refuses a key
without a row. The studies that are changed are those of `rerun_studies.py`; of the rules of a row a
study runs those that it has.
"""

from __future__ import annotations

from tests.workflow.rerun_effects import (
    APPLIED,
    CALIBRATION,
    COARSE,
    COARSE_ALONE,
    COARSE_PREDICTED,
    FINETUNED,
    GUARDED,
    NOTHING,
    PHANTOM,
    PICTURES,
    POINTS,
    PREPARED,
    PROMPTED,
    SCORES,
    SHOWN,
    SPLITS,
    SUMMARY,
    TRAINED,
    VOLUMES,
    changes,
)
from tests.workflow.rerun_refiners import END_TO_END, FINETUNING, FOLLOWING, REFINERS

STUDY = [
    # A folder of its own: nothing of the other run is touched.
    *changes("", NOTHING, {"run": "other"}, makes=PHANTOM),
    *changes("", COARSE, {"device": "cuda"}),
    *changes("", SHOWN, {"rerun_on_code_change": True}),
    *changes("embeddings.", SHOWN, {"folder": "elsewhere", "limit_gb": 3}),
    *changes("weights.", SHOWN, {"accept": ["medsam_vit_b"], "mirrors": ["https://example.org"]}),
    *changes("report.", SHOWN, {"title": "Another"}),
    *changes("report.", PICTURES, {"gallery": 1, "failures": 3}),
    *changes("report.", SUMMARY | {"summarise_points"}, {"bootstrap": 300, "seed": 1}),
    *changes("points.", POINTS, {"sigmas": [5.0], "draws": 2, "seed": 1}),
    *changes(
        "points.",
        POINTS - {"analyse_points"},
        {"refiners": ["small"]},
        makes={"analyse_points"},
    ),
]

DATA = [
    *changes(
        "datasets.busi.",
        PHANTOM,
        {"phantom.cases": 40, "phantom.size": 64, "phantom.odd_cases": False},
    ),
    *changes(
        "datasets.busbra.",
        PHANTOM,
        {"phantom.seed": 1},
        within=("busbra", "both", "overlaps.csv", "unseen"),
        study="wide",
    ),
    *changes(
        "datasets.clinic.",
        PREPARED,
        {
            "root": "data/copy",
            "layout": "pairs",
            "options": {"file": "other.csv"},
            "include_empty": True,
            "curation": "curated.yaml",
        },
        within=("clinic", "both", "overlaps.csv", "unseen"),
        study="wide",
    ),
    *changes(
        "datasets.busbra.",
        SPLITS,
        {"folds": "published"},
        within=("busbra", "both"),
        study="wide",
    ),
    *changes(
        "datasets.clinic.",
        SPLITS,
        {"official_test": True},
        makes=APPLIED - VOLUMES,
        within=("clinic", "both"),
        study="wide",
    ),
    *(
        row
        for form in ("samed2d", "medsam2")
        for row in changes(
            "datasets.sweep.",
            SHOWN,
            {"export": form},
            makes={"export_samed2d", "export_medsam2"},
            study="whole",
        )
    ),
    *changes(
        "datasets.sweep.",
        PHANTOM - {"split_folds"} | {"list_volumes"},
        {"phantom.cases": 5},
        within=("sweep", "both", "overlaps.csv", "unseen"),
        study="wide",
    ),
    # What images datasets share decides on the groups of unions, and on who tests unseen cases.
    *changes(
        "datasets.clinic.",
        {"find_overlaps", "join_splits", "export_medsam2", *COARSE},
        {"shares_images_with": ["bus"]},
        within=("both", "overlaps.csv", "unseen"),
        study="wide",
    ),
    *changes(
        "datasets.bus.",
        {"find_overlaps", "join_splits", "export_medsam2", *COARSE},
        {"role": "train"},
        makes={"split_folds", *TRAINED},
        within=("both", "overlaps.csv", "unseen"),
        study="wide",
    ),
    *changes(
        "datasets.bus.",
        {"summarise_zero_shot", "write_tables", *SHOWN},
        {"modality": "ct"},
        study="wide",
    ),
    *changes(
        "",
        SUMMARY | {"collect_calibration"},
        {"trainsets": {"both": ["busbra", "clinic"], "all": ["busbra", "clinic"]}},
        makes={"join_splits", *TRAINED} - {"embed_images"},
        study="wide",
    ),
    *changes("splits.", SPLITS, {"validation": 0.2, "seed": 1, "group": "image"}),
    *changes("splits.", SPLITS, {"folds": 4, "protocol": "seed", "seed": 1}, study="wide"),
    *changes("splits.", SPLITS, {"holdout": 0.2}, makes=APPLIED - VOLUMES, study="wide"),
    # The models of other folds stay; what all folds decide together is decided again.
    *changes(
        "splits.",
        {"ensemble_masks", "ensemble_refined", "make_prompts", *CALIBRATION, *SCORES},
        {"run": [0, 1, 2]},
        makes=TRAINED - {"ensemble_masks", "ensemble_refined", "measure_calibration"},
        study="wide",
    ),
]

COMPARED = [
    # Another model gives the prompts; the models themselves stay.
    *changes(
        "compare.",
        {"crop_dataset", "embed_images", *FINETUNED, *GUARDED, *POINTS},
        {"coarse": ["vit", "unet", "seg"]},
        makes={"train_inner", "predict_inner", "measure_boxes", "make_prompts"},
    ),
    *changes("compare.refine.", SUMMARY, {"grabcut": ["mask"]}),
    *changes("compare.", SUMMARY, {"guarded": ["joint"]}),
    *changes(
        "compare.",
        SUMMARY | {"collect_calibration"},
        {"end_to_end": []},
        beside={"end_to_end": {"compare.guarded": ["plain-near"]}},
    ),
    *changes(
        "compare.",
        SUMMARY - VOLUMES | {"collect_calibration"},
        {"cross": True},
        makes={"measure_calibration", *APPLIED} - VOLUMES,
        study="wide",
    ),
    *changes("compare.", SUMMARY, {"ensembles": ["mean"]}, study="wide"),
    *changes(
        "guard.",
        GUARDED,
        {"min_iou": 0.5, "area_ratio": [0.5, 2.0], "max_components": 1, "band": 0.5},
        within=("guard",),
    ),
]

COARSE_MODELS = [
    *changes(
        "coarse.unet.",
        COARSE,
        {
            "model": "unet",
            "image_size": 64,
            "size_cap": 256,
            "width": 16,
            "deep_supervision": False,
            "epochs": 3,
            "batch_size": 4,
            "optimizer": "adamw",
            "lr": 0.02,
            "momentum": 0.8,
            "nesterov": False,
            "weight_decay": 0.01,
            "schedule": "multistep",
            "power": 1.0,
            "milestones": [1, 2],
            "gamma": 0.1,
            "loss.ce": 1.0,
            "loss.dice": 1.0,
            "loss.focal": 1.0,
            "loss.focal_alpha": 0.25,
            "augment.hflip": 0.1,
            "augment.vflip": 0.1,
            "augment.rot90": 0.1,
            "augment.rotate": 0.1,
            "augment.rotate_degrees": 10.0,
            "grad_clip": 1.0,
            "accumulate": 2,
            "precision": "bf16-mixed",
            "validate_every": 2,
            "seed": 1,
        },
        beside={
            "model": {"coarse.unet.image_size": 64},
            "optimizer": {"coarse.unet.nesterov": False},
            "schedule": {"coarse.unet.milestones": [1]},
            "milestones": {"coarse.unet.schedule": "multistep"},
            "gamma": {"coarse.unet.schedule": "multistep", "coarse.unet.milestones": [1]},
            "loss.focal_alpha": {"coarse.unet.loss.focal": 1.0},
        },
    ),
    # There the refiner learns from the truth, in no window that the coarse masks make.
    *changes(
        "coarse.unet.",
        COARSE - {"train_refiner", "embed_images"},
        {"epochs": 3},
        study="wide",
    ),
    *changes(
        "coarse.vit.",
        COARSE_ALONE,
        {"init": "random", "pretrained": "other.npz"},
        within=("vit",),
    ),
    *changes("coarse.seg.", COARSE_ALONE, {"resnet": 34, "branch": "other.pth"}, within=("seg",)),
    *changes("coarse.unet.", COARSE_PREDICTED, {"flips": True}),
    *changes(
        "coarse.unet.",
        SHOWN,
        {"workers": 1, "threads": 2, "gpu": 2, "nodes": 2, "tensorboard": True},
    ),
]

PROMPTS = [
    *changes(
        "prompts.loose.",
        PROMPTED,
        {
            "kind": "box+point",
            "source": "ground_truth",
            "expand": 0.3,
            "points": 2,
            "negative": True,
            "components": True,
            "largest": True,
            "noise.box": 0.2,
            "noise.point": 0.2,
            "noise.seed": 1,
            "on_empty": "full_image",
        },
        within=("loose",),
    ),
    *changes(
        "prompts.box.",
        PROMPTED | {"ensemble_refined"},
        {"expand": 0.3},
        within=("box",),
        study="wide",
    ),
    *changes(
        "prompts.near.",
        PROMPTED | GUARDED,
        {"crop.expand": 0.6, "crop.min_size": 48, "crop.aspect": 1.0},
        makes={"embed_images"},
        within=("near",),
    ),
]

TABLE = [
    *STUDY,
    *DATA,
    *COMPARED,
    *COARSE_MODELS,
    *PROMPTS,
    *REFINERS,
    *FINETUNING,
    *FOLLOWING,
    *END_TO_END,
]
