"""Masks refined from the shelf's float16 embeddings differ in fewer than 0.1 % of the pixels."""

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry

from tests.golden.formula import fill_with_formula
from tests.sam_fixture import write_tiny_sam
from ultrarefiner.prompts import Prompt, prompt_from_mask
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.shelf import Shelf


def ultrasound(number, height=300, width=400):
    """Return a speckled image with a dark lesion, and the lesion."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    row, column = rng.uniform(0.4, 0.6, 2) * (height, width)
    tall, wide = rng.uniform(0.1, 0.25, 2) * (height, width)
    distance = np.hypot((rows - row) / tall, (columns - column) / wide)
    gray = (40 + 110 * np.clip(distance - 0.5, 0, 1)) * rng.gamma(4.0, 0.25, (height, width))
    image = np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return image, distance <= 1


def share_that_differs(refiner, folder, images):
    """Return the worst share of pixels over images and prompts, and how many masks that were."""
    shelf = Shelf(folder, 10**9)
    shares = []
    for number in range(images):
        image, lesion = ultrasound(number)
        exact = refiner.embed(image)
        shelf.put(exact)
        stored = shelf.get(exact.key, refiner.weights_sha256)
        assert not np.array_equal(exact.features, stored.features)
        prompts = {
            kind: prompt_from_mask(lesion, kind)
            for kind in ("box", "point", "both", "mask", "box+point")
        }
        prompts["mask+box"] = Prompt(box=prompts["box"].box, mask=lesion)
        for prompt in prompts.values():
            masks = [refiner.refine(one, prompt).mask for one in (exact, stored)]
            assert masks[0].any() and not masks[0].all()
            shares.append(np.mean(masks[0] != masks[1]))
    return max(shares), len(shares)


def test_of_a_small_model(tmp_path, one_thread):
    refiner = load_refiner("sam", weights=str(write_tiny_sam(tmp_path / "tiny.pth", side=512)))
    worst, masks = share_that_differs(refiner, tmp_path / "shelf", images=3)
    assert masks == 18 and worst < 0.001


@pytest.mark.slow
def test_of_vit_b_at_full_size(tmp_path):
    path = tmp_path / "vit_b.pth"
    torch.save(fill_with_formula(sam_model_registry["vit_b"]()).state_dict(), path)
    refiner = load_refiner("sam", weights=str(path))
    path.unlink()  # 375 MB that pytest would keep
    worst, masks = share_that_differs(refiner, tmp_path / "shelf", images=3)
    assert masks == 18 and worst < 0.001
