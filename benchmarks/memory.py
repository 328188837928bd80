"""How much memory each stage takes with more images: 1,000 phantoms against 10,000.

    python benchmarks/memory.py                  # some 10 minutes
    python benchmarks/memory.py 300 1500         # other numbers

Each stage runs as the function that its script calls, in a process of its own; half of the images
are of the part that is predicted, refined and scored. What the peak grows by tells what an image
adds, and so what 100,000 would take. A stage that streams may keep names, digests and rows of a
table, and no pixels: more than `ALLOWED` bytes an image end this with status 1. Stages that hold a
table or the training set by design are printed without a limit.
"""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ALLOWED = 3000
FULL = 100_000
SIZE = 64  # pixels
DRAWN = 50
METHODS = ("coarse", "grabcut-mask")
OPTIONS = {"patient": r"^(p\d+)_"}
LABELS = {
    "trained_on": "big",
    "prompt_source": "coarse",
    "oracle": False,
    "selection": "validation",
    "seen": "no",
}
TABLES = ("cases", "published_folds", "excluded")
FOLDERS = ("npz", "images", "masks")


# Each stage imports what it runs, or every peak would be that of torch; what starts them imports
# nothing, as the peak of a process begins with that of its parent.
def write_raw(folder: Path) -> None:
    """Write as many images as the folder is called: phantoms under noise, two of a patient."""
    import cv2
    import numpy as np

    from ultrarefiner.datasets.phantom import draw_phantom

    drawn = [draw_phantom(seed, SIZE, seed % 3 == 2) for seed in range(DRAWN)]
    for name in ("images", "masks"):
        (folder / "raw" / name).mkdir(parents=True)
    for number in range(int(folder.name)):
        (gray, lesion), rng = drawn[number % DRAWN], np.random.default_rng(number)
        # Coarse noise too, or a perceptual hash would take all copies of a phantom for one.
        coarse = cv2.resize(rng.normal(0, 60, (8, 8)), gray.shape[::-1])
        noisy = gray + coarse + rng.normal(0, 10, gray.shape)
        name = f"p{number // 2:06d}_{number:06d}.png"
        cv2.imwrite(str(folder / "raw/images" / name), np.clip(noisy, 0, 255).astype(np.uint8))
        mask = np.where(lesion, 255, 0).astype(np.uint8)
        cv2.imwrite(str(folder / "raw/masks" / name), mask)


def list_raw(folder: Path) -> None:
    """Take the digest of the raw folder, as planning does."""
    from ultrarefiner.study import folder_listing

    folder_listing(str(folder / "raw"))


def check_dataset(folder: Path) -> None:
    from ultrarefiner.datasets.doctor import check_dataset

    check_dataset("big", "pairs", folder / "raw", folder / "report.json", options=OPTIONS)


def prepare_dataset(folder: Path) -> None:
    from ultrarefiner.datasets.prepare import prepare_dataset

    outputs = {name: folder / "prepared" / f"{name}.csv" for name in TABLES}
    outputs |= {name: folder / "prepared" / name for name in FOLDERS}
    prepare_dataset("big", "pairs", folder / "raw", False, **outputs, options=OPTIONS)


def find_overlaps(folder: Path) -> None:
    """Compare the dataset with a second one, which holds a tenth of its images."""
    from ultrarefiner.datasets.overlaps import find_overlaps

    copies = folder / "copies.csv"
    with open(folder / "prepared/cases.csv", newline="") as source, open(copies, "w") as copy:
        rows = csv.DictReader(source)
        writer = csv.DictWriter(copy, rows.fieldnames, lineterminator="\n")
        writer.writeheader()
        for number, row in enumerate(rows):
            if number % 10 == 0:
                writer.writerow(row | {"case": row["case"].replace("big__", "copy__")})
    cases = {"big": folder / "prepared/cases.csv", "copy": copies}
    unseen = {name: folder / f"{name}_unseen.csv" for name in cases}
    known = {"big": ["copy"]}
    find_overlaps(cases, known, ["big"], [], folder / "overlaps.csv", unseen)


def split_folds(folder: Path) -> None:
    from ultrarefiner.config import SplitsConfig
    from ultrarefiner.datasets.splits import split_folds

    config = SplitsConfig(folds=2)
    split_folds(folder / "prepared/cases.csv", None, folder / "splits.csv", config)


def read_training_set(folder: Path) -> None:
    """Read the training cases of a fold at 224 pixels, as `train_coarse` does before it begins."""
    from ultrarefiner.datasets.splits import read_split
    from ultrarefiner.training.data import CoarseData

    cases = read_split(folder / "splits.csv", 0)["train"]
    CoarseData.read(folder / "prepared", cases, 224, with_truths=False)


def write_model(folder: Path) -> None:
    """Write a model as if it had been trained on fold 0, so that its card names all its cases."""
    import torch

    from ultrarefiner.config import CoarseConfig
    from ultrarefiner.datasets.splits import read_split
    from ultrarefiner.io import file_sha256, write_json
    from ultrarefiner.models import build_model
    from ultrarefiner.models.cards import write_card
    from ultrarefiner.training.checkpoint import save_weights

    torch.manual_seed(0)
    parts = read_split(folder / "splits.csv", 0)
    architecture = {"model": "transunet_tiny", "image_size": 32, "num_classes": 2}
    save_weights(folder / "model.safetensors", build_model(**architecture).state_dict())
    config = CoarseConfig(model="transunet_tiny", image_size=32, init="random", batch_size=8)
    card = {
        "architecture": architecture,
        "phase": "coarse",
        "name": "coarse",
        "dataset": "big",
        "fold": 0,
        "protocol": "nested",
        "config": config.model_dump(mode="json"),
        "metrics": {},
        "selection": "validation",
        "trained_on": parts["train"],
        "selected_on": parts["validation"],
        "parents": {},
        "weights_sha256": file_sha256(folder / "model.safetensors"),
        "licence": "",
        "versions": {},
        "fingerprint": {},
    }
    write_card(folder / "card.json", card)
    write_json(folder / "threshold.json", {"threshold": 0.5})


