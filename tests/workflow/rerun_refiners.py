"""The rows of the rerun table about refiners and end-to-end models; see `rerun_table.py`."""

from __future__ import annotations

from tests.workflow.rerun_effects import (
    FINETUNED,
    GUARDED,
    JOINT,
    JOINT_PREDICTED,
    POINTS,
    REFINED,
    SCORES,
    SEEDED,
    SHOWN,
    SIMULATED,
    changes,
)

# What refines with the weights as they are is applied, guarded, analysed and trained on as one.
_PLAIN = REFINED | POINTS | GUARDED
_DECODED = {"mask_choice": "union", "temperature": 0.2, "passes": 3}
_JITTERED = {"jitter.copies": 3, "jitter.box": 0.1, "jitter.point": 0.1, "jitter.seed": 1}

REFINERS = [
    *changes(
        "refiners.grabcut.",
        REFINED,
        {"median": 7, "inner": 0.4, "outer": 0.6, "iterations": 4, "size": 128},
        within=("grabcut",),
        family="grabcut",
    ),
    *changes("refiners.plain.", _PLAIN | JOINT, _DECODED, family="sam"),
    *changes("refiners.plain.", _PLAIN, _JITTERED, within=("plain",), family="sam"),
    *changes(
        "refiners.plain.",
        _PLAIN | JOINT,
        {"precision": "bfloat16"},
        makes={"embed_images"},
        family="sam",
    ),
    *changes(
        "refiners.plain.",
        _PLAIN | JOINT,
        {"weights": "other.pth"},
        makes={"embed_images"},
        within=("plain", "joint"),
    ),
    *changes("refiners.plain.", SCORES | POINTS, {"seen": ["busi"]}, within=("plain", "joint")),
    # Refiners of the same weights share embeddings, so a compiled encoder makes those of all.
    *changes(
        "refiners.plain.",
        _PLAIN | {"embed_images", "train_refiner"},
        {"compile": True},
        family="sam",
    ),
    *changes("refiners.ultra.", REFINED, {"family": "sam"}, within=("ultra",)),
    *(
        row
        for place, family in (("small", "mobile_sam"), ("ultra", "ultrasam"))
        for row in (
            *changes(
                f"refiners.{place}.",
                REFINED,
                _DECODED | _JITTERED,
                within=(place,),
                family=family,
            ),
            *changes(
                f"refiners.{place}.",
                REFINED,
                {"precision": "bfloat16"},
                makes={"embed_images"},
                within=(place,),
                family=family,
            ),
            *changes(
                f"refiners.{place}.",
                REFINED | {"embed_images"},
                {"compile": True},
                within=(place, f"_{family}"),
                family=family,
            ),
        )
    ),
    *changes(
        "refiners.ultra.",
        REFINED,
        {"compat": "official", "half_pixel": False, "scale": "longest", "threshold": "before"},
        within=("ultra",),
        family="ultrasam",
    ),
    *changes(
        "refiners.ultra.",
        REFINED,
        {"padding": "before"},
        makes={"embed_images"},
        within=("ultra",),
        family="ultrasam",
    ),
]

_MIXED = "refiners.mixed.finetune."

