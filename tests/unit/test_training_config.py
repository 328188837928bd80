"""Guards the keys of coarse models: wrong ones are named, idle ones leave trained models alone."""

import pytest
from pydantic import ValidationError

from ultrarefiner.config import CoarseConfig


def test_the_recipe_of_a_study_of_before_is_as_it_was():
    recipe = CoarseConfig().recipe()
    assert not {"size_cap", "width", "deep_supervision", "nesterov", "flips"} & set(recipe)
    assert recipe["image_size"] == 224


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"flips": True}, "flips"),
        ({}, "size_cap"),
        ({"optimizer": "adamw"}, "momentum"),
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
    ],
)
def test_keys_with_an_effect_are_part_of_the_recipe(changes):
    recipe = CoarseConfig(**changes).recipe()
    assert changes.items() <= recipe.items()
    assert CoarseConfig(**recipe).recipe() == recipe


@pytest.mark.parametrize(
    "changes, words",
    [
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