def predict_coarse(folder: Path) -> None:
    from ultrarefiner.training.prediction import predict_coarse

    names = ("masks", "tuned", "probabilities")
    predict_coarse(
        model=folder / "model.safetensors",
        card=folder / "card.json",
        threshold=folder / "threshold.json",
        prepared=folder / "prepared",
        splits=folder / "splits.csv",
        part="fold0",
        protocol="nested",
        flips=False,
        device="cpu",
        **{name: folder / "coarse" / name for name in names},
    )


def make_prompts(folder: Path) -> None:
    """Write mask prompts; of the truth, as the model has learned nothing."""
    from ultrarefiner.config import PromptConfig
    from ultrarefiner.prompts.records import make_prompts

    mode = PromptConfig(kind="mask+box")
    masks = folder / "prepared/masks"
    make_prompts(mode, "mask", folder / "splits.csv", "fold0", masks, folder / "prompts.json")


def refine_masks(folder: Path) -> None:
    from ultrarefiner.refine.jobs import refine_masks

    refine_masks(
        family="grabcut",
        weights=None,
        options={},
        prompts=folder / "prompts.json",
        images=folder / "prepared/images",
        soft_masks=folder / "prepared/masks",
        embeddings=None,
        shelf=None,
        limit_gb=1,
        output=folder / "grabcut-mask/masks",
        table=folder / "grabcut-mask/table.csv",
        device="cpu",
    )


def score_masks(folder: Path) -> None:
    _score(folder, METHODS[0])


def score_refined(folder: Path) -> None:
    """Score the other method, for the summary of both."""
    _score(folder, METHODS[1])


def _score(folder: Path, method: str) -> None:
    from ultrarefiner.evaluation.scores import score_masks

    score_masks(
        method=method,
        dataset="big",
        part="fold0",
        masks=folder / method / "masks",
        truth=folder / "prepared/masks",
        cases=folder / "prepared/cases.csv",
        splits=folder / "splits.csv",
        output=folder / f"{method}.csv",
        **LABELS,
    )


def measure_calibration(folder: Path) -> None:
    from ultrarefiner.evaluation.calibration import measure_calibration

    part = {"part": "fold0", "table": folder / "splits.csv"}
    part["probabilities"] = folder / "coarse/probabilities"
    truth, output = folder / "prepared/masks", folder / "calibration.csv"
    measure_calibration("coarse", "big", "big", [part], truth, output)


def summarise_scores(folder: Path) -> None:
    from ultrarefiner.evaluation.summary import summarise_scores

    tables = [folder / f"{method}.csv" for method in METHODS]
    scores, summary = folder / "scores.csv", folder / "summary.csv"
    summarise_scores(tables, scores, summary, folder / "overlaps.csv", bootstrap=200)


# In the order of a study, with the bytes that an image may add; None: it grows by design.
STAGES: dict[Callable[[Path], None], int | None] = {
    write_raw: ALLOWED,
    list_raw: ALLOWED,
    check_dataset: ALLOWED,
    prepare_dataset: ALLOWED,
    find_overlaps: ALLOWED,
    split_folds: ALLOWED,
    read_training_set: None,
    write_model: None,
    predict_coarse: ALLOWED,
    make_prompts: ALLOWED,
    refine_masks: ALLOWED,
    score_masks: ALLOWED,
    score_refined: ALLOWED,
    measure_calibration: ALLOWED,
    summarise_scores: None,
}


def peak(stage: str, folder: Path) -> float:
    """Return the peak memory of a stage, in bytes."""
    command = [sys.executable, __file__, "--stage", stage, str(folder)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=os.environ | threads)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{stage} failed")
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # Linux counts in kilobytes


def main() -> None:
    few, many = map(int, sys.argv[1:3] or (1000, 10_000))
    stages = {stage.__name__: allowed for stage, allowed in STAGES.items()}
    kept = True
    print(f"{'peak, MB':18} {few:>8} {many:>8} images; bytes an image; {FULL} images")
    with tempfile.TemporaryDirectory() as text:
        folders = {number: Path(text) / str(number) for number in (few, many)}
        for name, allowed in stages.items():
            small, large = (peak(name, folder) for folder in folders.values())
            grown = max(large - small, 0) / (many - few)
            full = small + grown * (FULL - few)
            within = allowed is None or grown <= allowed
            kept &= within
            sizes = f"{small / 1e6:8.0f} {large / 1e6:8.0f} {grown:14.0f} {full / 1e6:10.0f} MB"
            print(f"{name:18} {sizes}{'' if within else f'  more than {allowed}'}", flush=True)
    print(f"limit of {ALLOWED} bytes an image {'kept' if kept else 'exceeded'}")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        logging.disable()  # of a study without sense
        globals()[sys.argv[2]](Path(sys.argv[3]))
    else:
        main()
