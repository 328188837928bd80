"""Write phantoms as SA-Med2D style folders: several masks for some images, two parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
from ultrarefiner.io import item_seed, write_json

# Slices of a volume, and volumes of which every fourth is tested on.
_SLICES, _TEST_EVERY = 2, 4
# By index of the case: every third image has two lesions, each with a mask of its own.
_TWO = {"lesions": 2, "normal_size": True}
_ODD: Mapping[int, Odd] = {
    2: Odd(image="L", mask="1"),
    3: Odd(image="RGB", mask="RGB"),
    5: Odd(image="L", drawing={"at_border": True}),
    6: Odd(image="I;16"),
    8: Odd(image="L", mask="0 and 1"),
    9: Odd(image="L", mask="P"),
}
_MASK_MODES = MASK_MODES | {"0 and 1": lambda mask: Image.fromarray(mask // 255)}


def write_samed2d(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `{train,test}/{images,masks}/` and the two tables, paths from `folder` on.

    Images are called `us_00--phantom--p000--x_0000.png`, two of each volume `p000`; a mask adds
    `--0001_000`: its class (1 benign, 2 malignant) and its number. Where odd files are wanted, an
    image of the test part has a blank mask.
    """
    masks_of: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}

    def write(volume: str, number: int, part: str, phantom: Phantom, odd: Odd, kind: int) -> None:
        stem = f"us_00--phantom--{volume}--x_{number:04d}"
        image = f"{part}/images/{stem}.png"
        for name in ("images", "masks"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        save_png(IMAGE_MODES[odd.image](phantom.image), folder / image)
        masks_of[part][image] = []
        for place, lesion in enumerate(phantom.lesions or (phantom.mask,)):
            mask = f"{part}/masks/{stem}--{kind:04d}_{place:03d}.png"
            save_png(_MASK_MODES[odd.mask](gray_mask(lesion)), folder / mask)
            masks_of[part][image].append(mask)

    for index in range(cases):
        volume, number = divmod(index, _SLICES)
        malignant = is_malignant(volume)
        plain = Odd(image="L", drawing=_TWO if index % 3 == 1 else None)
        odd = _ODD.get(index, plain) if odd_cases else plain
        phantom = draw_case("samed2d", seed, index, size, odd, malignant)
        part = "test" if volume % _TEST_EVERY == 1 else "train"
        write(f"p{volume:03d}", number, part, phantom, odd, 1 + malignant)
    if odd_cases:
        blank = draw_scene(item_seed(seed, "samed2d", "blank"), size, False, lesions=0)
        write("p900", 0, "test", blank, Odd(image="L"), 1)
    tables = {"train/image2label_train.json": masks_of["train"]}
    tables["test/label2image_test.json"] = {
        mask: image for image, masks in masks_of["test"].items() for mask in masks
    }
    for name, table in tables.items():
        if table:
            write_json(folder / name, table)
