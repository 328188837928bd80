"""Draw synthetic breast ultrasound: layered tissue, lesions, shadows, speckle.

The image is built as a scanner sees it: a map of mean echo strength in dB (tissue layers, fibres,
lesions, what they do to the beam below), a speckle field of which the map sets the local strength,
and logarithmic compression. Speckle is fully developed: the magnitude of a complex Gaussian
field correlated by the point spread function (R. F. Wagner et al., "Statistics of speckle in
ultrasound B-scans", 1983), wider across the beam than along it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

_REFERENCE_HEIGHT = 192.0
"""Image height in pixels for which lengths in pixels below are given; others scale with it."""


class Phantom(NamedTuple):
    """A synthetic image: uint8 (H, W) gray, and one bool (H, W) mask for each lesion."""

    image: np.ndarray
    lesions: tuple[np.ndarray, ...]

    @property
    def mask(self) -> np.ndarray:
        """All lesions together, bool (H, W)."""
        return np.any(self.lesions, axis=0) if self.lesions else np.zeros(self.image.shape, bool)


@dataclass
class _Scene:
    """The drawing in progress: random numbers, size in pixels, echo strength in dB."""

    rng: np.random.Generator
    height: int
    width: int
    echo: np.ndarray = field(init=False)
    rows: np.ndarray = field(init=False)
    columns: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.echo = np.zeros((self.height, self.width), np.float32)
        self.rows, self.columns = np.mgrid[0 : self.height, 0 : self.width].astype(np.float32)

    @property
    def unit(self) -> float:
        """Pixels for one pixel at the reference height."""
        return self.height / _REFERENCE_HEIGHT

    def uniform(self, low: float, high: float) -> float:
        """Return a random number between two."""
        return float(self.rng.uniform(low, high))

    def noise(self, cell_y: float, cell_x: float) -> np.ndarray:
        """Return smooth noise (H, W), mean 0 and variance about 1, with cells of a size in pixels."""
        grid = (
            max(4, int(np.ceil(self.height / cell_y)) + 1),
            max(4, int(np.ceil(self.width / cell_x)) + 1),
        )
        coarse = self.rng.standard_normal(grid).astype(np.float32)
        smooth = cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        return smooth / max(float(smooth.std()), 1e-3)


def draw_phantom(
    seed: int,
    size: int,
    malignant: bool,
    *,
    width: int | None = None,
    at_border: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image with one lesion.

    Args:
        seed: Everything follows from it and the other arguments.
        size: Typical height in pixels; the height is within 8 % of it, the width 1.1 to 1.4
            times the height.
        malignant: A lesion that is spiculated and tall and casts a shadow, instead of a smooth,
            wide one that brightens what is below.
        width: Exact width; the height is then exactly `size`.
        at_border: Let the lesion run out of the image at one side.

    Returns:
        uint8 (H, W) gray image and bool (H, W) mask.
    """
    phantom = draw_scene(seed, size, malignant, width=width, at_border=at_border)
    return phantom.image, phantom.mask


def draw_scene(
    seed: int,
    size: int,
    malignant: bool,
    *,
    lesions: int = 1,
    width: int | None = None,
    at_border: bool = False,
    normal_size: bool = False,
) -> Phantom:
    """Draw an image with any number of lesions that do not touch; see `draw_phantom`.

    Args:
        seed: Seed of the image.
        size: Typical height in pixels.
        malignant: Kind of the lesions.
        lesions: How many; 0 for normal tissue.
        width: Exact width; the height is then exactly `size`.
        at_border: Let the (first) lesion run out of the image.
        normal_size: Draw neither very small nor very large lesions.
    """
    rng = np.random.default_rng(seed)
    height = size if width is not None else round(size * rng.uniform(0.92, 1.08))
    width = round(height * rng.uniform(1.1, 1.4)) if width is None else width
    scene = _Scene(rng, height, width)
    _draw_tissue(scene)
    _draw_confusers(scene)
    masks: list[np.ndarray] = []
    for index in range(lesions):
        mask = _place_lesion(
            scene, malignant, masks, lesions, at_border and index == 0, normal_size
        )
        _draw_lesion(scene, mask, malignant)
        masks.append(mask)
    return Phantom(_form_image(scene), tuple(masks))


