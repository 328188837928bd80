"""Guards that the stages which see every image keep none of them: more images, the same memory."""

import os
import tracemalloc

import numpy as np
import pytest

from tests.training_fixture import write_splits
from ultrarefiner.datasets.duplicates import count_look_alikes
from ultrarefiner.datasets.phantom import draw_phantom
from ultrarefiner.datasets.prepare import prepare_dataset
from ultrarefiner.evaluation.scores import score_masks
from ultrarefiner.images import write_mask, write_png
from ultrarefiner.io import write_json

FEW, MANY = 20, 80
KEPT = 0.1
"""Share of an image's bytes that a case may leave in memory: its id, its digests, its row."""


def peak(run, *arguments):
    """Return the most bytes of Python and NumPy that were in use at once."""
    tracemalloc.start()
    try:
        run(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def require_flat(run, *arguments):
    """Run on few cases and on many; the first run has imported everything and filled caches."""
    run(FEW, *arguments)
    few, many = peak(run, FEW, *arguments), peak(run, MANY, *arguments)
    image = np.prod(draw_phantom(0, 160, False)[0].shape) * 3
    assert many - few < KEPT * image * (MANY - FEW), f"{(many - few) / (MANY - FEW):.0f} a case"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Return the folder of two raw datasets, called by their numbers of cases."""
    folder = tmp_path_factory.mktemp("raw")
    image, mask = draw_phantom(0, 160, False)
    for count in (FEW, MANY):
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 60, image.shape, np.uint8)
            pixels = np.repeat((image // 2 + noise)[..., None], 3, axis=2)
            name = f"case_{number}.png"
            write_png(folder / str(count) / "images" / name, pixels)
            write_mask(folder / str(count) / "masks" / name, mask)
    return folder


def prepare(count, raw, output):
    folder = output / str(count)
    files = {name: folder / f"{name}.csv" for name in ("cases", "published_folds", "excluded")}
    folders = {name: folder / name for name in ("npz", "images", "masks")}
    prepare_dataset("big", "pairs", raw / str(count), False, **files, **folders)


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    """Return the folder of the prepared datasets, each with its splits: every case is tested."""
    folder = tmp_path_factory.mktemp("prepared")
    for count in (FEW, MANY):
        prepare(count, raw, folder)
        cases = [f"big__case_{number}" for number in range(count)]
        roles = {"train": ["other__1"], "validation": ["other__2"], "test": cases}
        write_splits(folder / str(count) / "splits.csv", roles)
    return folder


def test_prepare_keeps_no_image(raw, tmp_path, monkeypatch):
    # One thread: how many images are in memory at once is no matter of chance then.
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    require_flat(prepare, raw, tmp_path)


def test_predict_keeps_no_image(prepared, toy_model, tmp_path):
    from ultrarefiner.training.prediction import predict_coarse

    write_json(tmp_path / "threshold.json", {"threshold": 0.5})

    def predict(count):
        predict_coarse(
            model=toy_model / "model.safetensors",
            card=toy_model / "card.json",
            threshold=tmp_path / "threshold.json",
            prepared=prepared / str(count),
            splits=prepared / str(count) / "splits.csv",
            part="fold0",
            protocol="nested",
            flips=False,
            masks=tmp_path / "masks",
            tuned=tmp_path / "tuned",
            probabilities=tmp_path / "probabilities",
            device="cpu",
        )

    require_flat(predict)


def test_score_keeps_no_image(prepared, tmp_path):
    def score(count):
        folder = prepared / str(count)
        score_masks(
            method="perfect",
            dataset="big",
            part="fold0",
            masks=folder / "masks",
            truth=folder / "masks",
            cases=folder / "cases.csv",
            splits=folder / "splits.csv",
            trained_on="big",
            prompt_source="none",
            oracle=False,
            selection="validation",
            seen="no",
            output=tmp_path / "scores.csv",
        )

    require_flat(score)


def test_images_are_compared_with_all_others_in_pieces():
    rng = np.random.default_rng(0)

    def compare(count):
        hashes = rng.integers(1, 2**63, count).tolist()
        count_look_alikes([str(number) for number in range(count)], hashes)

    few, many = peak(compare, 6000), peak(compare, 12000)
    # A table of 512 rows and a column for each image would add 2048 bytes.
    assert (many - few) / 6000 < 1500
