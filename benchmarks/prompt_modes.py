"""Time six prompt modes from one shelved encode against segment-anything's own predictor.

Both sides have the same weights (made up: ViT-B, frame 1024) and run image by image in one
process. The released code is used as its users do: for each prompt mode one pass over the images,
``SamPredictor.set_image``, ``predict``. Ours encodes each image once, writes the embedding to a
shelf as the workflow does, and reads it back for each mode. The masks must agree to 0.1 % of the
pixels. Run: ``python benchmarks/prompt_modes.py``; it ends with status 1 below the required ratio.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam

from ultrarefiner.models.mask_prompts import mask_prompt_logits
from ultrarefiner.prompts import Prompt, prompt_from_mask
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.base import Refiner
from ultrarefiner.refine.embeddings import SamEmbedding, embedding_key, image_sha256
from ultrarefiner.refine.shelf import Shelf

MODES = ("box", "point", "both", "mask", "box+point", "mask+box")
HEIGHT, WIDTH = 500, 600
REQUIRED = 5.0
AGREE = 0.001


def synthetic_sam() -> Sam:
    """Return the released ViT-B code with made-up weights that keep activations in range."""
    sam = sam_model_registry["vit_b"]()
    state = sam.state_dict()
    for name, value in state.items():
        rng = np.random.default_rng(crc32(name.encode()))
        noise = torch.from_numpy(rng.standard_normal(tuple(value.shape), dtype=np.float32))
        if value.ndim > 1:
            scale = 0.2 if name.endswith("pos_embed") else value[0].numel() ** -0.5
            value.copy_(noise * scale)
        else:
            value.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return sam.eval()


def cases(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield speckled images with a dark lesion, uint8 (500, 600, 3), and coarse masks, bool."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(count):
        row, column = rng.uniform(0.4, 0.6, 2) * (HEIGHT, WIDTH)
        tall, wide = rng.uniform(0.1, 0.25, 2) * (HEIGHT, WIDTH)
        distance = np.hypot((rows - row) / tall, (columns - column) / wide)
        speckle = rng.gamma(4.0, 0.25, (HEIGHT, WIDTH))
        gray = np.clip((40 + 110 * np.clip(distance - 0.5, 0, 1)) * speckle, 0, 255)
        yield np.repeat(gray[..., None], 3, axis=2).astype(np.uint8), distance <= 1


def prompts_of(mask: np.ndarray) -> dict[str, list[Prompt]]:
    """Return the prompts of each mode; masks of several prompts are OR-ed."""
    box = prompt_from_mask(mask, "box").box
    made = {mode: prompt_from_mask(mask, mode) for mode in MODES if mode != "mask+box"}
    made["mask+box"] = Prompt(box=box, mask=mask)
    return {mode: one if isinstance(one, list) else [one] for mode, one in made.items()}


def released(predictor: SamPredictor, image: np.ndarray, prompts: list[Prompt]) -> np.ndarray:
    """Return the mask of one mode by the released code, which encodes the image for it."""
    predictor.set_image(image)
    masks = []
    for prompt in prompts:
        logits = None
        if prompt.mask is not None:
            side = predictor.model.image_encoder.img_size
            logits = mask_prompt_logits(prompt.mask, predictor.input_size, side, side // 4)[0]
        three, scores, _ = predictor.predict(
            point_coords=prompt.points,
            point_labels=prompt.labels,
            box=prompt.box,
            mask_input=None if logits is None else logits.numpy(),
        )
        masks.append(three[scores.argmax()])
    return np.logical_or.reduce(masks)


def shelved(refiner: Refiner, shelf: Shelf, image: np.ndarray) -> SamEmbedding:
    """Return the image's embedding from the shelf, as the jobs of the workflow do."""
    digest = image_sha256(image)
    key = embedding_key(digest, refiner.weights_sha256, refiner.family, refiner.recipe)
    found = shelf.get(key, refiner.weights_sha256)
    if found is None:
        found = refiner.embed(image)
        shelf.put(found)
        found = found.rounded()
    return found


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3, help="images")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as folder:
        predictor = SamPredictor(synthetic_sam())
        weights = Path(folder) / "synthetic.pth"
        torch.save(predictor.model.state_dict(), weights)
        refiner = load_refiner("sam", weights=str(weights))
        shelf = Shelf(Path(folder) / "shelf", 10**9)
        theirs, ours, encodes, reads, differ = [], [], [], [], []
        for image, coarse in cases(options.images, options.seed):
            spent = np.zeros(2)
            for mode, prompts in prompts_of(coarse).items():
                # Turn by turn, so that other load on the machine meets both sides alike.
                start = time.perf_counter()
                expected = released(predictor, image, prompts)
                between = time.perf_counter()
                embedding = shelved(refiner, shelf, image)
                got = time.perf_counter() - between
                mask = refiner.refine(embedding, prompts).mask
                spent += between - start, time.perf_counter() - between
                (reads if mode != MODES[0] else encodes).append(got)
                differ.append(float((mask != expected).mean()))
                assert expected.any(), f"the released code finds nothing by {mode}"
                assert differ[-1] <= AGREE, f"{mode}: {100 * differ[-1]:.2f} % of pixels differ"
            theirs.append(spent[0])
            ours.append(spent[1])
    ratio = float(np.median(np.divide(theirs, ours)))
    print(
        f"{len(MODES)} prompt modes, {options.images} images of {HEIGHT} x {WIDTH}, ViT-B at 1024, "
        f"{options.threads} threads; at most {100 * max(differ):.3f} % of pixels differ"
    )
    print(f"  segment-anything {np.median(theirs):7.2f} s an image (median)")
    print(f"  ultrarefiner     {np.median(ours):7.2f} s an image")
    print(f"  ratio            {ratio:7.1f} x median; required {REQUIRED} x")
    print(
        f"  an embedding     {np.median(encodes):7.2f} s to make and store, "
        f"{1e3 * np.median(reads):.1f} ms to read from the shelf"
    )
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