def _draw_tissue(scene: _Scene) -> None:
    """Draw skin, fat, gland, muscle and chest wall with their wavy interfaces."""
    rng, unit, uniform = scene.rng, scene.unit, scene.uniform
    height = scene.height
    bend = scene.noise(height * 0.45, height * 0.6) * uniform(0.012, 0.03)
    bend += scene.noise(height * 0.16, height * 0.3) * uniform(0.004, 0.012)
    depth = scene.rows / height
    # The skin lies flat under the probe; deeper layers bend more.
    depth = depth + bend * np.minimum(depth / 0.25, 1.0)
    warp_rows = depth * height

    def fibres(cell_y: float, cell_x: float, sharpness: float) -> np.ndarray:
        """Return thin bright curves in [0, 1]: the zero crossings of noise that follows layers."""
        noise = scene.noise(cell_y * unit, cell_x * unit)
        noise = cv2.remap(
            noise, scene.columns, warp_rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        strength = np.clip(scene.noise(20 * unit, 30 * unit) * 0.5 + 0.5, 0.0, 1.0)
        return np.exp(-((noise * sharpness) ** 2)) * strength

    fat_end = uniform(0.13, 0.27)
    muscle_start = uniform(0.62, 0.80)
    muscle_end = muscle_start + uniform(0.10, 0.20)
    fatty = uniform(0.0, 1.0)

    def below(start: float, softness: float = 0.008) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-np.clip((depth - start) / softness, -30, 30)))

    def line(at: float, thickness: float) -> np.ndarray:
        return np.exp(-(((depth - at) / thickness) ** 2))

    broken = np.clip(scene.noise(30 * unit, 25 * unit) * 0.4 + 0.7, 0.15, 1.2)
    septa = fibres(uniform(13, 20), uniform(30, 50), uniform(3.5, 5.0))
    streaks = fibres(uniform(5, 8), uniform(35, 70), uniform(2.0, 3.0))
    stripes = fibres(uniform(4, 6), uniform(60, 120), uniform(1.4, 2.2))
    fat = -10.0 + 12.0 * septa + 1.5 * scene.noise(12 * unit, 25 * unit)
    gland = (
        -3.0
        - 4.0 * fatty
        + uniform(7.0, 11.0) * streaks
        + 6.0 * fatty * septa
        + 2.2 * scene.noise(30 * unit, 45 * unit)
        + 1.6 * scene.noise(7 * unit, 14 * unit)
    )
    muscle = -10.0 + 11.0 * stripes + 1.2 * scene.noise(10 * unit, 50 * unit)
    wall = -15.0 + 2.5 * scene.noise(15 * unit, 40 * unit) + 5.0 * stripes
    in_gland, in_muscle, in_wall = below(fat_end), below(muscle_start), below(muscle_end, 0.012)
    echo = fat * (1 - in_gland) + gland * in_gland
    echo = echo * (1 - in_muscle) + muscle * in_muscle
    echo = echo * (1 - in_wall) + wall * in_wall
    skin = uniform(0.03, 0.055)
    in_skin = 1 - below(skin, 0.004)
    echo = echo * (1 - in_skin) + 0.5 * in_skin
    echo += 7.0 * line(0.008, 0.006) + 7.0 * line(skin, 0.006)
    echo += 6.0 * line(fat_end, 0.007) * broken
    echo += 11.0 * line(muscle_start, 0.009) * broken
    echo += 12.0 * line(muscle_end, 0.010) * broken[:, ::-1]
    if rng.random() < 0.35:
        _draw_rib(scene, echo, muscle_end)
    scene.echo += echo.astype(np.float32)


def _draw_rib(scene: _Scene, echo: np.ndarray, depth: float) -> None:
    """Draw a bright arc with nothing below it."""
    center = scene.uniform(0.0, 1.0) * scene.width
    half = scene.uniform(0.15, 0.3) * scene.width
    offset = (scene.columns - center) / half
    arc = (depth + 0.06 * offset**2) * scene.height
    inside = np.clip((1.0 - np.abs(offset)) / 0.15, 0.0, 1.0)
    echo += 12.0 * inside * np.exp(-(((scene.rows - arc) / (2.2 * scene.unit)) ** 2))
    echo -= 15.0 * inside * np.clip((scene.rows - arc) / (8.0 * scene.unit), 0.0, 1.0)


