"""Write phantoms as the files of BUSI, BUS-BRA and STU-Hospital."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
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
from ultrarefiner.io import item_seed, write_rows

# By index of the case, so that the same case is odd whatever the number of cases. Malignant are
# the indices 2, 5, 8, ...
_BUSI_ODD: Mapping[int, Odd] = {
    0: Odd(drawing={"lesions": 3, "normal_size": True}),
    1: Odd(mask="RGB"),
    2: Odd(mask="RGBA"),
    3: Odd(drawing={"normal_size": True}),
    4: Odd(mask="1"),
    5: Odd(same_as=3),
    6: Odd(mask="P"),
    7: Odd(image="LA"),
    8: Odd(image="I;16"),
    9: Odd(suffix=".PNG"),
    10: Odd(drawing={"normal_size": True}),
    11: Odd(mask="anti-aliased"),
    12: Odd(same_as=10, brighter=9),
    13: Odd(one_pixel=True),
    14: Odd(drawing={"at_border": True}),
}
_BUSBRA_ODD: Mapping[int, Odd] = {
    3: Odd(mask="1"),
    5: Odd(image="I;16"),
    7: Odd(drawing={"at_border": True}),
}
_STU_ODD: Mapping[int, Odd] = {4: Odd(drawing={"at_border": True})}

# Images of each patient, in turn; patient 4 is the one with three.
_VIEWS = ("l", "lr", "r", "lrs", "s", "lr", "l", "lr", "r", "lr")
_STU_SIDE = 128


def write_busi(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `{benign,malignant,normal}/benign (1).png` and `benign (1)_mask.png`, `_mask_1.png`."""
    number: dict[str, int] = defaultdict(int)

    def write(label: str, phantom: Phantom, odd: Odd) -> None:
        number[label] += 1
        home = folder / label
        home.mkdir(exist_ok=True)
        stem = f"{label} ({number[label]})"
        save_png(IMAGE_MODES[odd.image](phantom.image), home / f"{stem}{odd.suffix}")
        for index, mask in enumerate(phantom.lesions or (phantom.mask,)):
            name = f"{stem}_mask" + (f"_{index}" if index else "") + odd.suffix
            save_png(MASK_MODES[odd.mask](gray_mask(mask)), home / name)

    plain = Odd()
    for index in range(cases):
        odd = _BUSI_ODD.get(index, plain) if odd_cases else plain
        source, drawn_as = index, odd
        if odd.same_as is not None:
            source = odd.same_as
            original = _BUSI_ODD[source]
            drawn_as = Odd(drawing=original.drawing, brighter=odd.brighter)
        phantom = draw_case("busi", seed, source, size, drawn_as, is_malignant(source))
        write("malignant" if is_malignant(index) else "benign", phantom, odd)
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
        odd = _BUSBRA_ODD.get(index, Odd(image="L")) if odd_cases else Odd(image="L")
        malignant = patient % 3 == 0
        phantom = draw_case("busbra", seed, index, size, odd, malignant)
        key = f"{patient:04d}-{view}"
        save_png(IMAGE_MODES[odd.image](phantom.image), folder / "Images" / f"bus_{key}.png")
        save_png(
            MASK_MODES[odd.mask](gray_mask(phantom.mask)), folder / "Masks" / f"mask_{key}.png"
        )
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
        odd = _STU_ODD.get(index, Odd()) if odd_cases else Odd()
        drawing = {**(odd.drawing or {}), "width": 2 * _STU_SIDE}
        phantom = draw_case(
            "stu", seed, index, 2 * _STU_SIDE, Odd(drawing=drawing), is_malignant(index)
        )
        # The masks were drawn on larger images than those that were published.
        side = _STU_SIDE if index % 7 == 3 else 512 if index % 5 == 2 else 420
        small = cv2.resize(phantom.image, (_STU_SIDE, _STU_SIDE), interpolation=cv2.INTER_AREA)
        how = cv2.INTER_AREA if side < 2 * _STU_SIDE else cv2.INTER_LINEAR
        mask = cv2.resize(gray_mask(phantom.mask), (side, side), interpolation=how)
        save_png(Image.fromarray(small), home / f"Test_Image_{index + 1}.png")
        save_png(Image.fromarray(mask), home / f"mask_{index + 1}.png")
