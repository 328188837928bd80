"""The studies whose reruns are planned: of every section, of several datasets, of whole volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILES = (
    "tiny.pth",
    "other.pth",
    "branch.pth",
    "vit.npz",
    "other.npz",
    "curation.yaml",
    "curated.yaml",
)
"""Files of the user's own that the studies name, or that a change makes them name."""

DEEP: dict[str, Any] = {
    "run": "deep",
    "device": "cpu",
    "datasets": {"busi": {"phantom": {}, "export": "samed2d"}},
    "splits": {"folds": 2, "run": [0]},
    "coarse": {
        "unet": {
            "model": "dynunet",
            "init": "random",
            "image_size": "auto",
            "nesterov": True,
            "augment": {"rotate": 0.2},
        },
        "vit": {"model": "transunet", "pretrained": "vit.npz"},
        "seg": {
            "model": "sam_unet",
            "init": "sam",
            "pretrained": "tiny.pth",
            "branch": "branch.pth",
        },
    },
    "prompts": {
        "mask": {"kind": "mask"},
        "truth": {"kind": "mask", "source": "ground_truth"},
        "loose": {"kind": "both", "expand": 0.2, "noise": {"box": 0.1, "point": 0.1}},
        "near": {"kind": "both", "crop": {"min_size": 32}},
    },
    "refiners": {
        "grabcut": {"family": "grabcut"},
        "plain": {
            "family": "sam",
            "weights": "tiny.pth",
            "mask_choice": "softmax",
            "jitter": {"copies": 2},
        },
        "small": {
            "family": "mobile_sam",
            "weights": "tiny.pth",
            "mask_choice": "softmax",
            "jitter": {"copies": 2},
        },
        "ultra": {
            "family": "ultrasam",
            "weights": "tiny.pth",
            "mask_choice": "softmax",
            "jitter": {"copies": 2},
        },
        "mixed": {
            "family": "sam",
            "weights": "tiny.pth",
            "finetune": {"data": "hybrid", "copies": 2, "box_noise": {}},
        },
        "crops": {
            "family": "sam",
            "weights": "tiny.pth",
            "finetune": {"data": "crops", "copies": 2, "crop": {}},
        },
        "lora": {
            "family": "sam",
            "weights": "tiny.pth",
            "finetune": {"freeze": ["encoder", "decoder"], "lora": {"last": 1}},
        },
        "adapted": {
            "family": "sam_unet",
            "weights": "tiny.pth",
            "branch": "branch.pth",
            "jitter": {"copies": 2},
            "finetune": {"data": "truth", "augment": {"noise": 0.1}, "cache": "none"},
        },
    },
    "end_to_end": {
        "joint": {
            "coarse": "unet",
            "refiner": "plain",
            "roi": {},
            "fusion": {},
            "train": {"coarse": {}, "decoder": {}, "head": {}},
        }
    },
    "compare": {
        "coarse": ["unet", "vit", "seg"],
        "refine": {
            "grabcut": ["mask", "truth"],
            "plain": ["loose", "near"],
            "small": ["loose"],
            "ultra": ["loose"],
            "mixed": ["loose"],
            "crops": ["loose"],
            "lora": ["loose"],
            "adapted": ["loose"],
        },
        "end_to_end": ["joint"],
        "guarded": ["plain-near", "joint"],
    },
    "points": {"refiners": ["plain"]},
}

WIDE: dict[str, Any] = {
    "run": "wide",
    "device": "cpu",
    "datasets": {
        "busbra": {"phantom": {}},
        "clinic": {
            "root": "data/clinic",
            "layout": "manifest",
            "curation": "curation.yaml",
        },
        "bus": {"phantom": {}, "role": "unseen"},
        "sweep": {
            "phantom": {},
            "layout": "volumes",
            "role": "unseen",
            "export": "medsam2",
        },
    },
    "trainsets": {"both": ["busbra", "clinic"]},
    "splits": {"folds": 5, "run": [0, 1]},
    "coarse": {"unet": {"model": "unet", "init": "random"}},
    "prompts": {"box": {"kind": "box"}},
    "refiners": {
        "tuned": {
            "family": "sam",
            "weights": "tiny.pth",
            "finetune": {"data": "truth", "cache": "none"},
        },
    },
    "compare": {"coarse": ["unet"], "refine": {"tuned": ["box"]}},
}

WHOLE: dict[str, Any] = {
    "run": "whole",
    "device": "cpu",
    "datasets": {"sweep": {"phantom": {}, "layout": "volumes"}},
    "splits": {"folds": 2, "run": [0]},
    "coarse": {"unet": {"model": "unet", "init": "random"}},
    "prompts": {"box": {"kind": "box"}},
    "refiners": {
        "alone": {
            "family": "medsam2",
            "weights": "tiny.pth",
            "mask_choice": "softmax",
            "jitter": {"copies": 2},
        },
        "memory": {"family": "medsam2", "weights": "tiny.pth", "propagate": "memory"},
        "taught": {"family": "medsam2", "weights": "tiny.pth", "finetune": {"data": "truth"}},
    },
    "compare": {
        "coarse": ["unet"],
        "refine": {"alone": ["box"], "memory": ["box"], "taught": ["box"]},
    },
}


def write_files(folder: Path) -> Path:
    """Write what the studies read, but for what they make themselves; return the folder."""
    for name in FILES:
        (folder / name).write_text(f"# {name}\n")
    for name in ("clinic", "copy"):
        root = folder / "data" / name
        root.mkdir(parents=True)
        (root / "manifest.csv").write_text(f"image,mask\n{name}.png,{name}.png\n")
    return folder
