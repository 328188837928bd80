"""Guards the guard: what it rejects and blends, and that its choice is what it says."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mask_sets import disc, mask_sets
from scipy import ndimage

from tests.lesions import RECTANGLE, drawn
from ultrarefiner.config import parse_section
from ultrarefiner.config.guard import GuardConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.refine.guard import (
    GuardRule,
    choose_rule,
    compare,
    fuse_masks,
    guard_mask,
    joint_rule,
    mask_iou,
)

OFF = GuardRule()
NOTHING = np.zeros((8, 8), bool)


RULES = st.builds(
    GuardRule,
    min_iou=st.none() | st.floats(0.05, 1),
    area_ratio=st.none() | st.tuples(st.floats(0.1, 0.9), st.floats(1, 5)),
    max_components=st.none() | st.integers(1, 6),
    band=st.none() | st.floats(0.01, 3),
)


# What it does to one mask


@given(mask_sets(), RULES)
def test_what_both_masks_hold_stays_and_what_neither_holds_never_comes(masks, rule):
    coarse, refined = masks
    found = guard_mask(coarse, refined, rule).mask
    assert found.dtype == bool
    assert found.shape == coarse.shape
    assert not (found & ~(coarse | refined)).any()
    assert found[coarse & refined].all()


@given(mask_sets())
def test_a_rule_without_checks_leaves_the_refined_mask(masks):
    coarse, refined = masks
    found = guard_mask(coarse, refined, OFF)
    assert np.array_equal(found.mask, refined)
    assert found.verdict == "kept"


@given(mask_sets(), RULES)
def test_the_verdict_tells_what_became_of_the_mask(masks, rule):
    coarse, refined = masks
    found = guard_mask(coarse, refined, rule)
    reasons = []
    if coarse.any():
        both, either = (coarse & refined).sum(), (coarse | refined).sum()
        if rule.min_iou is not None and both / either < rule.min_iou:
            reasons.append("iou")
        ratio = refined.sum() / coarse.sum()
        if rule.area_ratio and (ratio < rule.area_ratio[0] or ratio > rule.area_ratio[1]):
            reasons.append("area")
        pieces = ndimage.label(refined, np.ones((3, 3)))[1]
        if rule.max_components is not None and pieces > rule.max_components:
            reasons.append("components")
    if reasons:
        assert found.verdict == f"rejected: {reasons[0]}"
        assert np.array_equal(found.mask, coarse)
    elif np.array_equal(found.mask, refined):
        assert found.verdict == "kept"
    else:
        assert found.verdict == "fused"
        assert rule.band is not None
        assert np.array_equal(found.mask, fuse_masks(coarse, refined, rule.band))


@given(mask_sets(), RULES)
def test_a_mask_like_the_coarse_one_is_never_rejected_for_it(masks, rule):
    coarse = masks[0]
    found = guard_mask(coarse, coarse.copy(), replace(rule, max_components=None))
    assert found.verdict == "kept"
    assert np.array_equal(found.mask, coarse)


@given(mask_sets())
def test_a_band_over_everything_is_the_refined_mask(masks):
    coarse, refined = masks
    found = guard_mask(coarse, refined, GuardRule(band=1e9))
    assert np.array_equal(found.mask, refined)
    assert found.verdict == "kept"


@given(mask_sets())
def test_a_band_of_almost_nothing_is_the_coarse_mask_but_for_its_outline(masks):
    coarse, refined = masks
    if not coarse.any():
        return
    radius = math.sqrt(coarse.sum() / math.pi)
    assert np.array_equal(fuse_masks(coarse, refined, 0.49 / radius), coarse)
    cross = ndimage.generate_binary_structure(2, 1)
    edge = ndimage.binary_dilation(coarse, cross) & ~ndimage.binary_erosion(coarse, cross)
    expected = np.where(edge, refined, coarse)
    assert np.array_equal(fuse_masks(coarse, refined, 0.51 / radius), expected)


@given(mask_sets(), st.floats(0.01, 3), st.floats(0.01, 3))
def test_a_wider_band_takes_over_more_of_the_refined_mask(masks, one, other):
    coarse, refined = masks
    if not coarse.any():
        return
    narrow, wide = sorted([one, other])
    changed = [fuse_masks(coarse, refined, band) ^ coarse for band in (narrow, wide)]
    assert not (changed[0] & ~changed[1]).any()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_band_is_a_share_of_the_lesions_radius_at_any_size(size):
    coarse = disc((160 * size, 200 * size), (80 * size, 100 * size), 40 * size)
    everywhere = np.ones_like(coarse)
    for band in (0.25, 0.5):
        grown = fuse_masks(coarse, everywhere, band)
        shrunk = fuse_masks(coarse, ~everywhere, band)
        # A disc of 40 that may grow or shrink by a share of 40.
        assert grown.sum() == pytest.approx(math.pi * (40 * size * (1 + band)) ** 2, rel=0.02)
        assert shrunk.sum() == pytest.approx(math.pi * (40 * size * (1 - band)) ** 2, rel=0.03)


def test_beyond_the_image_is_outside():
    coarse = np.ones((20, 30), bool)
    radius = math.sqrt(600 / math.pi)
    found = fuse_masks(coarse, ~coarse, 3.6 / radius)
    expected = np.zeros_like(coarse)
    expected[4:-4, 4:-4] = True
    assert np.array_equal(found, expected)


def test_the_first_check_that_fails_is_named():
    crumbs = drawn("#.#.#.#.", *["........"] * 7)
    all_on = GuardRule(min_iou=0.5, area_ratio=(0.3, 3.0), max_components=3)
    for rule, verdict in (
        (all_on, "rejected: iou"),
        (replace(all_on, min_iou=None), "rejected: area"),
        (replace(all_on, min_iou=None, area_ratio=None), "rejected: components"),
        (replace(all_on, min_iou=None, area_ratio=None, max_components=4), "kept"),
    ):
        found = guard_mask(RECTANGLE, crumbs, rule)
        assert found.verdict == verdict
        assert np.array_equal(found.mask, crumbs if verdict == "kept" else RECTANGLE)
        assert (found.compared.iou, found.compared.components) == (0, 4)
        assert found.compared.area_ratio == 4 / 15


def test_a_limit_itself_is_within():
    coarse, refined = drawn("####...."), drawn("..######")
    assert compare(coarse, refined).iou == 2 / 8
    assert guard_mask(coarse, refined, GuardRule(min_iou=0.25)).verdict == "kept"
    assert guard_mask(coarse, refined, GuardRule(min_iou=0.26)).verdict == "rejected: iou"
    assert guard_mask(coarse, refined, GuardRule(area_ratio=(0.5, 1.5))).verdict == "kept"
    assert guard_mask(coarse, refined, GuardRule(area_ratio=(0.5, 1.4))).verdict == "rejected: area"
    assert guard_mask(refined, coarse, GuardRule(area_ratio=(0.7, 3.0))).verdict == "rejected: area"
    assert guard_mask(coarse, drawn("##......"), GuardRule(area_ratio=(0.5, 2.0))).verdict == "kept"
    pieces = drawn("#.#.....", ".#......", "....##.#")
    whole = np.ones_like(pieces)
    assert guard_mask(whole, pieces, GuardRule(max_components=3)).verdict == "kept"
    two = GuardRule(max_components=2)
    assert guard_mask(whole, pieces, two).verdict == "rejected: components"


def test_empty_masks():
    strict = GuardRule(min_iou=0.7, area_ratio=(0.5, 2.0), max_components=1, band=0.25)
    # With nothing to compare, the refined mask stands, crumbs and all.
    crumbs = drawn("#.#.....", *["........"] * 7)
    for refined in (NOTHING, RECTANGLE, crumbs):
        found = guard_mask(NOTHING, refined, strict)
        assert found.verdict == "kept"
        assert np.array_equal(found.mask, refined)
        assert found.compared.area_ratio is None
    assert compare(NOTHING, NOTHING).iou == 1
    for rule, verdict in (
        (GuardRule(min_iou=0.3), "rejected: iou"),
        (GuardRule(area_ratio=(0.3, 3.0)), "rejected: area"),
        (GuardRule(max_components=1), "kept"),
        (GuardRule(band=0.5), "fused"),
    ):
        assert guard_mask(RECTANGLE, NOTHING, rule).verdict == verdict


def test_masks_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"coarse mask is \(8, 8\), the refined one \(1, 8\)"):
        guard_mask(RECTANGLE, drawn("........"), OFF)
    with pytest.raises(ValueError, match=r"refined mask must be bool .*uint8"):
        guard_mask(RECTANGLE, RECTANGLE.astype(np.uint8), OFF)
    with pytest.raises(ValueError, match=r"true mask is \(1, 8\)"):
        choose_rule([(RECTANGLE, RECTANGLE, drawn("#......."))])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("min_iou", 0), ("min_iou", 1.5), ("area_ratio", (0, 2)), ("area_ratio", (1.2, 3))),
        *(("area_ratio", (0.3, 0.9)), ("area_ratio", (1, 1)), ("area_ratio", 2)),
        *(("max_components", 0), ("max_components", 2.5), ("band", 0), ("band", math.inf)),
        *(("band", True), ("band", "0.5")),
    ],
)
def test_limits_that_make_no_sense_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        GuardRule(**{key: value})
    with pytest.raises(ConfigError, match=rf"{key}: .* nor null, which switches the check off"):
        parse_section(GuardConfig, {key: value})


# One rule of several


def test_a_check_of_most_folds_is_on_at_their_median():
    ratio = (0.3, 3.0)
    rules = [
        GuardRule(min_iou=0.3, area_ratio=ratio, max_components=5, band=0.25),
        GuardRule(min_iou=0.7, area_ratio=(0.5, 2.0), max_components=8),
        GuardRule(min_iou=0.5, area_ratio=ratio),
        GuardRule(area_ratio=(0.5, 2.0), band=0.5),
    ]
    # Two of four is not most: components and band are off.
    assert joint_rule(rules) == GuardRule(min_iou=0.5, area_ratio=(0.4, 2.5))
    assert joint_rule(rules[:2]) == GuardRule(min_iou=0.5, area_ratio=(0.4, 2.5), max_components=7)
    assert joint_rule([OFF, OFF, rules[0]]) == joint_rule([OFF, rules[0]]) == OFF
    with pytest.raises(ValueError, match="no rules"):
        joint_rule([])


@given(st.lists(RULES, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_joint_rule_lies_among_its_rules(rules, random):
    joint = joint_rule(rules)
    turned = rules.copy()
    random.shuffle(turned)
    assert joint_rule(turned) == joint
    assert joint_rule([rules[0]] * len(rules)) == rules[0]
    for key in ("min_iou", "max_components", "band"):
        values = [value for rule in rules if (value := getattr(rule, key)) is not None]
        found = getattr(joint, key)
        assert (found is not None) == (2 * len(values) > len(rules))
        assert found is None or min(values) <= found <= max(values)


@given(mask_sets())
def test_the_overlap_is_symmetric_and_one_only_for_equals(masks):
    one, other = masks
    assert mask_iou(one, other) == mask_iou(other, one)
    assert (mask_iou(one, other) == 1) == np.array_equal(one, other)


def test_the_guard_does_not_import_torch():
    code = "import sys, ultrarefiner.refine.guard_jobs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
