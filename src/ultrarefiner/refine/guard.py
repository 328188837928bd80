"""Refined masks that are not trusted: the coarse one instead, or a blend; chosen on validation.

Rejection: a refined mask that is too unlike the coarse one is a failure of the refiner more often
than of the coarse model. Fusion: near the coarse outline the refiner decides, elsewhere the coarse
model. What "too unlike" and "near" mean is chosen by Dice on validation cases. No torch.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

from ultrarefiner.config.guard import LIMITS, GuardConfig, is_limit

GRID: dict[str, tuple] = {
    "min_iou": (None, 0.3, 0.5, 0.7),
    "area_ratio": (None, (0.3, 3.0), (0.5, 2.0)),
    "max_components": (None, 5),
    "band": (None, 0.5, 0.25),
}
"""What the limit of each check is chosen from, gentlest first; None: the check is off."""

MARGIN = 0.001
"""Mean Dice that a rule has to gain over the gentlest one to be taken: less is noise."""

KEPT, FUSED, REJECTED = "kept", "fused", "rejected"
"""How verdicts begin; what a mask was rejected for follows after ``: ``."""


@dataclass(frozen=True)
class GuardRule:
    """Which refined masks are trusted, and where. None: that check is off.

    Attributes:
        min_iou: Least IoU of the refined mask with the coarse one.
        area_ratio: Least and largest refined area / coarse area.
        max_components: Most 8-connected components of the refined mask.
        band: Refined pixels count within this distance of the coarse outline only, as a share of
            the radius of a disc of the coarse mask's area: so it means the same at any size of the
            image and of the lesion.
    """

    min_iou: float | None = None
    area_ratio: tuple[float, float] | None = None
    max_components: int | None = None
    band: float | None = None

    def __post_init__(self) -> None:
        for key, words in LIMITS.items():
            value = getattr(self, key)
            if value is not None and not is_limit(key, value):
                raise ValueError(f"{key} {value!r} is not {words}")

    @property
    def checks(self) -> int:
        """How many checks are on."""
        return sum(getattr(self, field.name) is not None for field in fields(self))


@dataclass(frozen=True)
class Comparison:
    """A refined mask beside the coarse one.

    Attributes:
        iou: Their IoU; 1 where both are empty.
        area_ratio: Refined area / coarse area; None where the coarse mask is empty.
        components: 8-connected components of the refined mask.
    """

    iou: float
    area_ratio: float | None
    components: int


@dataclass(frozen=True, eq=False)
class Guarded:
    """What a guard made of a refined mask.

    Attributes:
        mask: bool (H, W); the refined or the coarse mask itself where it is one of them.
        verdict: ``kept``: the refined mask as it is; ``fused``: the band changed pixels of it;
            ``rejected: iou``, ``rejected: area`` or ``rejected: components``: the coarse mask.
        compared: What the verdict relies on.
    """

    mask: np.ndarray
    verdict: str
    compared: Comparison


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two bool (H, W) masks; 1 where both are empty."""
    either = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / either if either else 1.0


def compare(coarse: np.ndarray, refined: np.ndarray) -> Comparison:
    """Compare two bool (H, W) masks.

    Raises:
        ValueError: They differ in shape, or are not bool.
    """
    for name, mask in (("coarse", coarse), ("refined", refined)):
        if mask.dtype != bool or mask.ndim != 2:
            raise ValueError(f"the {name} mask must be bool (H, W), got {mask.dtype} {mask.shape}")
    if coarse.shape != refined.shape:
        raise ValueError(f"the coarse mask is {coarse.shape}, the refined one {refined.shape}")
    area = int(np.count_nonzero(coarse))
    found, _ = cv2.connectedComponents(refined.astype(np.uint8), connectivity=8)
    return Comparison(
        iou=mask_iou(coarse, refined),
        area_ratio=int(np.count_nonzero(refined)) / area if area else None,
        components=found - 1,  # the background is counted
    )


def fuse_masks(coarse: np.ndarray, refined: np.ndarray, band: float) -> np.ndarray:
    """Return the refined mask near the coarse outline and the coarse one elsewhere.

    Args:
        coarse: bool (H, W), not empty.
        refined: bool (H, W).
        band: Width to either side of the outline, as a share of the radius of a disc of the coarse
            area. Less than half a pixel changes nothing.

    Returns:
        bool (H, W).
    """
    radius = math.sqrt(np.count_nonzero(coarse) / math.pi)
    return _fuse(coarse, refined, _outline_distance(coarse), band * radius)


