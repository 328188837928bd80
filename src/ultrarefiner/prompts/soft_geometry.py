"""Points and boxes of soft masks that gradients flow through: twins of `geometry` and `points`.

Each is made of two parts. *Where* it is comes from the mask cut at its level, by the very functions
that make prompts from finished masks; so it holds for any shape, and stands still while
probabilities move a little. *Where in the pixel* is a smooth function of the probabilities nearby,
and carries the gradient. Of a hard mask the second part vanishes.

The reference took both from moments of the whole mask. Every pixel has a say in those: 1 % of
background opens the box of a lesion of 120 pixels to most of an image of 1024, and the centroid of
a crescent lies outside of it. They are kept as ``formula="moments"``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ultrarefiner.errors import PromptError
from ultrarefiner.prompts import points
from ultrarefiner.prompts.geometry import THRESHOLD, deepest_point
from ultrarefiner.registry import Registry

FLAT = 0.01
"""Probability a pixel below which a slope counts as flat, so that no gradient is over 1 / FLAT."""

_SIGMAS = 2.5
_MARGIN = 5.0
_TINY = 1e-6
# Boxes nearer than this to a whole pixel are on it: sums in float32 are not exact.
_SNAP = 1e-3


def full_precision(p: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, or float64 if it is: half precision cannot tell 1023 from 1024."""
    return p if p.dtype == torch.float64 else p.float()


def checked(p: torch.Tensor) -> torch.Tensor:
    """Return a soft mask in full precision.

    Raises:
        PromptError: It is not (B, H, W).
    """
    if p.ndim != 3:
        raise PromptError(f"a soft mask is (B, H, W), got {tuple(p.shape)}; take out its channel")
    return full_precision(p)


