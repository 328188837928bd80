"""Guards finetuning: what trains, what it leaves alone, what it writes, and how it is resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.refiner_fixture import SAM_UNET, finetune, quick, write_weights
from tests.training_fixture import make_study
from ultrarefiner.datasets.loader import read_prepared
from ultrarefiner.errors import ConfigError, LeakError
from ultrarefiner.io import file_sha256, read_rows
from ultrarefiner.models.cards import read_card
from ultrarefiner.models.export import read_about
from ultrarefiner.models.sam import load_sam
from ultrarefiner.prompts import Prompt, prompt_from_mask
from ultrarefiner.refine import load_refiner

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")

FROZEN = {"freeze": "encoder"}
LORA = {"freeze": "encoder", "lora": {"rank": 2, "last": 1, "dropout": 0.1}}
UNFROZEN = {"unfreeze_last": 1}
PRESETS = pytest.mark.parametrize(
    "preset", [FROZEN, LORA, UNFROZEN], ids=["frozen", "lora", "last"]
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def frozen(study, weights, tmp_path_factory):
    return finetune(quick(**FROZEN), study, weights, tmp_path_factory.mktemp("frozen") / "model")


def tensors(folder):
    path = folder / "model.safetensors"
    return load_sam(path, read_about(path)["family"]).state_dict()


def largest_difference(one, other):
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def test_the_card_says_what_made_the_model_and_what_it_has_seen(study, weights, frozen):
    card, roles = read_card(frozen / "card.json"), study[2]
    assert card["phase"] == "refiner"
    assert card["trained_on"] == roles["train"]
    assert card["selected_on"] == roles["validation"]
    assert card["parents"] == {"tiny.safetensors": file_sha256(weights)}
    assert card["weights_sha256"] == file_sha256(frozen / "model.safetensors")
    assert {"dice", "coarse_dice", "dice_before", "epoch"} <= card["metrics"].keys()
    rows = read_rows(frozen / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert card["metrics"]["dice"] == max(float(row["val_dice"]) for row in rows)
    # Validation masks are fixed: what goes in is the same in every epoch.
    assert len({row["val_coarse_dice"] for row in rows}) == 1


def test_what_is_frozen_is_the_parents_and_the_rest_has_moved(weights, frozen):
    before, after = load_sam(weights).state_dict(), tensors(frozen)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert not [key for key in moved if key.startswith("image_encoder.")]
    assert [key for key in moved if key.startswith("mask_decoder.transformer.")]


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"train": "head"}, {"head"}),
        ({"train": "decoder_and_head"}, {"head", "decoder"}),
        ({"train": "full"}, {"head", "decoder", "prompt_encoder", "encoder"}),
        ({"freeze": ["encoder", "decoder", "head"]}, {"prompt_encoder"}),
        (UNFROZEN, {"head", "decoder", "prompt_encoder", "encoder"}),
        ({"freeze": ["encoder", "prompt_encoder", "decoder", "head"], "lora": {}}, {"encoder"}),
    ],
)
def test_every_preset_moves_its_parts_and_no_others(study, weights, tmp_path, changes, moves):
    from ultrarefiner.models.parts import part_of

    before = load_sam(weights).state_dict()
    after = tensors(finetune(quick(epochs=1, **changes), study, weights, tmp_path / "model"))
    assert {part_of(key) for key in before if not torch.equal(before[key], after[key])} == moves


def test_a_finetuned_decoder_takes_its_parents_embeddings(study, weights, frozen):
    image, label = read_prepared(study[0], study[2]["test"][0])
    before, after = (
        load_refiner("sam", str(path), mask_choice="single")
        for path in (weights, frozen / "model.safetensors")
    )
    prompt = prompt_from_mask(label.astype(bool))
    assert after.weights_sha256 == before.weights_sha256
    shared, own = before.embed(image), after.embed(image)
    assert np.array_equal(shared.features, own.features)
    logits = [one.refine(shared, prompt).low_res_logits for one in (before, after)]
    assert not np.array_equal(*logits)


def test_another_encoder_has_embeddings_of_its_own(study, weights, tmp_path):
    folder = finetune(quick(epochs=1, **LORA), study, weights, tmp_path / "model")
    own = load_refiner("sam", str(folder / "model.safetensors")).weights_sha256
    assert own == file_sha256(folder / "model.safetensors")


@PRESETS
def test_what_is_kept_changes_no_number(study, weights, tmp_path, preset):
    """Dropout of LoRA counts among the numbers: it is drawn the same either way."""
    # Adam would turn the last digit of a sum (a batch encoded at once) into a whole step.
    config = preset | {"optimizer": "sgd", "lr": 0.01}
    kept = finetune(quick(**config), study, weights, tmp_path / "kept" / "model")
    plain = finetune(quick(cache="none", **config), study, weights, tmp_path / "plain" / "model")
    assert list((tmp_path / "kept" / "shelf").rglob("*.safetensors"))
    assert not (tmp_path / "plain" / "shelf").exists()
    assert largest_difference(kept, plain) < 1e-6
    for one, other in zip(*(read_rows(p / "history.csv") for p in (kept, plain)), strict=True):
        assert float(one["train_loss"]) == pytest.approx(float(other["train_loss"]), abs=1e-5)


@pytest.mark.parametrize("preset", [FROZEN, UNFROZEN, LORA], ids=["frozen", "last", "lora"])
def test_mixed_precision_changes_little(study, weights, tmp_path, preset):
    single = finetune(quick(**preset), study, weights, tmp_path / "single")
    mixed = finetune(quick(**preset, precision="bf16-mixed"), study, weights, tmp_path / "mixed")
    losses = [
        [float(row["train_loss"]) for row in read_rows(folder / "history.csv")]
        for folder in (single, mixed)
    ]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    assert all(value.dtype == torch.float32 for value in tensors(mixed).values())


def test_prompts_keep_their_place_in_mixed_precision(weights):
    refiner = load_refiner("sam", str(weights), "cpu", mask_choice="single")
    image = np.full((96, 128, 3), 90, np.uint8)
    embedding = refiner.embed(image)
    query = refiner.query(embedding, Prompt(box=np.array([13.3, 21.7, 90.2, 77.1])))
    place = refiner._encoded(query)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = refiner._encoded(query)[0]
    assert rounded.dtype == torch.float32 and torch.equal(rounded, place)


def test_half_precision_on_the_shelf_changes_little(study, weights, tmp_path):
    half, plain = (
        finetune(quick(cache=cache, **FROZEN), study, weights, tmp_path / cache / "model")
        for cache in ("float16", "none")
    )
    losses = [float(read_rows(p / "history.csv")[0]["train_loss"]) for p in (half, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


# The child trains for real, and dies as it is about to keep the state of its second epoch.
CHILD = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from tests.refiner_fixture import finetune, quick
study, weights, folder, preset = sys.argv[1:]
rename, seen = os.replace, []
def replace(source, target):
    seen.append(str(target).endswith("state.pt"))
    if sum(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = replace
paths = f"{study}/prepared", f"{study}/splits.csv"
config, how = json.loads(preset)
finetune(quick(epochs=3, **config), paths, None if how else weights, folder, **how)
"""
ADAPTED = {"data": "truth", "masks_per_image": 2, "box_shift": 5}


