"""A small prepared dataset with its splits, and a coarse config that trains in a second."""

from pathlib import Path

import numpy as np

from ultrarefiner.config import CoarseConfig
from ultrarefiner.io import write_rows

ROLES = {"train": 5, "validation": 2, "test": 3}


def write_case(prepared, case, seed):
    """Write one case: speckle with a dark ellipse, of a size and shape of its own."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(50, 90)), int(rng.integers(60, 120))
    y, x = np.mgrid[:height, :width]
    cy, cx = height * rng.uniform(0.4, 0.6), width * rng.uniform(0.4, 0.6)
    label = ((y - cy) / (height * 0.22)) ** 2 + ((x - cx) / (width * 0.2)) ** 2 <= 1
    gray = np.where(label, 60, 160) + rng.normal(0, 20, (height, width))
    image = np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    (prepared / "npz").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        prepared / "npz" / f"{case}.npz",
        image=image,
        label=label.astype(np.uint8),
        original_size=np.array([height, width]),
    )


def write_splits(path, roles, protocol="nested", fold=0):
    """Write a splits.csv of one fold; under the protocol `seed` validation and test are one."""
    rows = [
        {"case": case, "group": case, "fold": fold, "role": role}
        for role, cases in roles.items()
        for case in cases
        if protocol == "nested" or role != "validation"
    ]
    if protocol == "seed":
        rows += [{**row, "role": "validation"} for row in rows if row["role"] == "test"]
    write_rows(path, ["case", "group", "fold", "role"], rows)


def make_study(folder, protocol="nested", dataset="toy"):
    """Write prepared cases and splits; return (prepared, splits, roles)."""
    folder = Path(folder)
    roles, number = {}, 0
    for role, count in ROLES.items():
        roles[role] = [f"{dataset}__{number + i}" for i in range(count)]
        number += count
    for seed, case in enumerate(case for cases in roles.values() for case in cases):
        write_case(folder / "prepared", case, seed)
    cases = [case for some in roles.values() for case in some]
    table = [{"case": case, "image": f"{case}.png"} for case in cases]
    write_rows(folder / "prepared" / "cases.csv", ["case", "image"], table)
    write_splits(folder / "splits.csv", roles, protocol)
    return folder / "prepared", folder / "splits.csv", roles


def tiny_config(**changes):
    """Return a config of a tiny TransUNet at 32 pixels, trained for three epochs."""
    values = {
        "model": "transunet_tiny",
        "image_size": 32,
        "init": "random",
        "epochs": 3,
        "batch_size": 2,
        "lr": 0.05,
        "augment": {"rotate": 0.5},
        "seed": 7,
    }
    return CoarseConfig.model_validate({**values, **changes})


def outputs(folder):
    """Return the paths of a model's declared files, as keyword arguments of train_coarse."""
    folder = Path(folder)
    return {
        "model": folder / "model.safetensors",
        "card": folder / "card.json",
        "history": folder / "history.csv",
    }


def train(config, study, folder, protocol="nested", name="tiny", fold=0):
    """Train on the CPU into a folder; return it."""
    from ultrarefiner.training.coarse import train_coarse

    prepared, splits = study[:2]
    train_coarse(
        config,
        name=name,
        trainset="toy",
        prepared=prepared,
        splits=splits,
        fold=fold,
        protocol=protocol,
        device="cpu",
        **outputs(folder),
    )
    return Path(folder)
