"""Tables of a point prompt analysis drawn from known laws, for the tests of what is made of them."""

import math

import numpy as np

from ultrarefiner.io import write_rows
from ultrarefiner.refine.points import POINT_COLUMNS

SIGMAS = (5.0, 20.0)
DIAGONAL = 250.0


def dice_at(distance):
    """Return the Dice that the drawn refiner reaches, before noise: it falls with the distance."""
    return 0.9 * math.exp(-distance / 60)


def point_rows(dataset="busi", refiner="sam", cases=12, fold=0, miss=(3,), seen="no", draws=2):
    """Return rows of a table: case i is of patient i // 2, and coarse points 4 i pixels off.

    Points more than 20 pixels from the truth's are outside; cases in ``miss`` have no coarse mask.
    """
    rows = []
    for i in range(fold, cases, 2):
        rng = np.random.default_rng(i)
        spots = [("coarse", "", "", 4.0 * i), ("oracle", "", "", 0.0)]
        spots += [
            ("noise", sigma, draw, sigma * rng.rayleigh())
            for sigma in SIGMAS
            for draw in range(draws)
        ]
        for source, sigma, draw, distance in spots:
            missed = source == "coarse" and i in miss
            distance = DIAGONAL if missed else distance
            dice = 0.0 if missed else dice_at(distance) + rng.uniform(-0.05, 0.05)
            row = {
                "dataset": dataset,
                "fold": fold,
                "case": f"{dataset}__{i:02d}",
                "group": f"patient{i // 2}",
                "label": "benign",
                "refiner": refiner,
                "source": source,
                "sigma": sigma,
                "draw": draw,
                "x": "" if missed else 50.0 + distance,
                "y": "" if missed else 40.0,
                "inside": "true" if distance <= 20 else "false",
                "distance_px": distance,
                "distance_share": distance / DIAGONAL,
                "dice": dice,
                "oracle": "false" if source == "coarse" else "true",
                "seen": seen,
            }
            rows.append(row)
    return rows


def write_points(path, rows):
    write_rows(path, POINT_COLUMNS, rows)
    return path


def write_study(folder):
    """Write the tables of two datasets and two refiners in two folds; return their paths."""
    return [
        write_points(
            folder / dataset / refiner / f"fold{fold}.csv",
            point_rows(dataset, refiner, cases, fold, miss, seen),
        )
        for dataset, cases, miss in (("busi", 12, (3,)), ("stu", 9, ()))
        for refiner, seen in (
            ("sam", "no"),
            ("ultrasam", "yes" if dataset == "busi" else "unknown"),
        )
        for fold in (0, 1)
    ]
