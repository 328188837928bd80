"""Volumes to predict: their slices as training saw those of its own volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ultrarefiner.config import StudyConfig
from ultrarefiner.datasets import DATASETS
from ultrarefiner.datasets.abus import AbusOptions
from ultrarefiner.datasets.nifti import NiftiOptions, slice_image
from ultrarefiner.datasets.unet_volumes import UnetVolumeOptions, gray_limits
from ultrarefiner.datasets.volume_axes import AXES, wrong_axis
from ultrarefiner.datasets.volume_files import (
    VolumeGeometry,
    read_geometry,
    read_values,
    write_like,
)
from ultrarefiner.datasets.volume_records import slice_order
from ultrarefiner.datasets.volumes import Volume, is_volume, read_volume, to_gray
from ultrarefiner.deploy.contents import Bundle, VolumeReading
from ultrarefiner.errors import ConfigError, DatasetError

_PLAIN = "volumes"
_KEYS = {
    _PLAIN: {"axis", "axis_check", "normalise", "percentiles", "window"},
    "abus": {"axis", "percentiles"},
    "nifti": {"axis", "window", "scale"},
}
"""Layouts of volumes, and what of their options says how a new volume is read."""


@dataclass(frozen=True, eq=False)
class Slices:
    """A volume in memory, slice by slice.

    Attributes:
        geometry: What the file says of itself.
        order: Its axes along slices, rows and columns.
        note: What became gray 0 and 255.
    """

    geometry: VolumeGeometry
    order: tuple[int, int, int]
    note: str
    _cut: Callable[[int], np.ndarray] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns."""
        slices, rows, columns = (self.geometry.size[axis] for axis in self.order)
        return slices, rows, columns

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Mm from slice to slice, and height and width of a pixel; None: not known."""
        if self.geometry.spacing is None:
            return None
        slices, rows, columns = (self.geometry.spacing[axis] for axis in self.order)
        return slices, rows, columns

    def image(self, index: int) -> np.ndarray:
        """Return a slice, uint8 (H, W, 3) RGB."""
        return np.repeat(self._cut(index)[..., None], 3, axis=2)

    def write_mask(self, mask: np.ndarray, path: Path) -> None:
        """Write a mask, bool (slices, H, W), as NIfTI on the very grid of the file."""
        in_file_order = np.transpose(mask, np.argsort(self.order))
        write_like(self.geometry.path, in_file_order, self.geometry.affine, path)


def readings_of(config: StudyConfig, datasets: Sequence[str]) -> list[VolumeReading]:
    """Return how the volumes of some datasets are read, each way once."""
    found: list[VolumeReading] = []
    for name in datasets:
        row = config.datasets[name]
        layout = row.layout or name
        if layout in _KEYS:
            options = DATASETS[layout].parse_options(row.options)
            kept = options.model_dump(mode="json", include=_KEYS[layout])
            reading = VolumeReading(layout=layout, options=kept)
            found += [] if reading in found else [reading]
    return found


def choose_reading(bundle: Bundle, axis: str | None, check: bool = True) -> VolumeReading:
    """Return how new volumes are read: as those that a method was trained on, unless told.

    Args:
        bundle: The method. One that saw no volumes takes them as layout ``volumes`` does by itself.
        axis: Order of their axes, ``HWD`` or ``DHW``: they are then read as layout ``volumes`` does.
        check: Refuse a volume whose spacing or sizes speak against the axis.

    Raises:
        ConfigError: There is no such order; or the method was trained on volumes that are read in several ways; or the axis of
            its layout is not checked anyway.
    """
    known = bundle.volumes
    if axis is not None and axis not in AXES:
        raise ConfigError(f"axis {axis} is not one of {', '.join(AXES)}")
    if axis is not None:
        known = [one for one in known if one.layout == _PLAIN]
    if len(known) > 1:
        ways = "; ".join(f"{one.layout} {one.options}" for one in known)
        raise ConfigError(
            f"{bundle.method} was trained on volumes that are read in {len(known)} ways ({ways}); "
            "take a method that was trained on one of these datasets"
        )
    one = known[0] if known else VolumeReading(layout=_PLAIN, options={})
    if one.layout != _PLAIN:
        if not check:
            raise ConfigError(
                f"--no-axis-check: has no effect, layout {one.layout} of {bundle.method} says the "
                "axis; leave it out, or give --axis"
            )
        return one
    options = dict(one.options)
    if axis is not None:
        options["axis"] = axis
    if not check:
        options["axis_check"] = False
    whole = UnetVolumeOptions.model_validate(options)
    kept = whole.model_dump(mode="json", include=_KEYS[_PLAIN])
    return VolumeReading(layout=_PLAIN, options=kept)


def open_volume(path: Path, reading: VolumeReading) -> Slices:
    """Read a volume.

    Raises:
        DatasetError: It is absent, damaged, no volume, or its axes are not those that are declared.
    """
    geometry = read_geometry(path)
    if reading.layout == "abus":
        return _as_abus(geometry, AbusOptions.model_validate(reading.options))
    if reading.layout == "nifti":
        return _as_nifti(geometry, NiftiOptions.model_validate(reading.options))
    return _as_unet(geometry, UnetVolumeOptions.model_validate(reading.options))


def _as_unet(geometry: VolumeGeometry, options: UnetVolumeOptions) -> Slices:
    if problem := wrong_axis(geometry, options.axis, options.axis_check):
        raise DatasetError(
            f"{problem} (here: --axis for options.axis, --no-axis-check for axis_check: false)"
        )
    volume = Volume(geometry.header, read_values(geometry.path).T, options.percentiles)
    low, high = gray_limits(volume, options)

    def cut(index: int) -> np.ndarray:
        return to_gray(volume.cut(options.order[0], index).T, low, high)

    return Slices(geometry, options.order, f"volume's {low:g} to {high:g} as 0 to 255", cut)


def _as_abus(geometry: VolumeGeometry, options: AbusOptions) -> Slices:
    volume = _whole(geometry, options.percentiles)
    low, high = volume.scale
    return Slices(
        geometry,
        slice_order(options.axis, rows_first=False),
        f"volume's {low:g} to {high:g} as 0 to 255",
        lambda index: volume.image(options.axis, index).pixels,
    )


def _as_nifti(geometry: VolumeGeometry, options: NiftiOptions) -> Slices:
    volume = _whole(geometry, (0.0, 100.0))
    low, high = volume.scale
    of_volume = f"volume's {low:g} to {high:g} as 0 to 255"
    return Slices(
        geometry,
        slice_order(options.axis, rows_first=False),
        "each slice's values as 0 to 255" if options.scale == "slice" else of_volume,
        lambda index: slice_image(volume, options.axis, index, options).pixels,
    )


def _whole(geometry: VolumeGeometry, percentiles: tuple[float, float]) -> Volume:
    """Read values as those layouts do; they take no npy."""
    if is_volume(geometry.path):
        return read_volume(geometry.path, percentiles)
    return Volume(geometry.header, read_values(geometry.path).T, percentiles)
