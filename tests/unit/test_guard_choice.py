"""Guards the choice of the guard: its scores are those of every mask guarded, and noise is none."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mask_sets import disc, mask_sets

from tests.lesions import RECTANGLE
from ultrarefiner.config import parse_section
from ultrarefiner.config.guard import GuardConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.refine.guard import (
    CANDIDATES,
    MARGIN,
    GuardRule,
    candidate_rules,
    choose_rule,
    guard_mask,
)

OFF = GuardRule()
NOTHING = np.zeros((8, 8), bool)


def brute_force(cases, rule):
    """Return the mean Dice of a rule, by guarding every mask."""
    dice = []
    for coarse, refined, truth in cases:
        if truth.any():
            mask = guard_mask(coarse, refined, rule).mask
            dice.append(2 * int((mask & truth).sum()) / int(mask.sum() + truth.sum()))
    return math.fsum(dice) / len(dice) if dice else None


@settings(max_examples=40)
@given(st.lists(mask_sets(count=3), max_size=5))
@example([(NOTHING, RECTANGLE, RECTANGLE), (RECTANGLE, NOTHING, RECTANGLE)])
def test_the_scores_are_those_of_guarding_every_mask(cases):
    choice = choose_rule(iter(cases))
    assert [row.rule for row in choice.table] == list(CANDIDATES)
    for row in choice.table:
        assert row.dice == brute_force(cases, row.rule)
        verdicts = [guard_mask(*case[:2], row.rule).verdict for case in cases if case[2].any()]
        assert row.rejected == sum(verdict.startswith("rejected") for verdict in verdicts)
    assert choice.cases == sum(truth.any() for _, _, truth in cases)
    assert choice.dice == brute_force(cases, choice.rule)
    assert choice.dice_off == brute_force(cases, OFF)
    if choice.cases:
        scores = [row.dice for row in choice.table]
        best = max(scores)
        expected = scores.index(best) if best - scores[0] >= MARGIN else 0
        assert choice.rule == CANDIDATES[expected]
    else:
        assert choice.rule == OFF


@settings(max_examples=40)
@given(st.lists(mask_sets(count=3), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_the_cases_changes_nothing(cases, random):
    turned = cases.copy()
    random.shuffle(turned)
    assert choose_rule(cases) == choose_rule(turned)


def study(garbage):
    """Return cases of good coarse and better refined masks, of which some are garbage."""
    cases = []
    for number in range(12):
        truth = disc((64, 80), (30 + number % 5, 40), 12 + number % 4)
        coarse = np.roll(truth, 2, axis=1)
        refined = np.roll(truth, 1, axis=0)
        if number in garbage:
            refined = ~truth
        cases.append((coarse, refined, truth))
    return cases


def test_garbage_is_rejected_and_the_mean_improves():
    cases = study(garbage={3, 7})
    choice = choose_rule(cases)
    assert choice.dice > choice.dice_off + 0.1
    verdicts = [guard_mask(*case[:2], choice.rule).verdict for case in cases]
    assert [number for number, one in enumerate(verdicts) if one.startswith("rejected")] == [3, 7]
    # One check is enough, and of those that do the first is the gentlest.
    assert choice.rule == GuardRule(min_iou=0.3)


def test_what_is_good_is_left_alone():
    choice = choose_rule(study(garbage=()))
    assert choice.rule == OFF
    assert choice.dice == choice.dice_off
    assert choice.table[0].rejected == 0


def test_a_rule_has_to_gain_more_than_noise():
    truth = np.zeros((50, 100), bool)
    truth[10:40, 10:90] = True
    coarse = truth.copy()

    def choose(missing):
        refined = truth.copy()
        refined[10, 10 : 10 + missing] = False
        refined[2, 2:14:2] = True  # six specks: with the lesion too many components
        choice = choose_rule([(coarse, refined, truth), *[(coarse, coarse, truth)] * 4])
        return choice.rule, max(row.dice for row in choice.table) - choice.dice_off

    rule, gain = choose(missing=40)
    assert gain > MARGIN
    assert rule == GuardRule(max_components=5)
    rule, gain = choose(missing=10)
    assert 0 < gain < MARGIN
    assert rule == OFF


def test_cases_without_a_lesion_decide_nothing():
    cases = study(garbage={3})
    normal = (disc((64, 80), (30, 40), 9), disc((64, 80), (9, 9), 5), np.zeros((64, 80), bool))
    assert choose_rule([*cases, normal]) == choose_rule(cases)
    alone = choose_rule([normal])
    assert (alone.rule, alone.dice, alone.dice_off, alone.cases) == (OFF, None, None, 0)


def test_masks_are_not_held():
    alive = []

    def stream():
        for masks in study(garbage={3}):
            fresh = [mask.copy() for mask in masks]
            alive.append([weakref.ref(mask) for mask in fresh])
            yield tuple(fresh)
            del fresh
            for earlier in alive[:-1]:
                assert all(reference() is None for reference in earlier)

    assert choose_rule(stream()).cases == 12


# What there is to choose from


def test_the_candidates_are_a_grid_with_the_gentlest_first():
    assert len(set(CANDIDATES)) == len(CANDIDATES) == 4 * 3 * 2 * 3
    assert CANDIDATES[0] == OFF
    checks = [rule.checks for rule in CANDIDATES]
    assert checks == sorted(checks)
    alone = [rule for rule in CANDIDATES if rule.checks == 1]
    assert alone == [
        *(GuardRule(min_iou=least) for least in (0.3, 0.5, 0.7)),
        *(GuardRule(area_ratio=ratio) for ratio in ((0.3, 3.0), (0.5, 2.0))),
        GuardRule(max_components=5),
        *(GuardRule(band=band) for band in (0.5, 0.25)),
    ]


def test_the_configuration_leaves_less_to_choose():
    fixed = {"min_iou": 0.4, "area_ratio": [0.2, 5], "max_components": None, "band": None}
    config = parse_section(GuardConfig, fixed)
    assert candidate_rules(config) == (GuardRule(min_iou=0.4, area_ratio=(0.2, 5.0)),)
    half = candidate_rules(GuardConfig(min_iou=None, max_components=2, band=None))
    assert half == tuple(
        GuardRule(area_ratio=ratio, max_components=2) for ratio in (None, (0.3, 3.0), (0.5, 2.0))
    )
    # The gentlest that is left is what others have to beat, even where no check at all is better.
    choice = choose_rule(study(garbage=()), half)
    assert choice.rule == half[0]
    assert choice.dice == choice.dice_off


def test_the_keys_of_the_configuration():
    assert GuardConfig() == GuardConfig(**dict.fromkeys(GuardConfig.model_fields, "auto"))
    assert GuardConfig(min_iou=1).min_iou == 1.0
    with pytest.raises(
        ConfigError, match="every check is off, so nothing is guarded; switch one on"
    ):
        parse_section(GuardConfig, dict.fromkeys(GuardConfig.model_fields))
    with pytest.raises(ConfigError, match=r"min_iou: min_iou False is neither a number above 0"):
        parse_section(GuardConfig, {"min_iou": False})  # what YAML makes of `off`
    with pytest.raises(ConfigError, match=r"unknown key.*Did you mean 'min_iou'"):
        parse_section(GuardConfig, {"min_iu": 0.5})
    with pytest.raises(
        ConfigError, match=r"band 'automatic' is neither a number above 0, nor `auto`"
    ):
        parse_section(GuardConfig, {"band": "automatic"})
