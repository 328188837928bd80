"""Write phantoms as the files of a dataset: names, formats, tables, and the known oddities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ultrarefiner.datasets.phantom_image import Phantom, draw_scene
from ultrarefiner.io import item_seed, write_rows


@dataclass(frozen=True)
class Layout:
    """How phantoms are laid out on disk.

    Attributes:
        holds: What the folder holds, in words.
        write: `write(folder, cases, size, seed, odd_cases)` fills an empty folder.
    """

    holds: str
    write: Callable[[Path, int, int, int, bool], None]


@dataclass(frozen=True)
class _Odd:
    """What is odd about a case.

    Attributes:
        image: Mode of the image file; a name of `_IMAGE_MODES`.
        mask: Mode of the mask files; a name of `_MASK_MODES`.
        suffix: Suffix of the files.
        drawing: Arguments of `draw_scene`.
        same_as: Show the drawing of this case instead of an own one.
        brighter: Gray levels to add to it.
        one_pixel: A lesion of one pixel.
    """

    image: str = "RGB"
    mask: str = "L"
    suffix: str = ".png"
    drawing: Mapping[str, Any] | None = None
    same_as: int | None = None
    brighter: int = 0
    one_pixel: bool = False


# By index of the case, so that the same case is odd whatever the number of cases. Malignant are
# the indices 2, 5, 8, ...
_BUSI_ODD: Mapping[int, _Odd] = {
    0: _Odd(drawing={"lesions": 3, "normal_size": True}),
    1: _Odd(mask="RGB"),
    2: _Odd(mask="RGBA"),
    3: _Odd(drawing={"normal_size": True}),
    4: _Odd(mask="1"),
    5: _Odd(same_as=3),
    6: _Odd(mask="P"),
    7: _Odd(image="LA"),
    8: _Odd(image="I;16"),
    9: _Odd(suffix=".PNG"),
    10: _Odd(drawing={"normal_size": True}),
    11: _Odd(mask="anti-aliased"),
    12: _Odd(same_as=10, brighter=9),
    13: _Odd(one_pixel=True),
    14: _Odd(drawing={"at_border": True}),
}
_BUSBRA_ODD: Mapping[int, _Odd] = {
    3: _Odd(mask="1"),
    5: _Odd(image="I;16"),
    7: _Odd(drawing={"at_border": True}),
}
_STU_ODD: Mapping[int, _Odd] = {4: _Odd(drawing={"at_border": True})}

# Images of each patient, in turn; patient 4 is the one with three.
_VIEWS = ("l", "lr", "r", "lrs", "s", "lr", "l", "lr", "r", "lr")
_STU_SIDE = 128


def _is_malignant(index: int) -> bool:
    return index % 3 == 2


def _draw(layout: str, seed: int, index: int, size: int, odd: _Odd, malignant: bool) -> Phantom:
    """Draw a case; it depends on nothing but the arguments."""
    item = item_seed(seed, layout, index)
    if odd.one_pixel:
        image = draw_scene(item, size, malignant, lesions=0).image
        mask = np.zeros(image.shape, bool)
        mask[int(0.45 * image.shape[0]), int(0.4 * image.shape[1])] = True
        return Phantom(np.where(mask, 0, image).astype(np.uint8), (mask,))
    phantom = draw_scene(item, size, malignant, **(odd.drawing or {}))
    brighter = np.clip(phantom.image.astype(np.int16) + odd.brighter, 0, 255).astype(np.uint8)
    return phantom._replace(image=brighter)


def _rgb(gray: np.ndarray) -> Image.Image:
    return Image.fromarray(gray).convert("RGB")


def _sixteen_bits(gray: np.ndarray) -> Image.Image:
    return Image.fromarray(gray.astype(np.uint16) * 257)


def _palette(mask: np.ndarray) -> Image.Image:
    """Return indices 0 and 1 that a palette turns into black and white."""
    image = Image.fromarray((mask > 127).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


def _anti_aliased(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(cv2.GaussianBlur(mask, (0, 0), 0.8))


_IMAGE_MODES: Mapping[str, Callable[[np.ndarray], Image.Image]] = {
    "L": Image.fromarray,
    "RGB": _rgb,
    "LA": lambda gray: Image.fromarray(gray).convert("LA"),
    "I;16": _sixteen_bits,
}
_MASK_MODES: Mapping[str, Callable[[np.ndarray], Image.Image]] = {
    "L": Image.fromarray,
    "RGB": _rgb,
    "RGBA": lambda mask: Image.fromarray(mask).convert("RGBA"),
    "1": lambda mask: Image.fromarray(mask).convert("1"),
    "P": _palette,
    "anti-aliased": _anti_aliased,
}


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="PNG", compress_level=4)


def _gray(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 255, 0).astype(np.uint8)


def write_busi(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `{benign,malignant,normal}/benign (1).png` and `benign (1)_mask.png`, `_mask_1.png`."""
    number: dict[str, int] = defaultdict(int)

    def write(label: str, phantom: Phantom, odd: _Odd) -> None:
        number[label] += 1
        home = folder / label
        home.mkdir(exist_ok=True)
        stem = f"{label} ({number[label]})"
        _save(_IMAGE_MODES[odd.image](phantom.image), home / f"{stem}{odd.suffix}")
        for index, mask in enumerate(phantom.lesions or (phantom.mask,)):
            name = f"{stem}_mask" + (f"_{index}" if index else "") + odd.suffix
            _save(_MASK_MODES[odd.mask](_gray(mask)), home / name)

    plain = _Odd()
    for index in range(cases):
        odd = _BUSI_ODD.get(index, plain) if odd_cases else plain
        source, drawn_as = index, odd
        if odd.same_as is not None:
            source = odd.same_as
            original = _BUSI_ODD[source]
            drawn_as = _Odd(drawing=original.drawing, brighter=odd.brighter)
        phantom = _draw("busi", seed, source, size, drawn_as, _is_malignant(source))
        write("malignant" if _is_malignant(index) else "benign", phantom, odd)
    if odd_cases:
        # The real benign/ has such images too: a mask, and nothing in it.
        blank = draw_scene(item_seed(seed, "busi", "blank"), size, False, lesions=0)
        write("benign", blank, plain)
    for index in range(min(4, 2 + cases // 30)):
        item = item_seed(seed, "busi", "normal", index)
        write("normal", draw_scene(item, size, False, lesions=0), plain)


def write_busbra(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `Images/bus_0001-l.png`, `Masks/mask_0001-l.png`, bus_data.csv and the fold tables."""
    for name in ("Images", "Masks"):
        (folder / name).mkdir()
    rows: list[dict[str, Any]] = []
    for index, (patient, view) in enumerate(_busbra_views(cases)):
        odd = _BUSBRA_ODD.get(index, _Odd(image="L")) if odd_cases else _Odd(image="L")
        malignant = patient % 3 == 0
        phantom = _draw("busbra", seed, index, size, odd, malignant)
        key = f"{patient:04d}-{view}"
        _save(_IMAGE_MODES[odd.image](phantom.image), folder / "Images" / f"bus_{key}.png")
        _save(_MASK_MODES[odd.mask](_gray(phantom.mask)), folder / "Masks" / f"mask_{key}.png")
        rows.append(_busbra_row(key, patient, malignant, phantom))
    write_rows(folder / "bus_data.csv", list(rows[0]), rows)
    patients = sorted({row["Case"] for row in rows}, key=lambda case: (case % 3 == 0, case))
    for count in (5, 10):
        if len(patients) < count:
            continue
        # Benign patients first, then malignant: every fold gets its share of both.
        fold = {patient: place % count + 1 for place, patient in enumerate(patients)}
        table = [
            {"ID": row["ID"], "Pathology": row["Pathology"], "kFold": fold[row["Case"]]}
            for row in rows
        ]
        write_rows(folder / f"{count}-fold-cv.csv", ["ID", "Pathology", "kFold"], table)


def _busbra_views(cases: int) -> list[tuple[int, str]]:
    """Return the patient and the view of each image."""
    found: list[tuple[int, str]] = []
    patient = 0
    while len(found) < cases:
        views = _VIEWS[patient % len(_VIEWS)]
        # Only the first round has a patient with three images.
        views = views if patient < len(_VIEWS) else views[:2]
        patient += 1
        found += [(patient, view) for view in views]
    return found[:cases]


def _busbra_row(key: str, patient: int, malignant: bool, phantom: Phantom) -> dict[str, Any]:
    rows, columns = np.nonzero(phantom.mask)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    height, width = phantom.image.shape
    return {
        "ID": f"bus_{key}",
        "Case": patient,
        "Histology": "Invasive ductal carcinoma" if malignant else "Fibroadenoma",
        "Pathology": "malignant" if malignant else "benign",
        "BIRADS": 5 if malignant else 3,
        "Device": "Phantom",
        "Width": width,
        "Height": height,
        "Side": "right" if key.endswith("r") else "left",
        "BBOX": str([int(value) for value in box]),
    }


def write_stu(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `Hospital/Test_Image_1.png` (128 x 128) and `mask_1.png` (mostly 420 x 420).

    `size` has no part in it: the dataset's images all have one size.
    """
    home = folder / "Hospital"
    home.mkdir()
    for index in range(cases):
        odd = _STU_ODD.get(index, _Odd()) if odd_cases else _Odd()
        drawing = {**(odd.drawing or {}), "width": 2 * _STU_SIDE}
        phantom = _draw(
            "stu", seed, index, 2 * _STU_SIDE, _Odd(drawing=drawing), _is_malignant(index)
        )
        # The masks were drawn on larger images than those that were published.
        side = _STU_SIDE if index % 7 == 3 else 512 if index % 5 == 2 else 420
        small = cv2.resize(phantom.image, (_STU_SIDE, _STU_SIDE), interpolation=cv2.INTER_AREA)
        how = cv2.INTER_AREA if side < 2 * _STU_SIDE else cv2.INTER_LINEAR
        mask = cv2.resize(_gray(phantom.mask), (side, side), interpolation=how)
        _save(Image.fromarray(small), home / f"Test_Image_{index + 1}.png")
        _save(Image.fromarray(mask), home / f"mask_{index + 1}.png")
