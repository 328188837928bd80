"""Noise moves prompts by no more than was asked, within the image, and the same way every time."""

import itertools

import numpy as np
import pytest

from tests.lesions import random_lesion
from ultrarefiner.config import NoiseConfig
from ultrarefiner.prompts import Prompt, prompt_from_mask
from ultrarefiner.prompts.geometry import tight_box
from ultrarefiner.prompts.noise import perturb_prompt

HW = (400, 600)
EXTENT = (200, 150, 300, 200)
PROMPT = Prompt(box=EXTENT, points=[[250, 175], [230, 160], [195, 145]], labels=[1, 1, 0])


def moved(noise, item="busi__benign_1", prompt=PROMPT, extent=EXTENT, hw=HW):
    return perturb_prompt(prompt, extent, noise, item, hw)


@pytest.mark.parametrize("share", [0.05, 0.45])
def test_moves_are_uniform_up_to_the_share_asked_for(share):
    noise = NoiseConfig(box=share, point=share)
    prompts = [moved(noise, f"case_{i}") for i in range(2000)]
    sides = np.array([100, 50])
    edges = np.array([(one.box - PROMPT.box).reshape(2, 2) / sides for one in prompts])
    # The negative point is held back a little where it is near its reach; see the windows.
    steps = np.array([((one.points - PROMPT.points) / sides)[:2] for one in prompts])
    for found in (edges, steps):
        assert np.abs(found).max() <= share + 1e-9
        assert np.abs(found).max() >= 0.99 * share
        np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.07 * share)
        np.testing.assert_allclose(found.std(axis=0), share / np.sqrt(3), rtol=0.06)
    flat = np.concatenate([edges.reshape(2000, -1), steps.reshape(2000, -1)], axis=1)
    apart = np.abs(np.corrcoef(flat.T) - np.eye(8)).max()
    assert apart < 0.1, "edges and points have to move independently"


def test_the_same_seed_and_case_give_the_same_moves_whatever_came_before():
    noise = NoiseConfig(box=0.2, point=0.2)
    first = {case: moved(noise, case) for case in ("a", "b")}
    again = {case: moved(noise, case) for case in ("b", "a")}
    for case in first:
        np.testing.assert_array_equal(first[case].box, again[case].box)
        np.testing.assert_array_equal(first[case].points, again[case].points)
    assert (first["a"].box != first["b"].box).all()
    other = moved(NoiseConfig(box=0.2, point=0.2, seed=1), "a")
    assert (other.box != first["a"].box).all() and (other.points != first["a"].points).any()


def test_box_and_points_move_alike_alone_and_together():
    noise = NoiseConfig(box=0.2, point=0.2)
    both = moved(noise)
    np.testing.assert_array_equal(moved(noise, prompt=Prompt(box=EXTENT)).box, both.box)
    alone = moved(noise, prompt=Prompt(points=PROMPT.points, labels=PROMPT.labels))
    np.testing.assert_array_equal(alone.points, both.points)
    np.testing.assert_array_equal(alone.labels, PROMPT.labels)
    np.testing.assert_array_equal(moved(NoiseConfig(point=0.2)).box, PROMPT.box)
    np.testing.assert_array_equal(moved(NoiseConfig(box=0.2)).points, PROMPT.points)


def test_a_mask_stays():
    lesion = np.zeros((60, 60), bool)
    lesion[20:40, 20:40] = True
    prompt = prompt_from_mask(lesion, "mask+box")
    other = perturb_prompt(prompt, tight_box(lesion), NoiseConfig(box=0.3), "a", (60, 60))
    assert other.mask is prompt.mask
    assert (other.box != prompt.box).any()


def test_whatever_the_mask_prompts_stay_prompts_of_the_image():
    for seed, kind in itertools.product(range(150), ("box+point", "box", "point")):
        mask = random_lesion(seed)
        rng = np.random.default_rng(seed)
        points = {"points": 3, "negative": True} if "point" in kind else {}
        expand = float(rng.uniform(-0.45, 2)) if "box" in kind else 0.0
        prompt = prompt_from_mask(mask, kind, expand, **points)
        noise = NoiseConfig(box=0.45, point=1.0, seed=seed)
        other = perturb_prompt(prompt, tight_box(mask), noise, "a", mask.shape)
        height, width = mask.shape
        assert other.parts == prompt.parts
        if other.box is not None:
            x0, y0, x1, y1 = other.box
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        if other.points is not None:
            assert (other.points >= 0).all() and (other.points <= (width - 1, height - 1)).all()
