"""Score tables of unseen datasets, and the tables of cases that tell what image a mask is of."""

import numpy as np

from ultrarefiner.datasets.loader import COLUMNS
from ultrarefiner.evaluation.metrics import score_case
from ultrarefiner.evaluation.scores import SCORE_COLUMNS, plain
from ultrarefiner.evaluation.summary import summarise_scores
from ultrarefiner.evaluation.zero_shot import summarise_zero_shot
from ultrarefiner.io import read_rows, write_rows

FAMILIES = {
    "unet": "unet",
    "ct-box": "sam_unet-box",
    "us-box": "sam_unet-box",
    "ct-oracle": "sam_unet-oracle",
}
SQUARE = np.pad(np.ones((6, 6), dtype=bool), 7)


def score(case, dice, method="ct-box@busi", group=None, **others):
    """Return a score row of a case; its Dice is given, and IoU and HD95 follow from it."""
    numbers = {"dice": dice, "iou": dice / 2, "hd95_px": 10.0 * (1.0 - dice)}
    base, _, trained_on = method.partition("@")
    source = {"unet": "none", "ct-oracle": "ground_truth"}.get(base, "coarse")
    facts = {
        "dataset": case.partition("__")[0],
        "evaluation": "unseen",
        "member": "mean",
        "fold": None,
        "case": case,
        "group": group or case,
        "label": "",
        "method": method,
        "trained_on": trained_on,
        "prompt_source": source,
        "oracle": source == "ground_truth",
        "selection": "validation",
        "seen": "no",
        "area_share": 0.09,
        "overlay": "none",
        "border": "no",
        "look_alike": "no",
        "spacing": "unknown",
    }
    row = score_case(SQUARE, SQUARE, None) | numbers | facts | others
    return {name: plain(row[name]) for name in SCORE_COLUMNS}


def case_table(folder, dataset, images):
    """Write the table of a dataset's cases, given the image of each; return its path."""
    blank = dict.fromkeys(COLUMNS, "") | {"height": 20, "width": 20}
    blank |= {"border": "no", "look_alikes": 0, "appearance": "0"}
    path = folder / dataset / "prepared/cases.csv"
    write_rows(
        path,
        COLUMNS,
        (blank | {"case": case, "image": image, "group": case} for case, image in images.items()),
    )
    return path


def summarise(folder, rows, images, modalities=None, tables=None, **options):
    """Write score tables and return the rows of the zero-shot table.

    Args:
        folder: Where to.
        rows: Score rows, which go to one table.
        images: Image of each case.
        modalities: Those of the datasets, ultrasound where it is not told.
        tables: The rows again in several tables; None: in one.
        options: Of `summarise_zero_shot`.
    """
    paths = []
    for i, part in enumerate([rows] if tables is None else tables):
        paths.append(folder / f"part{i}.csv")
        write_rows(paths[-1], SCORE_COLUMNS, part)
    summarise_scores(paths, folder / "scores.csv", folder / "summary.csv", bootstrap=20)
    datasets = []
    for dataset in sorted({case.partition("__")[0] for case in images}):
        mine = {case: image for case, image in images.items() if case.startswith(f"{dataset}__")}
        modality = (modalities or {}).get(dataset, "ultrasound")
        cases = str(case_table(folder, dataset, mine))
        datasets.append({"dataset": dataset, "modality": modality, "cases": cases})
    arguments = {"families": FAMILIES, "bootstrap": 200} | options
    summarise_zero_shot(folder / "scores.csv", datasets, output=folder / "zero.csv", **arguments)
    return read_rows(folder / "zero.csv")
