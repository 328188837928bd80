"""Finetuning of a tiny SAM on a few prepared cases, in seconds."""

from pathlib import Path

from tests.training_fixture import outputs
from ultrarefiner.config import FinetuneConfig
from ultrarefiner.models.export import save_sam
from ultrarefiner.models.scratch import build_scratch


def write_weights(folder, seed=0):
    """Write a tiny SAM as a weights file; return its path."""
    path = Path(folder) / "tiny.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_sam(path, build_scratch("tiny", seed), "sam")
    return path


def quick(**changes):
    """Return a finetuning of two epochs in single precision all through."""
    values = {"epochs": 2, "batch_size": 2, "lr": 1e-3, "cache": "float32", "seed": 3}
    return FinetuneConfig.model_validate({**values, **changes})


SAM_UNET = {"family": "sam_unet", "options": {"init": "tiny", "resnet": 10}}
"""What ``finetune`` takes for a small SAM-UNet around a random encoder."""


def as_published(**changes):
    """Return a finetuning by SAM-UNet's recipe, but of two epochs."""
    values = {
        "data": "truth",
        "masks_per_image": 5,
        "box_shift": 5,
        "optimizer": "adam",
        "schedule": "multistep",
        "milestones": [1],
        "weight_decay": 0.0,
        "warmup": 0.0,
        "grad_clip": None,
        "hflip": 0.0,
        "loss": {
            **{"bce": 0.0, "dice": 20.0, "focal": 1.0, "focal_alpha": 0.25},
            **{"iou": 0.0, "change_penalty": 0.0},
        },
    }
    return quick(**{**values, **changes})


def finetune(config, study, weights, folder, **changes):
    """Finetune on the CPU into a folder; return it."""
    from ultrarefiner.training.refiner import train_refiner

    prepared, splits = study[:2]
    folder = Path(folder)
    values = {
        "family": "sam",
        "weights": None if weights is None else str(weights),
        "options": {"mask_choice": "single"},
        "name": "tuned",
        "trainset": "toy",
        "prepared": [prepared],
        "splits": splits,
        "fit": "fold0",
        "protocol": "nested",
        "failures": [],
        "predictions": [],
        "cards": [],
        "crops": None,
        "shelf": folder.parent / "shelf",
        "limit_gb": 1.0,
        "device": "cpu",
    }
    train_refiner(config, **{**values, **changes}, **outputs(folder))
    return folder