def _axes(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixel indices of columns and rows, of p's type and device."""
    height, width = p.shape[-2:]
    columns = torch.arange(width, dtype=p.dtype, device=p.device)
    return columns, torch.arange(height, dtype=p.dtype, device=p.device)


def _cut(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where soft masks say lesion, bool (B, H, W), and the level (B, 1, 1) that says so.

    The level is 0.5. A mask that stays below has the power of two between a quarter and half of its
    peak: so a faint lesion has a place, and a small change of the peak does not move the level. An
    empty one is lesion everywhere, one that holds NaN nowhere.
    """
    p = p.detach()
    peak = p.amax((1, 2), keepdim=True)
    faint = torch.ldexp(torch.ones_like(peak), torch.frexp(peak).exponent - 2)
    level = torch.where(peak >= THRESHOLD, THRESHOLD, torch.where(peak > 0, faint, peak))
    return p >= level, level


def _on_host(lesion: torch.Tensor) -> np.ndarray:
    """Return lesions as NumPy.

    Raises:
        PromptError: One has no pixel: its mask holds NaN.
    """
    found = lesion.cpu().numpy()
    empty = np.flatnonzero(~found.any((1, 2)))
    if len(empty):
        raise PromptError(
            f"soft mask {int(empty[0])} of {len(found)} holds NaN: the model that made it has "
            "diverged; lower its learning rate"
        )
    return found


def _centroid(weight: torch.Tensor) -> torch.Tensor:
    x, y = _axes(weight)
    total = weight.sum((1, 2)) + _TINY
    return torch.stack([(weight.sum(1) * x).sum(1), (weight.sum(2) * y).sum(1)], 1) / total[:, None]


def _squared_centroid(p: torch.Tensor) -> torch.Tensor:
    return _centroid(p * p)


def _deepest(p: torch.Tensor) -> torch.Tensor:
    lesion, _ = _cut(p)
    centre = p.new_tensor([deepest_point(one) for one in _on_host(lesion)])
    (x, y), limit = _axes(p), p.new_tensor(p.shape[:0:-1])
    dx, dy = x - centre[:, :1], y - centre[:, 1:]
    apart = dx.square()[:, None, :] + dy.square()[:, :, None]
    to_border = torch.minimum(centre + 1, limit - centre).amin(1)
    to_others = apart.masked_fill(lesion, torch.inf).amin((1, 2)).sqrt()
    depth = torch.minimum(to_border, to_others)[:, None, None]
    disc = (1 - apart / (depth + 0.5).square()).relu()
    weight = disc * p
    total = weight.sum((1, 2)) + FLAT * disc.sum((1, 2))
    pull = torch.stack([(weight.sum(1) * dx).sum(1), (weight.sum(2) * dy).sum(1)], 1)
    return centre + pull / total[:, None]


POINTS: Registry[Callable[[torch.Tensor], torch.Tensor]] = Registry(
    "point formula", {"deepest": _deepest, "moments": _squared_centroid}
)


def soft_point(p: torch.Tensor, formula: str = "deepest") -> torch.Tensor:
    """Return a point inside each lesion.

    "deepest" is the twin of ``geometry.deepest_point``: its pixel c of the mask cut at 0.5, moved to
    the mean of the disc around it, ``c + sum(w p (x - c)) / (sum(w p) + 0.01 sum(w))``. The weight w
    falls as 1 - (r / R)^2 to the disc's radius R, the point's depth and half a pixel. Inside a hard
    lesion the disc is even, so that only its rim moves the point, less than a pixel; where the
    probability rises to one side, the point goes there.

    "moments" is the reference's centroid of p^2, which need not lie in the lesion.

    Args:
        p: (B, H, W), probability in [0, 1]. Where nothing reaches 0.5 the mask is cut below its
            peak; of an empty one the point is that of the whole image.
        formula: "deepest" or "moments".

    Returns:
        float32 (B, 2), x and y as pixel indices; float64 if p is.

    Raises:
        PromptError: p is not (B, H, W), or holds NaN.
        ConfigError: Unknown formula.
    """
    return POINTS[formula](checked(p))


def _ends(p: torch.Tensor, cut: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the edges before the first and after the last column of lesions, (B,) each."""
    (lesion, level), width = cut, p.shape[2]
    hit, column = lesion.any(1), torch.arange(width, device=p.device)
    first = torch.where(hit, column, width - 1).amin(1)
    last = torch.where(hit, column, 0).amax(1)
    at = torch.stack([first, last, first - 1, last + 1], 1)
    in_image = (at >= 0) & (at < width)
    taken = at.clamp(0, width - 1)[:, None].expand(-1, p.shape[1], -1)
    within, beyond = (p.gather(2, taken) * in_image[:, None]).split(2, 2)
    # How far inside the border of both pixels p crosses the level, for both edges: (B, H, 2).
    inward = (2 * level - within - beyond) / (2 * (within - beyond).clamp(min=FLAT))
    contact = lesion.gather(2, taken[..., :2]).to(p.dtype)
    start, end = ((inward * contact).sum(1) / contact.sum(1)).unbind(1)
    return (first + start).clamp(0, width), (last + 1 - end).clamp(0, width)


def _edges(p: torch.Tensor) -> torch.Tensor:
    lesion, level = _cut(p)
    x0, x1 = _ends(p, (lesion, level))
    y0, y1 = _ends(p.transpose(1, 2), (lesion.transpose(1, 2), level))
    return torch.stack([x0, y0, x1, y1], 1)


def moment_box(p: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Return the reference's box, mean +- 2.5 standard deviations, as far as it leaves the image.

    Args:
        p: (B, H, W), probability in [0, 1].
        margin: Pixels added on each side.

    Returns:
        float32 (B, 4), x0, y0, x1, y1 as pixel indices; float64 if p is.
    """
    p = checked(p)
    (x, y), mean = _axes(p), _centroid(p)
    total = p.sum((1, 2)) + _TINY
    along = (p.sum(1) * (x - mean[:, :1]).square()).sum(1)
    down = (p.sum(2) * (y - mean[:, 1:]).square()).sum(1)
    deviation = (torch.stack([along, down], 1) / total[:, None] + _TINY).sqrt()
    half = _SIGMAS * deviation + margin
    return torch.cat([mean - half, mean + half], 1)


def _reference_box(p: torch.Tensor) -> torch.Tensor:
    box, last = moment_box(p, _MARGIN), p.new_tensor(p.shape[:0:-1]) - 1
    return torch.cat([box[:, :2].clamp(min=0), torch.minimum(box[:, 2:], last)], 1)


BOXES: Registry[Callable[[torch.Tensor], torch.Tensor]] = Registry(
    "box formula", {"edges": _edges, "moments": _reference_box}
)


def soft_box(p: torch.Tensor, formula: str = "edges") -> torch.Tensor:
    """Return the box of each mask.

    "edges" is the twin of ``geometry.tight_box``: each edge is that of the mask cut at 0.5, within
    half a pixel. In every row that touches the edge, where p falls from a (at least 0.5) in the
    last column of the lesion to b (less) in the next, it crosses 0.5 at ``(a - 0.5) / (a - b)`` of
    the way; the edge is the mean of these crossings, which a hard mask has half way, on the border
    of the two pixels. So nothing that stays below 0.5 moves it, be it spread over the whole image;
    and to raise p on either side of an edge always moves the edge out. The image ends in zeros. A
    slope below ``FLAT`` counts as ``FLAT``.

    "moments" is the reference's mean +- 2.5 standard deviations and 5 pixels, to the last pixel.

    Args:
        p: (B, H, W), probability in [0, 1]. Where nothing reaches 0.5 the mask is cut below its
            peak; the box of an empty one is the image.
        formula: "edges" or "moments".

    Returns:
        float32 (B, 4), half-open x0, y0, x1, y1 in pixels, within the image; float64 if p is. Of
        a mask that holds NaN it is NaN.

    Raises:
        PromptError: p is not (B, H, W).
        ConfigError: Unknown formula.
    """
    return BOXES[formula](checked(p))


def _corner_pixel(outside: np.ndarray, box: tuple[int, int, int, int]) -> tuple[int, int]:
    height, width = outside.shape
    x0, y0, x1, y1 = box
    around = max(x0 - 1, 0), max(y0 - 1, 0), min(x1 + 1, width), min(y1 + 1, height)
    found = points.negative_point(box, outside) or points.negative_point(around, outside)
    return found or (x0, y0)


def _outside(p: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    outside = ~_on_host(_cut(p)[0])
    last = np.array(p.shape[:0:-1]) - 1
    given = box.detach().cpu().double().numpy()
    low = np.clip(np.floor(given[:, :2] + _SNAP), 0, last)
    high = np.clip(np.ceil(given[:, 2:] - _SNAP), low + 1, last + 1)
    corners = np.concatenate([low, high], 1).astype(int).tolist()
    found = np.array([_corner_pixel(*pair) for pair in zip(outside, corners, strict=True)])
    low, last_of_box, pixel = (box.new_tensor(part) for part in (low, high - 1, found))
    # A pixel on a side of the box moves with the side, one between them is where it is.
    with_start, with_end = box[:, :2] + (pixel - low), box[:, 2:] - 1 + (pixel - last_of_box)
    beside = torch.where(pixel >= last_of_box, with_end, pixel)
    beside = torch.where(pixel <= low, with_start, beside)
    return torch.minimum(beside.clamp(min=0), box.new_tensor(last))


def _farthest_corner(p: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    corners = box[:, [0, 1, 2, 1, 0, 3, 2, 3]].view(-1, 4, 2)
    apart = (corners - _squared_centroid(p)[:, None]).detach().norm(dim=2)
    return corners[torch.arange(len(box), device=box.device), apart.argmax(1)]


NEGATIVES: Registry[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = Registry(
    "negative point formula", {"outside": _outside, "moments": _farthest_corner}
)


def negative_point(p: torch.Tensor, box: torch.Tensor, formula: str = "outside") -> torch.Tensor:
    """Return a point beside each lesion: a corner of a box that is no lesion.

    "outside" is the twin of ``points.negative_point``: the corner pixel farthest from every lesion
    of the mask cut at 0.5, of equals the first in reading order; where all corners are lesion, the
    pixel of the box farthest from it; and where all of the box is, as that of a rectangle is, the
    same of the pixels around it. The choice is hard. The gradient flows to the sides of the box on
    which the pixel lies, and through a soft box to p.

    "moments" is the reference's corner farthest from the centroid of p^2, which may be lesion.

    Args:
        p: (B, H, W), probability in [0, 1].
        box: (B, 4), half-open x0, y0, x1, y1 in pixels, within the image.
        formula: "outside" or "moments".

    Returns:
        float32 (B, 2), x and y as pixel indices; float64 if the box is. Where lesion fills all of
        that, and nothing is beside it, a corner of the box.

    Raises:
        PromptError: p is not (B, H, W), or holds NaN.
        ConfigError: Unknown formula.
    """
    return NEGATIVES[formula](checked(p), full_precision(box))