def _draw_confusers(scene: _Scene) -> None:
    """Draw what a network may take for a lesion: fat lobules, dark patches, shadows."""
    rng, unit, uniform = scene.rng, scene.unit, scene.uniform
    for _ in range(int(rng.integers(1, 5))):
        tilt = uniform(-0.35, 0.35)
        x = scene.columns - uniform(0.05, 0.95) * scene.width
        y = scene.rows - uniform(0.2, 0.75) * scene.height
        along, across = x + tilt * y, y - tilt * x
        long = uniform(8, 30) * unit
        radius = np.hypot(along / long, across / (long * uniform(0.3, 0.75)))
        radius += 0.12 * scene.noise(18 * unit, 18 * unit)
        edge = uniform(0.06, 0.30)
        scene.echo -= uniform(6.0, 13.0) / (1.0 + np.exp(np.clip((radius - 1) / edge, -30, 30)))
    for _ in range(int(rng.integers(0, 3))):
        # Poor contact, ligaments and the nipple shade a column of the image.
        center = uniform(0.0, 1.0) * scene.width + uniform(-0.2, 0.2) * scene.rows
        band = np.exp(-(((scene.columns - center) / (uniform(5, 22) * unit)) ** 2))
        start = uniform(0.0, 0.5) * scene.height
        scene.echo -= uniform(3.0, 9.0) * band * np.clip((scene.rows - start) / (25 * unit), 0, 1)
    if rng.random() < 0.25:
        side = rng.random() < 0.5
        from_edge = scene.columns if side else scene.width - scene.columns
        scene.echo -= uniform(6, 16) * np.exp(-((from_edge / (uniform(8, 25) * unit)) ** 2))


def _outline(scene: _Scene, malignant: bool) -> tuple[np.ndarray, float]:
    """Return a lesion's radius over 1440 angles, with area pi, and its width over its height."""
    rng, uniform = scene.rng, scene.uniform
    angle = np.linspace(0.0, 2.0 * np.pi, 1440, endpoint=False)
    radius = np.ones_like(angle)
    if malignant:
        for order in range(2, 13):
            amplitude = rng.normal(0.0, 0.20 / order**0.75)
            radius += amplitude * np.cos(order * angle + uniform(0, 2 * np.pi))
        for _ in range(int(rng.integers(2, 8))):
            turn = np.angle(np.exp(1j * (angle - uniform(0, 2 * np.pi))))
            radius += uniform(0.12, 0.40) * np.exp(-np.abs(turn) / uniform(0.06, 0.14))
        aspect = uniform(0.7, 1.15)
    else:
        for order in range(2, 8):
            amplitude = rng.normal(0.0, 0.11 / order)
            radius += amplitude * np.cos(order * angle + uniform(0, 2 * np.pi))
        aspect = uniform(1.25, 2.1)
    radius = np.maximum(radius, 0.35)
    return radius / np.sqrt(np.mean(radius**2)), aspect


def _place_lesion(
    scene: _Scene,
    malignant: bool,
    others: list[np.ndarray],
    count: int,
    at_border: bool,
    normal_size: bool,
) -> np.ndarray:
    """Return the mask of a lesion at a free place."""
    uniform = scene.uniform
    small, large = (0.10, 0.2) if normal_size else (0.07, 0.30)
    # Several lesions share the image, or there would be no free place for the last one.
    shrink = 1.0 if count == 1 else 0.55
    size = shrink * scene.height * float(np.exp(uniform(np.log(small), np.log(large))))
    profile, aspect = _outline(scene, malignant)
    tilt = uniform(-0.25, 0.25) if malignant else uniform(-0.2, 0.2)
    taken = np.zeros((scene.height, scene.width), np.uint8)
    for other in others:
        taken |= other.astype(np.uint8)
    margin = 2 * round(5 * scene.unit) + 1
    taken = cv2.dilate(taken, np.ones((margin, margin), np.uint8)) > 0
    mask = np.zeros(taken.shape, bool)
    for attempt in range(60):
        shrunk = size * 0.95 ** max(0, attempt - 20)
        half_width = shrunk * np.sqrt(aspect)
        half_height = shrunk / np.sqrt(aspect)
        low = 0.12 * scene.height + half_height
        high = max(low, 0.72 * scene.height - half_height * 0.7)
        row = uniform(low, high)
        if at_border:
            column = half_width * uniform(0.1, 0.5)
            column = column if scene.rng.random() < 0.5 else scene.width - 1 - column
        else:
            reach = min(1.3 * half_width, 0.45 * scene.width)
            column = uniform(reach, scene.width - reach)
        x, y = scene.columns - column, scene.rows - row
        x, y = (x + tilt * y) / half_width, (y - tilt * x) / half_height
        angle = np.arctan2(y, x)
        bound = np.interp(angle, np.linspace(-np.pi, np.pi, len(profile)), profile)
        mask = np.hypot(x, y) < bound
        if not (mask & taken).any() and mask.sum() >= 12:
            return mask
    mask &= ~taken
    mask[min(round(row), scene.height - 1), min(max(round(column), 0), scene.width - 1)] = True
    return mask


