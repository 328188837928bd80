"""End-to-end training of tiny models on a few prepared cases, in seconds."""

from pathlib import Path

from tests.training_fixture import outputs
from ultrarefiner.config import EndToEndConfig

TRAIN = {part: {"lr": 1e-3} for part in ("coarse", "prompt_encoder", "decoder", "head")}


def joint(**changes):
    """Return an end-to-end training of two epochs in single precision all through."""
    values = {
        "coarse": "tiny",
        "refiner": "tuned",
        "train": TRAIN,
        "loss": {"size": 64},
        "epochs": 2,
        "batch_size": 2,
        "cache": "float32",
        "largest_drop": None,
        "seed": 3,
    }
    return EndToEndConfig.model_validate({**values, **changes})


def train_joint(config, study, coarse, weights, folder, **changes):
    """Train on the CPU into a folder, from a coarse model's folder and a weights file; return it."""
    from ultrarefiner.training.end_to_end import train_end_to_end

    prepared, splits = study[:2]
    folder, paths = Path(folder), outputs(coarse)
    values = {
        "name": "joint",
        "trainset": "toy",
        "prepared": [prepared],
        "splits": splits,
        "fold": 0,
        "protocol": "nested",
        "coarse_model": paths["model"],
        "coarse_card": paths["card"],
        "family": "sam",
        "weights": str(weights),
        "refiner_card": None,
        "options": {"mask_choice": "softmax"},
        "shelf": folder.parent / "shelf",
        "limit_gb": 1.0,
        "device": "cpu",
        "refiner": folder / "refiner.safetensors",
    }
    train_end_to_end(config, **{**values, **changes}, **outputs(folder))
    return folder
