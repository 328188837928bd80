"""Score tables of drawn masks, for the tests of what is made from them."""

import numpy as np

from ultrarefiner.evaluation.metrics import score_case
from ultrarefiner.evaluation.scores import SCORE_COLUMNS, plain
from ultrarefiner.evaluation.summary import compare_methods, summarise_scores
from ultrarefiner.io import read_rows, write_rows

SIDE = 40
METHODS = ("transunet", "grabcut-mask", "grabcut-oracle_box")


def disc(radius, shift=0):
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.hypot(y - 20, x - 20 - shift) < radius


def make_tables(folder, dataset="toy", cases=12, folds=2, methods=METHODS, spacing=None, empty=()):
    """Write score tables of real masks; return their paths.

    Case i belongs to group i // 2. Case 3 is missed by grabcut-mask. Cases in ``empty`` have no
    lesion: transunet predicts one there, the others do not.
    """
    tables = []
    for method in methods:
        rng = np.random.default_rng(METHODS.index(method))
        for fold in range(folds):
            rows = []
            for i in range(fold, cases, folds):
                truth = disc(0 if i in empty else 3 + i)
                prediction = disc(2.6 + i + rng.uniform(-1, 1), shift=METHODS.index(method))
                if (i in empty and method != "transunet") or (i == 3 and method == "grabcut-mask"):
                    prediction = disc(0)
                row = score_case(prediction, truth, spacing)
                row |= {
                    "dataset": dataset,
                    "fold": fold,
                    "case": f"{dataset}__{i:02d}",
                    "group": f"p{i // 2}",
                    "label": "benign" if i % 3 else "malignant",
                    "method": method,
                    "prompt_source": "ground_truth" if "oracle" in method else "coarse",
                    "oracle": "oracle" in method,
                    "selection": "validation",
                    "area_share": float(truth.mean()),
                }
                rows.append({name: plain(row[name]) for name in SCORE_COLUMNS})
            path = folder / dataset / method / f"fold{fold}.csv"
            write_rows(path, SCORE_COLUMNS, rows)
            tables.append(path)
    return tables


def summarise(folder, tables, **options):
    summarise_scores(
        tables, folder / "scores.csv", folder / "summary.csv", **{"bootstrap": 300} | options
    )
    return read_rows(folder / "scores.csv"), read_rows(folder / "summary.csv")


def compare(folder, **options):
    options = {"reference": "transunet", "bootstrap": 300} | options
    compare_methods(folder / "scores.csv", comparisons=folder / "comparisons.csv", **options)
    return read_rows(folder / "comparisons.csv")


def group_bootstrap(values, groups, statistic=np.mean, n=2000, seed=0):
    """Return the 95 % interval of a statistic over samples of whole groups, as the book has it."""
    parts = [
        [v for v, g in zip(values, groups, strict=True) if g == name]
        for name in sorted(set(groups))
    ]
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n):
        drawn = rng.integers(0, len(parts), len(parts))
        samples.append(statistic(np.concatenate([parts[i] for i in drawn])))
    return np.percentile(samples, 2.5), np.percentile(samples, 97.5)


def pick(rows, **cells):
    found = [row for row in rows if all(row[name] == str(cell) for name, cell in cells.items())]
    assert len(found) == 1, f"{cells}: {len(found)} rows"
    return found[0]


def column(rows, name, **cells):
    return np.array(
        [float(row[name]) for row in rows if all(row[k] == str(v) for k, v in cells.items())]
    )