def _draw_lesion(scene: _Scene, mask: np.ndarray, malignant: bool) -> None:
    """Darken a lesion, draw its rim, and change the beam below it."""
    unit, uniform, rng = scene.unit, scene.uniform, scene.rng
    inside = mask.astype(np.float32)
    crisp = cv2.GaussianBlur(inside, (0, 0), 0.6 * unit)
    vague = cv2.GaussianBlur(inside, (0, 0), uniform(1.2, 2.2) * unit)
    blend = np.clip(0.35 + 0.35 * scene.noise(20 * unit, 20 * unit), 0.0, 1.0)
    soft = crisp + blend * (vague - crisp)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) / unit
    thickness = np.cumsum(inside, axis=0)
    thickness = cv2.GaussianBlur(thickness, (0, 0), sigmaX=2.5 * unit, sigmaY=1.0 * unit)
    share = thickness / max(float(thickness.max()), 1.0)
    beyond = (1.0 - soft) * np.clip((thickness > 0.5) * share * 1.6, 0.0, 1.0)
    reach = np.clip(1.3 - 0.5 * (scene.rows - scene.rows[mask].max()) / (0.4 * scene.height), 0, 1)
    if malignant:
        scene.echo -= uniform(2.0, 9.0) * beyond * reach
        scene.echo += (
            uniform(1.5, 5.0) * np.exp(-((distance / uniform(4.0, 9.0)) ** 2)) * (1 - soft)
        )
    else:
        scene.echo += uniform(2.0, 7.0) * beyond * reach
        scene.echo += uniform(2.0, 5.0) * np.exp(-((distance / 2.0) ** 2)) * (1 - soft)
    texture = 1.8 * scene.noise(14 * unit, 18 * unit) + 1.4 * scene.noise(5 * unit, 8 * unit)
    level = uniform(-27.0, -17.0)
    # A lesion in dark tissue is darker still, or nothing would tell them apart.
    around = scene.echo[(distance > 1) & (distance < 10)]
    level = min(level, float(np.median(around)) - 11.0 if around.size else level)
    scene.echo += soft * (level + texture - scene.echo)
    if malignant and rng.random() < 0.4:
        spots = np.argwhere(cv2.erode(inside, np.ones((3, 3))) > 0)
        for row, column in spots[rng.permutation(len(spots))[: int(rng.integers(1, 5))]]:
            near = (scene.rows - row) ** 2 + ((scene.columns - column) / 1.6) ** 2
            scene.echo += uniform(8, 16) * np.exp(-near / (0.8 * unit) ** 2)


def _form_image(scene: _Scene) -> np.ndarray:
    """Turn echo strength into gray levels: depth gain, speckle, noise, log compression."""
    unit, uniform, rng = scene.unit, scene.uniform, scene.rng
    shape = scene.echo.shape
    depth = scene.rows / scene.height
    focus = uniform(0.25, 0.6)
    echo = scene.echo - uniform(8.0, 22.0) * np.maximum(depth - focus, 0.0) / 0.5
    echo += 2.5 * np.exp(-(((depth - focus) / 0.25) ** 2))
    echo += 1.2 * scene.noise(scene.height * 0.5, scene.width * 0.2)
    amplitude = 10.0 ** (echo / 20.0)
    axial, lateral = uniform(0.45, 0.7) * unit**0.5, uniform(0.8, 1.4) * unit**0.5
    looks = int(rng.integers(2, 5))
    power = np.zeros(shape, np.float32)
    for _ in range(looks):
        near = _speckle(rng, shape, axial, lateral)
        far = _speckle(rng, shape, axial * 1.2, lateral * 1.8)
        beam = near * np.sqrt(1.0 - depth)[..., None] + far * np.sqrt(depth)[..., None]
        power += np.sqrt((beam**2).sum(axis=-1)) / looks
    floor = 10.0 ** (-uniform(30.0, 36.0) / 20.0)
    signal = amplitude * power + floor * np.abs(rng.standard_normal(shape))
    level = 20.0 * np.log10(signal + 1e-4)
    span = uniform(44.0, 56.0)
    top = uniform(13.0, 18.0)
    gray = np.clip((level - top + span) / span, 0.0, 1.0) ** uniform(1.4, 2.4)
    pixels = 255.0 * gray
    if rng.random() < 0.6:
        # The scan converter's interpolation.
        pixels = cv2.GaussianBlur(pixels, (0, 0), 0.45 * unit**0.5)
    return np.clip(np.rint(pixels + uniform(0.0, 8.0)), 0, 255).astype(np.uint8)


def _speckle(
    rng: np.random.Generator, shape: tuple[int, int], axial: float, lateral: float
) -> np.ndarray:
    """Return a complex Gaussian field (H, W, 2) of unit power, correlated over a beam's width."""
    raw = rng.standard_normal((*shape, 2)).astype(np.float32)
    blurred = cv2.GaussianBlur(raw, (0, 0), sigmaX=lateral, sigmaY=axial)
    return blurred / np.sqrt(2.0 * float(np.mean(blurred**2)))
