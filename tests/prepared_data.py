"""Preparing a dataset in one call, and images that no two seeds share."""

import cv2
import numpy as np

from ultrarefiner.datasets.loader import read_cases
from ultrarefiner.datasets.prepare import prepare_dataset


def prepare(name, layout, root, output, include_empty=False):
    """Prepare a dataset into a folder; return {case: row} of its table."""
    prepare_dataset(
        name=name,
        layout=layout,
        root=root,
        include_empty=include_empty,
        cases=output / "cases.csv",
        published_folds=output / "published_folds.csv",
        excluded=output / "excluded.csv",
        npz=output / "npz",
        images=output / "images",
        masks=output / "masks",
    )
    return {row.case: row for row in read_cases(output / "cases.csv")}


def texture(seed, shape=(48, 64)):
    """Return smooth random pixels, uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8), np.uint8)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
