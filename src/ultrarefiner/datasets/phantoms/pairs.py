"""Write phantoms as the files of layouts with a folder of images and a folder of masks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
from PIL import Image

from ultrarefiner.datasets.phantoms.drawing import Phantom, draw_scene
from ultrarefiner.datasets.phantoms.files import (
    IMAGE_MODES,
    MASK_MODES,
    Odd,
    draw_case,
    gray_mask,
    is_malignant,
    save_png,
)
from ultrarefiner.io import item_seed

# So many images of `bus` are in `udiat` too, where odd files are wanted.
_SHARED = 2

# By index of the case, as in the other layouts.
_BUS_ODD: Mapping[int, Odd] = {
    3: Odd(image="RGB", mask="RGB", drawing={"at_border": True}),
    4: Odd(image="L", mask="noisy", suffix=".PNG"),
    6: Odd(mask="noisy", drawing={"lesions": 2, "normal_size": True}),
}
_BUS_UC_ODD: Mapping[int, Odd] = {
    2: Odd(drawing={"at_border": True}),
    5: Odd(mask="anti-aliased"),
    7: Odd(one_pixel=True),
}
# The mask of this case has half the size of its image.
_HALF = 4
_PAIRS_ODD: Mapping[int, Odd] = {
    1: Odd(suffix=".PNG"),
    2: Odd(suffix=".tif"),
    4: Odd(suffix=".jpg"),
    6: Odd(image="I;16", suffix=".tiff"),
    7: Odd(drawing={"at_border": True}),
}


def write_bus(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `BUS/original/000001.png` and `BUS/GT/000001.png`."""
    _write_dataset_b(folder / "BUS", "bus", cases, size, seed, odd_cases)


def write_udiat(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `UDIAT/original/000001.png` and `UDIAT/GT/000001.png`.

    Of the real folder all images are those of `bus`; here the first two are, with the same seed
    and size and odd files, enough for whoever has to notice it.
    """
    _write_dataset_b(folder / "UDIAT", "udiat", cases, size, seed, odd_cases)


def _write_dataset_b(
    home: Path, layout: str, cases: int, size: int, seed: int, odd_cases: bool
) -> None:
    for name in ("original", "GT"):
        (home / name).mkdir(parents=True)
    for index in range(cases):
        # All real masks have the noise of JPEG.
        plain = Odd(mask="noisy") if odd_cases else Odd()
        odd = _BUS_ODD.get(index, plain) if odd_cases else plain
        drawn_for = "bus" if odd_cases and index < _SHARED else layout
        phantom = draw_case(drawn_for, seed, index, size, odd, is_malignant(index))
        name = f"{index + 1:06d}{odd.suffix}"
        save_png(IMAGE_MODES[odd.image](phantom.image), home / "original" / name)
        save_png(MASK_MODES[odd.mask](gray_mask(phantom.mask)), home / "GT" / name)


def write_bus_uc(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `BUS_UC/All/images/001.png` and `masks/001.png`, with copies in the classes' folders.

    Where odd files are wanted, image 000 has a blank mask.
    """
    home = folder / "BUS_UC"
    for part in ("All", "Benign", "Malignant"):
        for kind in ("images", "masks"):
            (home / part / kind).mkdir(parents=True)

    def write(name: str, malignant: bool, image: Image.Image, mask: Image.Image) -> None:
        for kind, picture in (("images", image), ("masks", mask)):
            path = home / "All" / kind / name
            save_png(picture, path)
            shutil.copyfile(path, home / ("Malignant" if malignant else "Benign") / kind / name)

    for index in range(cases):
        odd = _BUS_UC_ODD.get(index, Odd(image="L")) if odd_cases else Odd(image="L")
        malignant = is_malignant(index)
        half = odd_cases and index == _HALF
        side = 2 * (size // 2)
        if half:
            # Both sides even, so that half of them is the same shape.
            odd = Odd(image="L", drawing={"width": 2 * round(0.6 * side)})
        phantom = draw_case("bus_uc", seed, index, side if half else size, odd, malignant)
        mask = gray_mask(phantom.mask)
        if half:
            mask = cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        write(
            f"{index + 1:03d}.png",
            malignant,
            IMAGE_MODES[odd.image](phantom.image),
            MASK_MODES[odd.mask](mask),
        )
    if odd_cases:
        blank = draw_scene(item_seed(seed, "bus_uc", "blank"), size, False, lesions=0)
        write("000.png", False, Image.fromarray(blank.image), _mask(blank))


def _mask(phantom: Phantom) -> Image.Image:
    return Image.fromarray(gray_mask(phantom.mask))


def write_pairs(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `images/0001.png` and `masks/0001.png`; every fifth pair is in a folder `clinic_b/`.

    The odd ones are other kinds of files.
    """
    for kind in ("images", "masks"):
        (folder / kind / "clinic_b").mkdir(parents=True)
    for index in range(cases):
        odd = _PAIRS_ODD.get(index, Odd()) if odd_cases else Odd()
        phantom = draw_case("pairs", seed, index, size, odd, is_malignant(index))
        name = f"{'clinic_b/' if index % 5 == 4 else ''}{index + 1:04d}"
        path = folder / "images" / f"{name}{odd.suffix}"
        picture = IMAGE_MODES[odd.image](phantom.image)
        if path.suffix.lower() == ".png":
            save_png(picture, path)
        else:
            # The format that the suffix says; 90 is a quality that speckle survives.
            picture.save(path, **({"quality": 90} if odd.suffix == ".jpg" else {}))
        save_png(_mask(phantom), folder / "masks" / f"{name}.png")