@pytest.mark.parametrize(
    ("preset", "how"),
    [
        pytest.param(FROZEN, {}, marks=pytest.mark.slow),
        (LORA, {}),
        pytest.param(UNFROZEN, {}, marks=pytest.mark.slow),
        pytest.param(ADAPTED, SAM_UNET, marks=pytest.mark.slow),
    ],
    ids=["frozen", "lora", "last", "sam_unet"],
)
def test_a_killed_finetuning_ends_where_an_unbroken_one_does(
    study, weights, tmp_path, caplog, preset, how
):
    config, start = quick(epochs=3, **preset), None if how else weights
    unbroken = finetune(config, study, start, tmp_path / "unbroken" / "model", **how)
    folder = tmp_path / "killed" / "model"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    told = json.dumps([preset, how])
    command = [sys.executable, "-c", CHILD, study[0].parent, weights, folder, told]
    died = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (folder / "model.safetensors").exists()
    with caplog.at_level("INFO"):
        finetune(config, study, start, folder, **how)
    assert "resuming after epoch 1 of 3" in caplog.text
    assert largest_difference(folder, unbroken) <= 1e-6
    histories = [read_rows(one / "history.csv") for one in (folder, unbroken)]
    for row in (*histories[0], *histories[1]):
        del row["seconds"]
    assert histories[0] == histories[1]


