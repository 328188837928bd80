"""Time hd95 against MedPy, pair by pair in one process, and check that the numbers are equal.

Both sides are single-threaded by nature. Run: ``python benchmarks/hd95.py``; it ends with
status 1 below the required ratio.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from medpy.metric.binary import hd95 as medpy_hd95

from ultrarefiner.evaluation.metrics import hd95

HEIGHT, WIDTH = 500, 600
REQUIRED = 8.0


def lesion(rng: np.random.Generator, row: float, column: float, radius: float) -> np.ndarray:
    """Return a lesion-like blob, bool (500, 600): an ellipse with a wavy outline."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    angle = np.arctan2(y - row, x - column)
    waves = sum(
        rng.uniform(0, 0.12 / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
        for order in range(2, 12)
    )
    turn = rng.uniform(0, np.pi)
    stretch = 1 + 0.3 * np.cos(2 * (angle - turn))
    return np.hypot(y - row, x - column) <= radius * stretch * (1 + waves)


def pairs(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield prediction and truth; the truths cover 1 to 20 % of the image."""
    rng = np.random.default_rng(seed)
    for share in np.linspace(0.01, 0.20, count):
        radius = np.sqrt(share * HEIGHT * WIDTH / np.pi)
        row, column = rng.uniform(0.4, 0.6) * HEIGHT, rng.uniform(0.4, 0.6) * WIDTH
        shift = rng.normal(0, 0.1 * radius, 2)
        truth = lesion(rng, row, column, radius)
        yield lesion(rng, row + shift[0], column + shift[1], radius * rng.uniform(0.8, 1.2)), truth


def milliseconds(function: Callable[..., float], *masks: np.ndarray) -> tuple[float, float]:
    """Return the wall time of one call in milliseconds, and its value."""
    start = time.perf_counter()
    value = function(*masks)
    return 1e3 * (time.perf_counter() - start), float(value)


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20, help="pairs of masks")
    parser.add_argument("--repeats", type=int, default=7, help="calls on each pair, median taken")
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks")
    options = parser.parse_args()

    ours, theirs, ratios = [], [], []
    for masks in pairs(options.pairs, options.seed):
        times = []
        # Turn by turn, so that other load on the machine meets both sides alike.
        for _ in range(options.repeats + 1):
            mine, value = milliseconds(hd95, *masks)
            medpy, expected = milliseconds(medpy_hd95, *masks)
            assert abs(value - expected) <= 1e-6, f"hd95 {value} differs from MedPy's {expected}"
            times.append((mine, medpy))
        mine, medpy = np.median(times[1:], axis=0)
        ours.append(mine)
        theirs.append(medpy)
        ratios.append(medpy / mine)
    ratio = float(np.median(ratios))
    print(f"hd95, {options.pairs} pairs of {HEIGHT} x {WIDTH} masks, 1 thread, equal to 1e-6")
    print(f"  MedPy        {np.median(theirs):7.2f} ms (median over pairs)")
    print(f"  ultrarefiner {np.median(ours):7.2f} ms")
    print(f"  ratio        {ratio:7.1f} x median, {min(ratios):.1f} x least; required {REQUIRED} x")
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