def _outline_distance(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's distance to the outline of a mask that is not empty, float64 (H, W).

    That is the Euclidean distance to the nearest pixel of the other side, less half a pixel: the
    outline runs between two pixels. Beyond the image nothing is lesion, as for surface metrics.
    """
    inside = np.pad(mask, 1).astype(np.uint8)
    depth, beside = (
        cv2.distanceTransform(region, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        for region in (inside, 1 - inside)
    )
    # Squared distances between pixels are whole numbers: rounded, they are so on every machine.
    squared = np.rint(np.square(np.where(mask, depth, beside), dtype=np.float64))
    return np.sqrt(squared) - 0.5


def _fuse(
    coarse: np.ndarray, refined: np.ndarray, distance: np.ndarray, reach: float
) -> np.ndarray:
    return np.where(distance <= reach, refined, coarse)


def _rejection(compared: Comparison, rule: GuardRule) -> str | None:
    """Return the verdict of a mask that is rejected; None for one that is not."""
    if compared.area_ratio is None:
        return None
    if rule.min_iou is not None and compared.iou < rule.min_iou:
        return f"{REJECTED}: iou"
    if rule.area_ratio is not None:
        low, high = rule.area_ratio
        if not low <= compared.area_ratio <= high:
            return f"{REJECTED}: area"
    if rule.max_components is not None and compared.components > rule.max_components:
        return f"{REJECTED}: components"
    return None


def guard_mask(coarse: np.ndarray, refined: np.ndarray, rule: GuardRule) -> Guarded:
    """Apply a rule to a refined mask.

    The refined mask is checked as the refiner gave it: its IoU with the coarse one, its area, its
    components, in this order; the first check that fails gives the verdict. What passes is fused.

    An empty coarse mask leaves nothing to compare with: the refined mask stands, whatever the rule
    (what an empty mask prompts is the choice of ``on_empty``). An empty refined mask beside a
    coarse one that is not empty has an IoU and an area ratio of 0, so either check rejects it.

    Args:
        coarse: bool (H, W), the mask that the refined one was made from.
        refined: bool (H, W).
        rule: The rule.

    Returns:
        A mask that holds what both masks hold, and nothing that neither holds; the verdict.

    Raises:
        ValueError: The masks differ in shape, or are not bool.
    """
    compared = compare(coarse, refined)
    why = _rejection(compared, rule)
    if why is not None:
        return Guarded(coarse, why, compared)
    if rule.band is None or compared.area_ratio is None:
        return Guarded(refined, KEPT, compared)
    fused = fuse_masks(coarse, refined, rule.band)
    if np.array_equal(fused, refined):
        return Guarded(refined, KEPT, compared)
    return Guarded(fused, FUSED, compared)


def candidate_rules(config: GuardConfig) -> tuple[GuardRule, ...]:
    """Return the rules that a configuration leaves to choose from, gentlest first.

    Gentler is a rule of fewer checks; of as many, the one whose checks come first in ``GRID`` (a
    band changes more masks than a rejection does), then the one whose limits do. A limit that is
    given is the only one, and a check that is off stays so.
    """
    values = [
        grid if (given := getattr(config, key)) == "auto" else (given,)
        for key, grid in GRID.items()
    ]
    rules = (
        GuardRule(**dict(zip(GRID, chosen, strict=True))) for chosen in itertools.product(*values)
    )

    def strength(rule: GuardRule) -> tuple[int, list[bool]]:
        return rule.checks, [getattr(rule, key) is None for key in GRID]

    return tuple(sorted(rules, key=strength))  # of equals the product's order: gentlest first


CANDIDATES = candidate_rules(GuardConfig())
"""All rules that can be chosen, gentlest first: the first one leaves refined masks as they are."""


@dataclass(frozen=True)
class RuleScore:
    """How a rule did.

    Attributes:
        rule: The rule.
        dice: Mean Dice over the cases with a lesion; None without such a case.
        rejected: Cases with a lesion whose refined mask it rejects.
    """

    rule: GuardRule
    dice: float | None
    rejected: int


@dataclass(frozen=True)
class Choice:
    """The rule that was chosen, and over what.

    Attributes:
        rule: The rule.
        table: All candidates, in the order in which they were given.
        dice: Mean Dice with the rule; None without a case with a lesion, as the next.
        dice_off: Mean Dice of the refined masks as they are.
        cases: Cases with a lesion.
    """

    rule: GuardRule
    table: tuple[RuleScore, ...]
    dice: float | None
    dice_off: float | None
    cases: int


@dataclass(frozen=True)
class _Case:
    """What is kept of a case: the Dice of its coarse mask, and of its refined one by the band."""

    compared: Comparison
    coarse: float
    refined: dict[float | None, float]

    def dice(self, rule: GuardRule) -> float:
        rejected = _rejection(self.compared, rule) is not None
        return self.coarse if rejected else self.refined[rule.band]


def _dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice with a truth that is not empty."""
    both = int(np.count_nonzero(mask & truth))
    return 2 * both / int(np.count_nonzero(mask) + np.count_nonzero(truth))


def _case(
    coarse: np.ndarray, refined: np.ndarray, truth: np.ndarray, bands: Sequence[float]
) -> _Case:
    compared = compare(coarse, refined)
    if truth.shape != coarse.shape:
        raise ValueError(f"the true mask is {truth.shape}, the coarse one {coarse.shape}")
    found: dict[float | None, float] = dict.fromkeys([None, *bands], _dice(refined, truth))
    if bands and compared.area_ratio is not None:
        distance = _outline_distance(coarse)
        radius = math.sqrt(np.count_nonzero(coarse) / math.pi)
        for band in bands:
            found[band] = _dice(_fuse(coarse, refined, distance, band * radius), truth)
    return _Case(compared, _dice(coarse, truth), found)


def _mean(values: Sequence[float]) -> float | None:
    # Summed exactly, so that the order of the cases changes nothing.
    return math.fsum(values) / len(values) if values else None


def choose_rule(
    cases: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    candidates: Sequence[GuardRule] = CANDIDATES,
) -> Choice:
    """Choose the rule of the highest mean Dice over the cases with a lesion.

    Of equal rules the gentlest is taken; and any but the gentlest of all only if it gains at least
    ``MARGIN`` over that, for among many rules one is always a little better by chance. Without a
    lesion in the cases it is the gentlest.

    Args:
        cases: Coarse, refined and true mask of each case, bool (H, W); read once, one case at a
            time, and only numbers are kept.
        candidates: Rules to choose from, gentlest first.

    Returns:
        The rule and the scores of all candidates.

    Raises:
        ValueError: The masks of a case differ in shape, or are not bool; there is no candidate.
    """
    if not candidates:
        raise ValueError("there is no rule to choose from")
    bands = list(dict.fromkeys(rule.band for rule in candidates if rule.band is not None))
    seen = [_case(*masks, bands) for masks in cases if masks[2].any()]
    table = tuple(
        RuleScore(
            rule,
            _mean([case.dice(rule) for case in seen]),
            sum(_rejection(case.compared, rule) is not None for case in seen),
        )
        for rule in candidates
    )
    chosen = table[0]
    if seen:
        best = max(table, key=lambda row: row.dice)  # of equals the first
        if best.dice - chosen.dice >= MARGIN:
            chosen = best
    off = _mean([case.refined[None] for case in seen])
    return Choice(chosen.rule, table, chosen.dice, off, len(seen))


def joint_rule(rules: Sequence[GuardRule]) -> GuardRule:
    """Return one rule for a mask that the models of several folds made together.

    A check is on where it is on in the rules of more than half of the folds; its limit is then the
    median of theirs (of a range, of each end; of components, rounded up). The joint rule itself was
    tried on no case: each fold's validation chose its own, and no case is left to choose anew.

    Args:
        rules: Rule of each fold, in any order.

    Raises:
        ValueError: There is none.
    """
    if not rules:
        raise ValueError("there are no rules to join")

    on = {key: [getattr(rule, key) for rule in rules] for key in LIMITS}
    on = {key: [value for value in values if value is not None] for key, values in on.items()}
    limits: dict[str, Any] = {
        key: statistics.median(values)
        for key, values in on.items()
        if 2 * len(values) > len(rules) and key != "area_ratio"
    }
    if 2 * len(on["area_ratio"]) > len(rules):
        limits["area_ratio"] = tuple(map(statistics.median, zip(*on["area_ratio"], strict=True)))
    if "max_components" in limits:
        limits["max_components"] = math.ceil(limits["max_components"])
    return GuardRule(**limits)