def test_the_resume_folder_holds_no_frozen_encoder(weights, frozen):
    whole = weights.stat().st_size
    encoder = sum(
        value.numel() * 4
        for key, value in load_sam(weights).state_dict().items()
        if key.startswith("image_encoder.")
    )
    (best,) = (frozen / "resume").glob("best-*.safetensors")
    assert best.stat().st_size < whole - 0.9 * encoder


def test_a_finished_finetuning_is_taken_again(study, weights, frozen, caplog):
    before = file_sha256(frozen / "model.safetensors")
    (frozen / "model.safetensors").unlink()
    with caplog.at_level("INFO"):
        finetune(quick(**FROZEN), study, weights, frozen)
    assert "finished before" in caplog.text
    assert "EPOCH 1/2" not in caplog.text
    assert file_sha256(frozen / "model.safetensors") == before


def test_from_random_weights_only_if_asked(study, tmp_path):
    config = quick(epochs=1, train="full", scratch="tiny")
    folder = finetune(config, study, None, tmp_path / "model")
    card = read_card(folder / "card.json")
    assert card["parents"] == {}
    with pytest.raises(ConfigError, match="needs `weights`"):
        finetune(quick(epochs=1, train="full"), study, None, tmp_path / "other")


def test_more_blocks_than_there_are_is_refused_before_training(study, weights, tmp_path):
    with pytest.raises(ConfigError, match="unfreeze_last: 9"):
        finetune(quick(unfreeze_last=9), study, weights, tmp_path / "model")
    assert not (tmp_path / "model" / "history.csv").exists()


def test_training_learns_what_it_is_taught(study, weights, tmp_path):
    """A tiny SAM with random weights learns to see these ellipses through their prompts."""
    config = quick(epochs=12, train="full", prompts=["box"], lr=2e-3)
    folder = finetune(config, study, weights, tmp_path / "model")
    metrics = read_card(folder / "card.json")["metrics"]
    assert metrics["dice"] > metrics["dice_before"] + 0.1


def test_a_combined_model_has_no_fold_and_has_seen_them_all(study, weights, tmp_path):
    config = quick(epochs=1, on="all", **FROZEN)
    folder = finetune(config, study, weights, tmp_path / "model", fit="all")
    card, roles = read_card(folder / "card.json"), study[2]
    assert card["fold"] is None
    assert set(card["trained_on"]) == {*roles["train"], *roles["test"]}
    from ultrarefiner.models.cards import check_leak

    with pytest.raises(LeakError, match=roles["test"][0]):
        check_leak(card, roles["test"], allow_selected=False)


def test_what_training_began_as_stays_on_record(study, frozen, tmp_path):
    """A model that an earlier study trained has seen cases, and so has what is made of it."""
    parent = frozen / "model.safetensors"
    folder = finetune(quick(epochs=1, **FROZEN), study, parent, tmp_path / "model")
    (entry,) = read_card(folder / "card.json")["sources"]["parents"]
    assert entry["weights_sha256"] == file_sha256(parent)
    assert entry["trained_on"] == study[2]["train"]


def test_a_start_that_has_seen_what_is_reported_is_refused_before_training(study, frozen, tmp_path):
    """The earlier model trained on cases that are tested now: under other folds, say."""
    parent = tmp_path / "earlier" / "model.safetensors"
    parent.parent.mkdir()
    parent.write_bytes((frozen / "model.safetensors").read_bytes())
    card = read_card(frozen / "card.json") | {"trained_on": [study[2]["test"][0]]}
    (parent.parent / "card.json").write_text(json.dumps(card))
    with pytest.raises(LeakError, match=study[2]["test"][0]):
        finetune(quick(epochs=1, **FROZEN), study, parent, tmp_path / "model")
    assert not (tmp_path / "model" / "history.csv").exists()
