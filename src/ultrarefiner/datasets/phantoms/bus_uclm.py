"""Write phantoms as the files of BUS-UCLM: masks in colours, several frames of one scan."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ultrarefiner.datasets.phantoms.drawing import Phantom, draw_scene
from ultrarefiner.datasets.phantoms.files import jpeg_noise, save_png
from ultrarefiner.io import item_seed

_GREEN, _RED = (0, 255, 0), (255, 0, 0)
# Frames with a lesion of each patient; 0 and 1 are neighbours of one sweep.
_FRAMES = 3
# By index of the case: two lesions of which one is benign and one malignant.
_MIXED = 5
# By index of the case: files of the mask that are odd.
_SOFT, _NOISY, _PALETTE, _ALPHA = 1, 3, 4, 7
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def write_bus_uclm(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `BUS-UCLM/images/ABCD_000.png` and `BUS-UCLM/masks/ABCD_000.png`.

    A patient has three frames with lesions, and every second one a frame without: image 003, its
    mask black. Every third patient's lesions are malignant.
    """
    home = folder / "BUS-UCLM"
    for kind in ("images", "masks"):
        (home / kind).mkdir(parents=True)
    for index in range(cases):
        patient, frame = divmod(index, _FRAMES)
        malignant = patient % 3 == 2
        mixed = odd_cases and index == _MIXED
        phantom = _draw(seed, patient, frame, size, malignant, 2 if mixed else 1)
        colours = [_RED if malignant else _GREEN]
        if mixed:
            colours = [_GREEN, _RED]
        name = f"{_prefix(seed, patient)}_{frame:03d}.png"
        save_png(Image.fromarray(phantom.image).convert("RGB"), home / "images" / name)
        mask = _paint(phantom, colours)
        save_png(
            _odd_mask(mask, index) if odd_cases else Image.fromarray(mask), home / "masks" / name
        )
    for patient in range(0, -(-cases // _FRAMES), 2):
        normal = draw_scene(item_seed(seed, "bus_uclm", patient, "normal"), size, False, lesions=0)
        name = f"{_prefix(seed, patient)}_{_FRAMES:03d}.png"
        save_png(Image.fromarray(normal.image).convert("RGB"), home / "images" / name)
        save_png(Image.fromarray(_paint(normal, [])), home / "masks" / name)


def _prefix(seed: int, patient: int) -> str:
    """Return four letters, other ones for each patient."""
    # 26 ** 4 is no multiple of 7919, so no prefix comes twice before all have come.
    number = (item_seed(seed, "bus_uclm") + 7919 * patient) % 26**4
    letters = []
    for _ in range(4):
        number, digit = divmod(number, 26)
        letters.append(_LETTERS[digit])
    return "".join(letters)


def _draw(seed: int, patient: int, frame: int, size: int, malignant: bool, lesions: int) -> Phantom:
    """Draw a frame; frame 1 is frame 0 a moment later, a little brighter."""
    scene = draw_scene(
        item_seed(seed, "bus_uclm", patient, 0 if frame == 1 else frame),
        size,
        malignant,
        lesions=lesions,
        normal_size=True,
    )
    if frame != 1:
        return scene
    later = np.clip(scene.image.astype(np.int16) + 4, 0, 255).astype(np.uint8)
    return scene._replace(image=later)


def _paint(phantom: Phantom, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """Return uint8 (H, W, 3): each lesion in its colour on black."""
    painted = np.zeros((*phantom.image.shape, 3), np.uint8)
    for lesion, colour in zip(phantom.lesions, colours, strict=True):
        painted[lesion] = colour
    return painted


def _odd_mask(mask: np.ndarray, index: int) -> Image.Image:
    if index == _SOFT:
        return Image.fromarray(cv2.GaussianBlur(mask, (0, 0), 0.8))
    if index == _NOISY:
        return Image.fromarray(jpeg_noise(mask))
    if index == _PALETTE:
        return Image.fromarray(mask).quantize(4)
    if index == _ALPHA:
        return Image.fromarray(mask).convert("RGBA")
    return Image.fromarray(mask)
