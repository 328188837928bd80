"""Guards the keys of trainings: wrong ones are named, idle ones leave trained models alone."""

import json

import pytest
from pydantic import ValidationError

from ultrarefiner.config import CoarseConfig, FinetuneConfig

STEPS = {"schedule": "multistep", "milestones": [5, 10]}
COARSE_OF_BEFORE = {
    **{"model": "transunet", "image_size": 224, "init": "imagenet21k"},
    **{"pretrained": "resources/weights/R50+ViT-B_16.npz", "epochs": 150, "batch_size": 24},
    **{"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0001, "power": 0.9},
    "loss": {"ce": 0.5, "dice": 0.5},
    "augment": {"hflip": 0.5, "vflip": 0.5, "rot90": 0.5, "rotate": 0.0},
    **{"grad_clip": None, "accumulate": 1, "precision": "32-true", "validate_every": 1, "seed": 42},
}
FINETUNE_OF_BEFORE = {
    **{"data": "truth", "copies": None, "on": "fold", "prompts": ["box"], "box_noise": None},
    **{"crop": None, "scratch": None, "unfreeze_last": 0, "lora": None, "curriculum": False},
    "loss": {
        **{"bce": 1.0, "dice": 1.0, "focal": 0.5, "iou": 0.1},
        **{"change_penalty": 0.5, "change": "quality"},
    },
    **{"hflip": 0.5, "epochs": 50, "batch_size": 4, "optimizer": "adamw", "lr": 0.0001},
    **{"weight_decay": 0.01, "schedule": "cosine", "warmup": 0.05, "grad_clip": 1.0},
    **{"accumulate": 1, "precision": "32-true", "validate_every": 1, "cache": "float16"},
    **{"seed": 42, "frozen": ["encoder"]},
}


@pytest.mark.parametrize(
    ("config", "before"),
    [(CoarseConfig(), COARSE_OF_BEFORE), (FinetuneConfig(data="truth"), FINETUNE_OF_BEFORE)],
    ids=["coarse", "finetune"],
)
def test_the_recipe_of_a_study_of_before_is_to_the_byte_as_it_was(config, before):
    assert json.dumps(config.recipe()) == json.dumps(before)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"flips": True}, "flips"),
        ({}, "size_cap"),
        ({"optimizer": "adamw"}, "momentum"),
        ({"optimizer": "adam"}, "momentum"),
        (STEPS, "power"),
        ({"threads": 1}, "threads"),
    ],
)
def test_keys_without_effect_are_no_part_of_the_recipe(changes, key):
    assert key not in CoarseConfig(**changes).recipe()


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": "auto", "size_cap": 256},
        {"width": 16},
        {"deep_supervision": False},
        {"nesterov": True},
        STEPS,
        {**STEPS, "gamma": 0.1, "optimizer": "adam"},
        {"loss": {"ce": 0.0, "dice": 20.0, "focal": 1.0, "focal_alpha": 0.25}},
    ],
)
def test_keys_with_an_effect_are_part_of_the_recipe(changes):
    recipe = CoarseConfig(**changes).recipe()
    assert changes.items() <= recipe.items()
    assert CoarseConfig(**recipe).recipe() == recipe


def test_those_of_a_finetuning_are_part_of_its_recipe():
    steps = {**STEPS, "gamma": 0.1, "optimizer": "adam"}
    assert steps.items() <= FinetuneConfig(**steps).recipe().items()
    assert FinetuneConfig(loss={"focal_alpha": 0.25}).recipe()["loss"]["focal_alpha"] == 0.25


def test_the_usual_factor_is_part_of_the_recipe_of_a_schedule_that_uses_it():
    for config in (CoarseConfig(**STEPS), FinetuneConfig(**STEPS)):
        assert config.recipe()["gamma"] == 0.5
    assert CoarseConfig(loss={"focal": 1.0}).recipe()["loss"]["focal"] == 1.0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"schedule": "multistep"}, "milestones: schedule: multistep needs the epochs"),
        ({**STEPS, "milestones": [10, 5]}, r"\[10, 5\] are no ascending numbers of epochs"),
        ({**STEPS, "milestones": [5, 5]}, r"\[5, 5\] are no ascending numbers"),
        ({**STEPS, "milestones": [0, 5]}, r"\[0, 5\] are no ascending numbers of epochs from 1 on"),
        ({**STEPS, "epochs": 10}, "10 would never be reached, there are 10 epochs"),
        ({**STEPS, "gamma": 1.0}, "less than 1"),
        ({"milestones": [5]}, "milestones: has no effect on schedule: (poly|cosine); remove it"),
        ({"gamma": 0.1}, "gamma: has no effect on schedule: (poly|cosine); remove it"),
        ({"loss": {"focal": 0.0, "focal_alpha": 0.25}}, "focal_alpha: has no effect while `focal`"),
        ({"loss": {"focal": 1.0, "focal_alpha": 1.0}}, "less than 1"),
        ({"loss": {"bce": 0, "ce": 0, "dice": 0, "focal": 0}}, "cannot all be 0"),
    ],
)
def test_schedules_and_losses_that_cannot_work_are_told_in_words(changes, words):
    other = {CoarseConfig: "bce", FinetuneConfig: "ce"}
    for section, foreign in other.items():
        values = dict(changes)
        if "loss" in values:
            values["loss"] = {k: v for k, v in values["loss"].items() if k != foreign}
        with pytest.raises(ValidationError, match=words):
            section(**values)


def test_a_schedule_with_the_defaults_of_others_written_out_is_the_same_one():
    assert CoarseConfig(**STEPS, power=0.9).recipe() == CoarseConfig(**STEPS).recipe()
    written = {"milestones": [], "gamma": 0.5}
    assert CoarseConfig(**written, schedule="poly").recipe() == COARSE_OF_BEFORE
    assert FinetuneConfig(**written, data="truth").recipe() == FINETUNE_OF_BEFORE


@pytest.mark.parametrize(
    "changes, words",
    [
        ({**STEPS, "power": 1.0}, "power: has no effect on schedule: multistep; remove it"),
        ({"image_size": "Auto"}, "neither a side from 32 to 1024 pixels nor `auto`"),
        ({"image_size": 16}, "image_size 16 is neither"),
        ({"image_size": 2048}, "image_size 2048 is neither"),
        ({"image_size": True}, "image_size True is neither"),
        ({"image_size": 250}, "not divisible by 16; try 256"),
        ({"size_cap": 500}, "size_cap 500 is not a power of two"),
        ({"size_cap": 32}, "greater than or equal to 64"),
        ({"width": 2}, "greater than or equal to 4"),
        ({"nesterov": True, "momentum": 0}, "nesterov: needs a momentum above 0"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov: has no effect on adamw"),
        ({"size_cap": 256}, "size_cap: has no effect beside an image_size"),
    ],
)
def test_wrong_values_are_told_in_words(changes, words):
    with pytest.raises(ValidationError, match=words):
        CoarseConfig(**changes)
