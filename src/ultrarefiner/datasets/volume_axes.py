"""Which axis of a volume its slices lie along: what is declared, and what spacing and sizes say."""

from __future__ import annotations

from ultrarefiner.datasets.volume_files import VolumeGeometry

AXES = {"HWD": (2, 0, 1), "DHW": (0, 1, 2)}
"""By the declared order of an array: its axes along slices, rows (down), columns (to the right)."""

_SAME = 0.01
# A side is the shortest for sure if the others are so many times as long.
_CLEARLY = 1.25


def wrong_axis(geometry: VolumeGeometry, declared: str, check: bool = True) -> str | None:
    """Return why the declared axis is not the one along which the slices of a file lie.

    A scan has square pixels more often than steps as fine as its pixels: where the slices as
    declared would have oblong ones, and cut another way square ones, the declaration is wrong.
    Where spacing tells nothing (npy, equal along all axes) a volume has fewer slices than its
    slices have rows or columns.

    Args:
        geometry: The file.
        declared: Name in `AXES`.
        check: Whether spacing and sizes count; else only slices that are no images are refused.

    Returns:
        One line with the size of the file, both readings and the cure; None if nothing is wrong.
    """
    axis = AXES[declared][0]
    words = f"options.axis is {declared}, so its size {_by(geometry.size)} would be"
    shown = [_shown(geometry, cut) for cut in range(3)]
    if min(size for other, size in enumerate(geometry.size) if other != axis) < 2:
        return f"{geometry.path}: {words} {shown[axis]}, which are no images; set options.axis"
    if not check:
        return None
    right = _better_axis(geometry, axis)
    if right is None:
        return None
    other = next((name for name, axes in AXES.items() if axes[0] == right), None)
    cure = f"set options.axis: {other}" if other else "save it with its slices along the last axis"
    return (
        f"{geometry.path}: {words} {shown[axis]}; cut along axis {right}"
        f"{f' ({other})' if other else ''} they would be {shown[right]}; {cure}, or "
        "options.axis_check: false if the declaration is right"
    )


def _better_axis(geometry: VolumeGeometry, axis: int) -> int | None:
    """Return the axis along which the slices lie by all that is known, if it is another one."""
    spacing, size = geometry.spacing, geometry.size
    if spacing is not None:
        square = [
            cut
            for cut in range(3)
            if equal_steps(*(spacing[other] for other in range(3) if other != cut))
        ]
        if len(square) == 1:
            return None if square == [axis] else square[0]
    for cut, _, _ in AXES.values():
        sides = [size[other] for other in range(3) if other != cut]
        if cut != axis and min(sides) >= _CLEARLY * size[cut]:
            return cut
    return None


def _shown(geometry: VolumeGeometry, axis: int) -> str:
    rows, columns = (other for other in range(3) if other != axis)
    text = (
        f"{geometry.size[axis]} slices of {geometry.size[rows]} x {geometry.size[columns]} pixels"
    )
    if geometry.spacing is None:
        return text
    return f"{text} of {in_mm((geometry.spacing[rows], geometry.spacing[columns]))} mm"


def equal_steps(one: float, other: float) -> bool:
    """Tell whether two lengths are the same but for what a header rounds off."""
    return abs(one - other) <= _SAME * max(one, other)


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def in_mm(spacing: tuple[float, ...]) -> str:
    """Return lengths for a message."""
    return " x ".join(f"{value:.3g}" for value in spacing)