FINETUNING = [
    *changes(
        _MIXED,
        FINETUNED,
        {
            "data": "predictions",
            "ratio": 0.4,
            "prompts": ["box"],
            "box_noise.exact": 0.2,
            "box_noise.slight_enlarge": 0.3,
            "box_noise.slight_shrink": 0.3,
            "box_noise.heavy_enlarge": 0.15,
            "box_noise.heavy_shrink": 0.15,
            "train": "decoder_and_head",
            "freeze": ["encoder", "head"],
            "curriculum": True,
            "loss.bce": 0.5,
            "loss.dice": 0.5,
            "loss.focal": 0.1,
            "loss.focal_alpha": 0.25,
            "loss.iou": 0.2,
            "loss.change_penalty": 0.1,
            "loss.change": "correct_pixels",
            "hflip": 0.1,
            "epochs": 3,
            "batch_size": 2,
            "optimizer": "sgd",
            "lr": 0.001,
            "weight_decay": 0.1,
            "schedule": "poly",
            "milestones": [1, 2],
            "gamma": 0.1,
            "warmup": 0.1,
            "grad_clip": 2.0,
            "accumulate": 2,
            "precision": "bf16-mixed",
            "validate_every": 2,
            "validation_copies": 3,
            "cache": "none",
        },
        within=("mixed",),
        beside={
            "data": {f"{_MIXED}copies": None},
            "milestones": {f"{_MIXED}schedule": "multistep"},
            "gamma": {f"{_MIXED}schedule": "multistep", f"{_MIXED}milestones": [1]},
            "box_noise.exact": {f"{_MIXED}box_noise.slight_enlarge": 0.3},
            "box_noise.slight_enlarge": {f"{_MIXED}box_noise.exact": 0.2},
            "box_noise.slight_shrink": {f"{_MIXED}box_noise.exact": 0.2},
            "box_noise.heavy_enlarge": {f"{_MIXED}box_noise.exact": 0.0},
            "box_noise.heavy_shrink": {f"{_MIXED}box_noise.exact": 0.0},
        },
    ),
    *changes("refiners.tuned.finetune.", FINETUNED, {"epochs": 3}, within=("tuned",), study="wide"),
    *changes(
        _MIXED,
        SEEDED,
        {
            "simulation.preset": "mild",
            "simulation.bands.perfect": 0.2,
            "simulation.bands.mild": 0.65,
            "simulation.bands.heavy": 0.45,
            "simulation.soft": 0.5,
            "simulation.temperature": [1.0, 4.0],
            "seed": 1,
        },
        within=("mixed",),
        beside={
            "simulation.bands.perfect": {f"{_MIXED}simulation.bands.mild": 0.45},
            "simulation.bands.mild": {f"{_MIXED}simulation.bands.heavy": 0.25},
            "simulation.bands.heavy": {f"{_MIXED}simulation.bands.perfect": 0.0},
        },
    ),
    *changes(_MIXED, SIMULATED, {"copies": 3}, within=("mixed",)),
    *changes(
        _MIXED,
        {"split_inner", "train_inner", "predict_inner", *FINETUNED},
        {"cross_fit.folds": 2},
        within=("mixed", "inner"),
    ),
    *changes(_MIXED, FINETUNED, {"unfreeze_last": 1}, makes={"embed_images"}, within=("mixed",)),
    *changes(
        "refiners.crops.finetune.",
        {"crop_dataset", *FINETUNED},
        {"crop.expand": 0.6, "crop.min_size": 32, "crop.aspect": 1.0},
        within=("crops",),
    ),
    # Its encoder changes, so its embeddings are its own.
    *changes(
        "refiners.lora.finetune.",
        {"embed_images", *FINETUNED},
        {
            "lora.rank": 2,
            "lora.alpha": 2.0,
            "lora.dropout": 0.1,
            "lora.targets": ["proj"],
            "lora.parts": ["encoder", "decoder"],
            "lora.last": 2,
            "scratch": "tiny",
        },
        within=("lora",),
        beside={
            "scratch": {
                "refiners.lora.weights": None,
                "refiners.lora.finetune.train": "full",
                "refiners.lora.finetune.freeze": None,
                "refiners.lora.finetune.lora": None,
            }
        },
    ),
    *changes(
        "refiners.adapted.",
        {"embed_images", *FINETUNED},
        {"resnet": 34, "image_size": 128, "branch": "other.pth", "init": "tiny"},
        within=("adapted",),
        family="sam_unet",
        beside={"init": {"refiners.adapted.weights": None, "refiners.adapted.branch": None}},
    ),
    *changes("refiners.adapted.", REFINED, _JITTERED, within=("adapted",), family="sam_unet"),
    *changes(
        "refiners.adapted.finetune.",
        {"embed_images", *FINETUNED},
        {
            "box_shift": 5.0,
            "masks_per_image": 5,
            "augment.rotate": 20.0,
            "augment.scale": [0.9, 1.1],
            "augment.brightness": 0.1,
            "augment.contrast": 0.1,
            "augment.noise": 0.05,
            "augment.probability": 1.0,
        },
        within=("adapted",),
    ),
    *changes("refiners.adapted.finetune.", SHOWN, {"checkpointing": True}),
    *changes(
        "refiners.tuned.finetune.",
        REFINED,
        {"on": "all"},
        makes={"train_refiner", "make_prompts"},
        within=("tuned",),
        study="wide",
    ),
    *changes(_MIXED, SHOWN, {"threads": 2, "gpu": 2, "nodes": 2, "tensorboard": True}),
]

# Of a study in which every dataset holds whole volumes.
FOLLOWING = [
    *changes(
        "refiners.alone.",
        REFINED,
        _DECODED | _JITTERED,
        within=("alone",),
        study="whole",
        family="medsam2",
    ),
    *changes(
        "refiners.alone.",
        REFINED,
        {"precision": "bfloat16", "image_size": 1024},
        makes={"embed_images"},
        within=("alone",),
        study="whole",
        family="medsam2",
    ),
    # What is trained begins with the same weights, and so shares the embeddings.
    *changes(
        "refiners.alone.",
        {"embed_images", *FINETUNED},
        {"compile": True},
        within=("alone", "taught", "_medsam2"),
        study="whole",
        family="medsam2",
    ),
    *changes(
        "refiners.memory.",
        REFINED,
        {
            "propagate": "masks",
            "resize": "bilinear",
            "key": "middle",
            "objects": 2,
            "reprompt": 0.5,
            "largest_component": True,
            "fill_holes": True,
        },
        within=("memory",),
        study="whole",
        family="medsam2",
    ),
    *changes(
        "refiners.taught.finetune.", FINETUNED, {"clip": 3}, within=("taught",), study="whole"
    ),
]

END_TO_END = [
    *changes(
        "end_to_end.joint.",
        JOINT,
        {
            "coarse": "vit",
            "refiner": "mixed",
            "prompts": ["mask", "box"],
            "style": "gaussian",
            "formula": "moments",
            "sharpen": 10.0,
            "roi.expand": 0.3,
            "roi.min_size": 32,
            "roi.outside": "coarse",
            "fusion.gate": "hybrid",
            "fusion.gamma": 2.0,
            "fusion.minimum": 0.1,
            "fusion.maximum": 0.9,
            "loss.coarse": 1.0,
            "loss.refined": 1.0,
            "loss.size": 128,
            "train.head.lr": 0.001,
            "train.head.from_epoch": 1,
            "train.head.until_epoch": 3,
            "gradient_scale": 0.5,
            "anchor": 0.1,
            "largest_drop": 0.1,
            "hflip": 0.1,
            "epochs": 3,
            "batch_size": 2,
            "optimizer": "sgd",
            "weight_decay": 0.1,
            "schedule": "poly",
            "warmup": 0.1,
            "grad_clip": 2.0,
            "accumulate": 2,
            "precision": "bf16-mixed",
            "validate_every": 2,
            "cache": "none",
            "seed": 1,
        },
        within=("joint",),
        beside={"fusion.gate": {"end_to_end.joint.train.gate": {}}},
    ),
    *changes("end_to_end.joint.", JOINT_PREDICTED, {"flips": True}, within=("joint",)),
    *changes("end_to_end.joint.", SHOWN, {"threads": 2, "gpu": 2, "nodes": 2, "tensorboard": True}),
]
