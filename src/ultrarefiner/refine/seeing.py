"""What a refiner sees of each case, and the embeddings that jobs share for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from ultrarefiner.images import read_rgb
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.crop import Window
from ultrarefiner.refine.base import Embedding, Refiner
from ultrarefiner.refine.crop import cut_window
from ultrarefiner.refine.embeddings import IndexRow, embedding_key, image_sha256
from ultrarefiner.refine.shelf import Shelf

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_LOG_EVERY = 50


@dataclass(frozen=True, eq=False)
class Seen:
    """What a refiner sees of a case.

    Attributes:
        case: Case id.
        image_hw: (height, width) of the whole image.
        pixels: The image, or the cut of its window.
        window: Where the cut is; None for the whole image.
        prompt: In pixels of the whole image; None when there is nothing to refine.
        key: Name on the shelf; empty when there is none.
        embedding: From the shelf, if it was there.
    """

    case: str
    image_hw: tuple[int, int]
    pixels: np.ndarray
    window: Window | None = None
    prompt: Prompt | list[Prompt] | None = None
    key: str = ""
    embedding: Embedding | None = None


def look_at(
    refiner: Refiner,
    store: Shelf | None,
    case: str,
    image: np.ndarray,
    window: Window | None,
    prompt: Prompt | list[Prompt] | None = None,
) -> Seen:
    """Return what a refiner sees of an image through a window, with its embedding if there is one.

    Args:
        refiner: The refiner.
        store: The shelf of embeddings; None for none.
        case: Case id.
        image: uint8 (H, W, 3) RGB.
        window: The part of it to see; None for all.
        prompt: What the refiner will be told.
    """
    pixels = image if window is None else cut_window(image, window)
    key, embedding = "", None
    if store is not None:
        digest, made_by = image_sha256(pixels), refiner.weights_sha256
        key = embedding_key(digest, made_by, refiner.family, refiner.recipe)
        embedding = store.get(key, made_by)
    return Seen(case, image.shape[:2], pixels, window, prompt, key, embedding)


def embed_again(refiner: Refiner, store: Shelf | None, seen: Seen) -> Embedding:
    """Encode what is not on the shelf, and put it there; the embedding is as rounded as those are."""
    embedding = refiner.embed(seen.pixels)
    if store is None:
        return embedding
    logger.info("%s is not on the shelf; it is encoded again", seen.case)
    store.put(embedding)
    return embedding.rounded()


def stale_index(index: str | Path, case: str, row: IndexRow | None, seen: Seen) -> str:
    """Return why an index of embeddings does not fit what is seen of a case, with the cure."""
    if row is None:
        why = f"does not name {case}"
    elif row.window != seen.window:
        why = f"has window {row.window} for {case}, its prompt {seen.window}"
    else:
        why = f"was made from another image of {case}, with other weights or other options"
    return f"{index} {why}. Run embed_images again, and make_prompts if that does not help."


def read_image(images: str | Path, case: str) -> np.ndarray:
    """Return the image of a case as uint8 (H, W, 3) RGB."""
    return read_rgb(Path(images) / f"{case}.png")


def progress(
    items: Iterable[Item], total: int | None, verb: str, unit: str = "case"
) -> Iterator[Item]:
    """Yield items; a bar on a terminal, a log line now and then everywhere.

    Args:
        items: The items.
        total: How many there are; None: not known.
        verb: What is done with them.
        unit: What one is called.
    """
    known = "" if total is None else f" of {total}"
    # disable=None: no bar when stderr is a file.
    for done, item in enumerate(tqdm(items, verb, total, unit=unit, disable=None)):
        if done % _LOG_EVERY == 0:
            logger.info("%s: %d%s %ss done", verb, done, known, unit)
        yield item
