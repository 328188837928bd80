"""Volumes whose slices are images like those that a tiny study was trained on."""

import nibabel
import numpy as np
from scipy.spatial.transform import Rotation

from tests.deploy_fixture import CASES, image_of

STEPS = (0.4, 0.4, 1.25)  # along H, W, D


def grays(run, depth=5):
    """Return a volume (H, W, D) whose slices are images like those in training, one of them black."""
    images = [image_of(run, case)[..., 0] for case in CASES[:depth]]
    height, width = (min(sides) for sides in zip(*(one.shape for one in images), strict=True))
    stack = np.stack([one[:height, :width] for one in images], axis=2)
    stack[:, :, -1] = 0
    stack[0, 0, 0], stack[0, 1, 0] = 0, 255  # the scale of the volume is that of the images
    return stack


def askew():
    """Return an oblique affine with a shift."""
    affine = np.diag([*STEPS, 1.0])
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -15, 10), degrees=True).as_matrix() * STEPS
    affine[:3, 3] = -31.5, 12.25, 40.125
    return affine


def save(path, array, affine=None):
    nibabel.save(nibabel.Nifti1Image(array, askew() if affine is None else affine), path)
    return path


def written(out, name="scan"):
    return np.asarray(nibabel.load(out / "masks" / f"{name}.nii.gz").dataobj)
