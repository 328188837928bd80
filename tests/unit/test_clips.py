"""A memory in training: slices that follow a prompted one, of its own volume and role alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import team_fixture
from tests.refiner_fixture import finetune, quick
from tests.sam_fixture import write_tiny_medsam2
from tests.volume_data import prepared, save_pair
from ultrarefiner.config import FinetuneConfig
from ultrarefiner.datasets.splits import COLUMNS
from ultrarefiner.errors import DatasetError
from ultrarefiner.io import read_json, read_rows, write_rows
from ultrarefiner.models.medsam2 import load_sam2
from ultrarefiner.refine import load_refiner
from ultrarefiner.training.clips import Clips
from ultrarefiner.training.data import PreparedCases
from ultrarefiner.training.launch import launch

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"a": "train", "b": "train", "c": "validation", "d": "test"}
OPTIONS = {"image_size": 64, "mask_choice": "single"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four volumes of six slices, prepared: two train, one validates, one is reported."""
    base = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(ROLES):
        save_pair(base / "raw", name, np.diag([0.4, 0.4, 1.2, 1.0]), seed=seed)
    folder = base / "study" / "prepared"
    records = prepared(base / "raw", folder)
    rows = [
        {"case": case, "group": name, "fold": 0, "role": ROLES[name.removeprefix("study__")]}
        for name, record in records.items()
        for case in record.cases
    ]
    write_rows(base / "splits.csv", COLUMNS, rows)
    return folder, base / "splits.csv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_medsam2(tmp_path_factory.mktemp("weights") / "medsam2.pt")


def clips_of(study, length):
    rows = read_rows(study[1])
    roles = [
        [row["case"] for row in rows if row["role"] == role] for role in ("train", "validation")
    ]
    config = FinetuneConfig(data="truth", clip=length)
    return Clips(config, PreparedCases(study[0]), roles), roles


def test_slices_of_one_volume_follow_each_other(study):
    clips, roles = clips_of(study, 4)
    first, *_ = sorted(case for case in roles[0] if case.startswith("study__a"))
    stem = first.rsplit("_", 1)[0]
    name = lambda index: f"{stem}_{index:0{len(first.rsplit('_', 1)[1])}d}"  # noqa: E731
    assert clips.after(name(1)) == [name(2), name(3), name(4)]
    assert clips.after(name(4)) == [name(5)]
    assert clips.after(name(1), -1) == [name(0)]
    with pytest.raises(KeyError):
        clips.after(next(row["case"] for row in read_rows(study[1]) if row["role"] == "test"))


def test_single_images_have_no_clips(toy_study):
    cases = [row["case"] for row in read_rows(toy_study[1])]
    with pytest.raises(DatasetError, match="no slice of a volume, and `clip` 3 needs slices"):
        Clips(FinetuneConfig(data="truth", clip=3), PreparedCases(toy_study[0]), [cases])


def changed(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("clip", [1, 3])
def test_the_memory_trains_where_it_has_slices_to_follow(study, weights, tmp_path, clip):
    config = quick(data="truth", clip=clip, epochs=1, batch_size=4, prompts=["box"])
    folder = finetune(config, study, weights, tmp_path / "model", family="medsam2", options=OPTIONS)
    before, after = (
        load_sam2(path, 64).state_dict() for path in (weights, folder / "model.safetensors")
    )
    parts = {name.split(".")[0] for name in changed(before, after)}
    assert "mask_decoder" in parts
    assert ("memory" in parts) == (clip > 1)
    assert "image_encoder" not in parts
    (row,) = read_rows(folder / "history.csv")
    assert np.isfinite(float(row["train_loss"]))
    # The encoder rests, so that the finetuned model shares its embeddings.
    tuned = load_refiner("medsam2", folder / "model.safetensors", **OPTIONS)
    assert tuned.weights_sha256 == load_refiner("medsam2", weights, **OPTIONS).weights_sha256
    seen = read_json(folder / "card.json")
    assert {case.split("_slice")[0] for case in seen["trained_on"]} == {"study__a", "study__b"}


@pytest.mark.slow
def test_a_clip_that_is_turned_and_recomputed_trains_too(study, weights, tmp_path):
    config = quick(
        **{"data": "truth", "clip": 2, "epochs": 1, "prompts": ["box", "point"], "cache": "none"},
        **{"augment": {}, "train": "full", "checkpointing": True},
    )
    folder = finetune(config, study, weights, tmp_path / "model", family="medsam2", options=OPTIONS)
    before, after = (
        load_sam2(path, 64).state_dict() for path in (weights, folder / "model.safetensors")
    )
    parts = {name.split(".")[0] for name in changed(before, after)}
    assert parts == {"image_encoder", "mask_decoder", "memory", "prompt_encoder"}


@pytest.mark.slow
def test_two_processes_follow_as_one_does(study, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = tmp_path / "found.json"
    launch(
        team_fixture.clip_training,
        processes=2,
        model=found,
        study=study,
        weights=weights,
        device="cpu",
    )
    distances = read_json(found)
    assert distances == pytest.approx(dict.fromkeys(distances, 0), abs=1e-5)


def test_additions_train_in_encoder_and_decoder_and_are_merged(study, weights, tmp_path):
    lora = {"rank": 2, "targets": ["qkv", "mlp"], "parts": ["encoder", "decoder"], "last": 2}
    config = quick(
        **{"data": "truth", "epochs": 1, "batch_size": 6, "prompts": ["point"], "cache": "none"},
        **{"freeze": ["encoder", "prompt_encoder", "decoder", "head"], "lora": lora},
    )
    folder = finetune(config, study, weights, tmp_path / "model", family="medsam2", options=OPTIONS)
    before, after = (
        load_sam2(path, 64).state_dict() for path in (weights, folder / "model.safetensors")
    )
    blocks = {name.split("backbone.")[-1] for name in changed(before, after) if "encoder" in name}
    wanted = ("attn.qkv.weight", "mlp.proj_in.weight", "mlp.proj_out.weight")
    assert blocks == {f"blocks.{block}.{layer}" for block in (3, 4) for layer in wanted}
    assert any(name.startswith("mask_decoder.transformer") for name in changed(before, after))


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(ValueError, match="clip: slices are followed as a whole"):
        FinetuneConfig(data="truth", clip=2, masks_per_image=2)
    assert "clip" not in FinetuneConfig().recipe()
    assert FinetuneConfig(clip=2).recipe()["clip"] == 2
