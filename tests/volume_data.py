"""Volume datasets of a few slices: written, prepared and listed in one call."""

import nibabel
import numpy as np

from ultrarefiner.datasets.prepare import prepare_dataset
from ultrarefiner.datasets.volume_records import list_volumes, read_volumes

AXES = {"HWD": (1, 2, 0), "DHW": (0, 1, 2)}
SHAPE = (6, 20, 16)


def drawn(seed=0, shape=SHAPE):
    """Return float32 values in [0, 1] and a bool mask, (D, H, W), the end slices empty."""
    rng = np.random.default_rng(seed)
    values = rng.random(shape, np.float32)
    mask = np.zeros(shape, bool)
    mask[2:-2, 5:11, 3 + seed % 4 : 9] = True
    mask[2, 15:17, 11:14] = True
    return values, mask


def save_nifti(path, array, affine, sform=1, qform=0, units="mm"):
    """Write an array in file order; returns the file's image as it is read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    image.header.set_xyzt_units(units)
    nibabel.save(image, path)
    return nibabel.load(path)


def save_pair(root, name, affine, axis="HWD", seed=0, shape=SHAPE, **codes):
    """Write a NIfTI volume and its labels; returns values and mask, (D, H, W)."""
    values, mask = drawn(seed, shape)
    save_nifti(root / f"volumes/{name}.nii.gz", values.transpose(AXES[axis]), affine, **codes)
    labels = mask.astype(np.uint8).transpose(AXES[axis])
    save_nifti(root / f"labels/{name}.nii.gz", labels, affine, **codes)
    return values, mask


def prepared(root, output, layout="volumes", options=None):
    """Prepare a dataset called `study`; returns its records."""
    tables = ("cases", "published_folds", "excluded")
    prepare_dataset(
        "study",
        layout,
        root,
        False,
        **{name: output / f"{name}.csv" for name in tables},
        **{name: output / name for name in ("npz", "images", "masks")},
        options=options,
    )
    return listed(root, output, layout, options)


def listed(root, output, layout="volumes", options=None):
    """List the volumes of a prepared dataset; returns its records."""
    tables = output / "volumes.csv", output / "slices.csv"
    list_volumes(output / "cases.csv", root, layout, options or {}, *tables)
    return read_volumes(*tables)
