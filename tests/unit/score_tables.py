"""Score tables of drawn masks, for the tests of what is made from them."""

import numpy as np

from ultrarefiner.datasets.parts import parse_part
from ultrarefiner.evaluation.comparisons import base_of, compare_methods
from ultrarefiner.evaluation.metrics import score_case
from ultrarefiner.evaluation.scores import SCORE_COLUMNS, plain
from ultrarefiner.evaluation.summary import summarise_scores
from ultrarefiner.io import item_seed, read_rows, write_rows

SIDE = 40
METHODS = ("transunet", "grabcut-mask", "grabcut-oracle_box")


def disc(radius, shift=0):
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.hypot(y - 20, x - 20 - shift) < radius


def write_part(folder, dataset, part, cases, method, spacing=None, empty=()):
    """Write the score table of a method on a part; return its path."""
    where, base = parse_part(part), base_of(method)
    place = METHODS.index(base)
    rng = np.random.default_rng(item_seed(method, part))
    rows = []
    for i in cases:
        truth = disc(0 if i in empty else 3 + i % 20)
        prediction = disc(2.6 + i % 20 + rng.uniform(-1, 1), shift=2 - place)
        if (i in empty and base != "transunet") or (i == 3 and base == "grabcut-mask"):
            prediction = disc(0)
        known = spacing is not None and i % 5 != 4
        row = score_case(prediction, truth, spacing if known else None)
        row |= {
            "dataset": dataset,
            "evaluation": where.evaluation,
            "member": where.member,
            "fold": where.fold,
            "case": f"{dataset}__{i:02d}",
            "group": f"p{i // 2}",
            "label": "benign" if i % 3 else "malignant",
            "method": method,
            "trained_on": method.partition("@")[2] or dataset,
            "prompt_source": prompt_source(method),
            "oracle": "oracle" in method,
            "selection": "validation",
            "seen": "no" if base == "transunet" else "yes",
            "area_share": float(truth.mean()),
            "overlay": ("none", "none", "calipers", "calipers+text")[i % 4],
            "border": "yes" if i % 4 == 1 else "no",
            "look_alike": "yes" if i in (5, 6) else "no",
            "spacing": "known" if known else "unknown",
        }
        rows.append({name: plain(row[name]) for name in SCORE_COLUMNS})
    path = folder / dataset / method / f"{part}.csv"
    write_rows(path, SCORE_COLUMNS, rows)
    return path


def prompt_source(method):
    if "oracle" in method:
        return "ground_truth"
    return "none" if base_of(method) == "transunet" else "coarse"


def make_tables(folder, dataset="toy", cases=12, folds=2, methods=METHODS, spacing=None, empty=()):
    """Write score tables of real masks, the folds' test cases; return their paths.

    Case i belongs to group i // 2. Case 3 is missed by grabcut-mask. Cases in ``empty`` have no
    lesion: transunet predicts one there, the others do not. Where the ``spacing`` is known, it is
    not in one case of five.
    """
    return [
        write_part(folder, dataset, f"fold{k}", range(k, cases, folds), method, spacing, empty)
        for method in methods
        for k in range(folds)
    ]


def make_held_back(
    folder,
    evaluation="holdout",
    dataset="toy",
    cases=range(20, 30),
    members=("fold0", "fold1", "mean", "vote"),
    **options,
):
    """Write score tables of cases that belong to no fold; return their paths."""
    methods = options.pop("methods", METHODS)
    return [
        write_part(folder, dataset, f"{evaluation}-{member}", cases, method, **options)
        for method in methods
        for member in members
    ]


def summarise(folder, tables, **options):
    summarise_scores(
        tables, folder / "scores.csv", folder / "summary.csv", **{"bootstrap": 300} | options
    )
    return read_rows(folder / "scores.csv"), read_rows(folder / "summary.csv")


def compare(folder, **options):
    options = {"reference": "transunet", "bootstrap": 300} | options
    compare_methods(folder / "scores.csv", comparisons=folder / "comparisons.csv", **options)
    return read_rows(folder / "comparisons.csv")


def edit(path, change):
    """Rewrite a table: `change` takes a row and returns what to replace in it."""
    rows = [row | change(row) for row in read_rows(path)]
    write_rows(path, list(rows[0]), rows)


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
