"""Time simulated failures against growing kernels and full-size distance transforms, in one run.

The other side is a short implementation of what made the reference slow, by its documented rules:
dilation with elliptical kernels that grow until the area is right (over-segmentation up to radius
19, giant over-segmentation up to half the box), erosion that grows the same way, both on float32
masks (the reference's stored ratios are float32), and soft masks by SciPy's distance transform of
the whole image. Its other kinds count as free. Each slow step is timed by itself, and the means are
weighted by the reference's probabilities.

Ours is the default preset, soft masks included. Both sides run on one thread and are measured in
CPU time on the same masks of 512 x 512 pixels. Run: ``python benchmarks/corrupt.py``; it ends with
status 1 below the required ratio to the reference's published 2.7 masks a CPU second or to the
other side.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from ultrarefiner.config import SimulationConfig
from ultrarefiner.training.corrupt import simulate_failure

SIDE = 512
REQUIRED = 30.0
PUBLISHED = 2.7
# Real probabilities of the reference's kinds that grow kernels, and of a soft mask.
OVER, GIANT, UNDER, EMPTY_BY_EROSION, SOFT = 0.126, 0.074, 0.126, 0.015, 0.8


def lesion(index: int) -> np.ndarray:
    """Return a lesion, bool (512, 512): area log-uniform from 400 to 50000, odd ones wavy."""
    rng = np.random.default_rng(5000 + index)
    row, column = rng.uniform(160, 352, 2)
    area, aspect = np.exp(rng.uniform(np.log(400), np.log(50000))), rng.uniform(0.5, 1)
    turn = rng.uniform(0, np.pi)
    y, x = np.mgrid[:SIDE, :SIDE] - np.array([row, column])[:, None, None]
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    angle = np.arctan2(across, along)
    waves = sum(
        rng.uniform(-0.12, 0.12) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
        for order in range(2, 6)
    )
    radius = np.sqrt(area / (np.pi * aspect))
    return np.hypot(along, across / aspect) <= radius * (1 + (index % 2) * waves)


def ellipse(radius: int) -> np.ndarray:
    """Return an elliptical kernel of side 2 radius + 1."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def grow(mask: np.ndarray, radii: range, ratio: float) -> np.ndarray:
    """Dilate by ever larger kernels until the area is ``ratio`` times that of the mask."""
    grown = mask
    for radius in radii:
        grown = cv2.dilate(mask, ellipse(radius))
        if np.count_nonzero(grown) >= ratio * np.count_nonzero(mask):
            break
    return grown


def shrink(mask: np.ndarray, radii: range, ratio: float) -> np.ndarray:
    """Erode by ever larger kernels until the area is ``ratio`` times that of the mask."""
    shrunk = mask
    for radius in radii:
        shrunk = cv2.erode(mask, ellipse(radius))
        if np.count_nonzero(shrunk) <= ratio * np.count_nonzero(mask):
            break
    return shrunk


def soft(mask: np.ndarray, temperature: float) -> np.ndarray:
    """Soften by distance transforms of the whole image."""
    inside, outside = distance_transform_edt(mask), distance_transform_edt(1 - mask)
    return 1 / (1 + np.exp(-np.clip((inside - outside) / temperature, -500, 500)))


def half_side(mask: np.ndarray) -> int:
    """Return half the longer side of a mask's box, at least 30."""
    rows, columns = np.nonzero(mask)
    return max(int(max(np.ptp(rows), np.ptp(columns)) + 1) // 2, 30)


def seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def growing_kernels(masks: list[np.ndarray], giants: int) -> tuple[float, dict[str, float]]:
    """Return the mean CPU seconds of a mask, and those of each slow step."""
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in ("over", "under", "empty", "soft")}
    for mask in masks:
        times["over"].append(seconds(lambda m=mask: grow(m, range(3, 20), rng.uniform(1.2, 3))))
        times["under"].append(
            seconds(lambda m=mask: shrink(m, range(2, 15), rng.uniform(0.4, 0.9)))
        )
        times["empty"].append(
            seconds(lambda m=mask: shrink(m, range(3, 30), rng.uniform(0.01, 0.05)))
        )
        times["soft"].append(seconds(lambda m=mask: soft(m, rng.uniform(2, 8))))
    # The time rises with the third power of the radius: lesions of all sizes, in even steps of rank.
    order = sorted(masks, key=np.count_nonzero)
    ranks = ((np.arange(giants) + 0.5) / giants * len(order)).astype(int)
    times["giant"] = [
        seconds(lambda m=order[rank]: grow(m, range(5, half_side(m) + 1), rng.uniform(3, 20)))
        for rank in ranks
    ]
    means = {name: float(np.mean(values)) for name, values in times.items()}
    weights = {
        "over": OVER,
        "giant": GIANT,
        "under": UNDER,
        "empty": EMPTY_BY_EROSION,
        "soft": SOFT,
    }
    return sum(weights[name] * means[name] for name in weights), means


def ours(masks: list[np.ndarray], copies: int) -> float:
    """Return the mean CPU seconds of a mask with the default preset, soft masks included."""
    config = SimulationConfig()

    def all_of_them() -> None:
        for index, mask in enumerate(masks):
            for copy in range(copies):
                simulate_failure(mask, config, 0, f"case{index}", copy)

    simulate_failure(masks[0], config, 0, "first", 0)  # what the first call alone costs is left out
    return seconds(all_of_them) / (len(masks) * copies)


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=40, help="true masks")
    parser.add_argument("--copies", type=int, default=10, help="simulated masks of each, our side")
    parser.add_argument("--giants", type=int, default=8, help="giant ones, the other side")
    options = parser.parse_args()

    cv2.setNumThreads(1)
    masks = [lesion(index).astype(np.uint8) for index in range(options.masks)]
    before = ours(masks, options.copies)
    theirs, steps = growing_kernels([mask.astype(np.float32) for mask in masks], options.giants)
    # Before and after, so that other load on the machine meets both sides alike.
    mine = (before + ours(masks, options.copies)) / 2
    print(f"simulated failures of {len(masks)} masks of {SIDE} x {SIDE}, 1 thread, CPU time")
    print(f"  growing kernels {1 / theirs:7.2f} masks/s")
    for name, value in steps.items():
        print(f"    {name:5s} {1e3 * value:9.1f} ms")
    print(f"  ultrarefiner    {1 / mine:7.1f} masks/s, {1e3 * mine:.2f} ms")
    published, ratio = 1 / (mine * PUBLISHED), theirs / mine
    print(
        f"  ratio {ratio:.0f} x; to the published {PUBLISHED} masks/s {published:.0f} x; ", end=""
    )
    print(f"required {REQUIRED:.0f} x of both")
    return 0 if min(ratio, published) >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
