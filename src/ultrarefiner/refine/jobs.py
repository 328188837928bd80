"""Jobs of the refine stage: embed the images of a part, refine its masks.

Model code is imported when a refiner is loaded, so that GrabCut jobs start without torch.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.config import WindowRecipe
from ultrarefiner.datasets.ahead import read_ahead
from ultrarefiner.datasets.parts import parse_part, read_part
from ultrarefiner.errors import (
    ConfigError,
    PromptError,
    SplitError,
    UltraRefinerError,
    WeightsError,
)
from ultrarefiner.images import read_mask, read_probability, write_mask
from ultrarefiner.io import atomic_directory, file_sha256, write_rows
from ultrarefiner.models.cards import (
    card_beside,
    check_fold,
    check_leak,
    is_of_a_fold,
    read_card,
)
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.crop import Window, window_of_mask
from ultrarefiner.prompts.records import PromptFile, load_prompts, require_files
from ultrarefiner.refine import REFINERS, load_refiner
from ultrarefiner.refine.base import Embedding, Refinement, Refiner
from ultrarefiner.refine.crop import refine_in_window
from ultrarefiner.refine.embeddings import (
    IndexRow,
    read_index,
    write_index,
)
from ultrarefiner.refine.seeing import (
    Seen,
    embed_again,
    look_at,
    progress,
    read_image,
    stale_index,
)
from ultrarefiner.refine.shelf import Shelf

logger = logging.getLogger(__name__)

TABLE_COLUMNS = ["case", "score", "agreement", "prompts", "window"]
"""Columns of the table beside a refiner's masks; empty cells: not known, or the full image."""


def embed_images(
    family: str,
    weights: str,
    options: dict[str, Any],
    images: str | Path,
    splits: str | Path,
    part: str,
    masks: str | Path | None,
    window: dict[str, Any] | None,
    shelf: str | Path,
    limit_gb: float,
    output: str | Path,
    device: str,
) -> None:
    """Encode what a refiner will see of each image of a part, and put it on the shelf.

    What is on the shelf already is not encoded again, whoever put it there: another view whose
    window was the same, another run, or this job before it was interrupted. A window that is
    nearly the whole image, or that an empty mask leaves open, is the whole image.

    Args:
        family: Row of ``REFINERS`` that shelves embeddings.
        weights: File of the weights, or their name in the weights table.
        options: Those of the row's keys that change an embedding.
        images: Folder of ``{case}.png``.
        splits: Table that ``read_part`` takes for the part.
        part: Part of the dataset, such as ``fold0``.
        masks: Folder of masks ``{case}.png`` around which windows are cut; None for full images.
        window: The ``WindowRecipe`` as a dict; None for full images.
        shelf: Folder of the shelf.
        limit_gb: Its limit in 10^9 bytes.
        output: The index to write, see ``embeddings.write_index``.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        ConfigError: Unknown family, or one whose embeddings are not worth a file.
        WeightsError: The weights are absent, damaged or another model's.
        SplitError: The part is not in the table.
        UltraRefinerError: An image or a mask is absent or damaged.
        OutputError: The shelf or the index cannot be written.
    """
    _require_shelf(family)
    names = read_part(splits, part)
    require_files(images, names, "image", "Run prepare_dataset again.")
    recipe = None if window is None else WindowRecipe(**window)
    if recipe is not None:
        require_files(masks, names, "mask", "Run the job that writes this folder again.")
    refiner = load_refiner(family, weights, device, **options)
    store = Shelf(shelf, round(limit_gb * 1e9), images=len(names))
    batch = refiner.batch_size

    def read(case: str) -> Seen:
        image = read_image(images, case)
        part = None if recipe is None else _window(recipe, masks, case, image)
        return look_at(refiner, store, case, image, part)

    index: dict[str, IndexRow] = {}
    waiting: dict[str, np.ndarray] = {}
    known: set[str] = set()  # the same pixels may be in a dataset twice
    encoded = 0
    for seen in progress(read_ahead(read, names, ahead=batch + 4), len(names), "embed"):
        index[seen.case] = IndexRow(seen.key, seen.window)
        if seen.embedding is None and seen.key not in known:
            waiting[seen.key] = seen.pixels
        known.add(seen.key)
        if len(waiting) >= batch:
            encoded += _encode(refiner, store, waiting)
    encoded += _encode(refiner, store, waiting)
    write_index(output, index)
    if recipe is not None:
        full = sum(row.window is None for row in index.values())
        logger.info("%d of %d windows are the full image", full, len(names))
    logger.info("encoded %d images, %d were on the shelf", encoded, len(names) - encoded)


def refine_masks(
    family: str,
    weights: str | None,
    options: dict[str, Any],
    prompts: str | Path,
    images: str | Path,
    soft_masks: str | Path,
    embeddings: str | Path | None,
    shelf: str | Path | None,
    limit_gb: float,
    output: str | Path,
    table: str | Path,
    device: str,
    card: str | Path | None = None,
    protocol: str = "nested",
    slices: str | Path | None = None,
) -> None:
    """Refine every case of a prompts file.

    A case whose prompt is empty gets an empty mask: the prompts file has already decided what an
    empty coarse mask means. An embedding that has gone from the shelf is made again and put back.

    A finetuned refiner comes with its card: then it may refine only what neither it nor a model
    that it was made with has seen, and only what is of its fold.

    Args:
        family: Row of ``REFINERS``.
        weights: File of the weights, or their name in the weights table; None where none are used.
        options: The refiner row's own keys.
        prompts: The prompts file; its cases are refined, no others.
        images: Folder of ``{case}.png``.
        soft_masks: Folder of probabilities or masks ``{case}.png``, read for mask prompts.
        embeddings: Index that ``embed_images`` wrote for the prompts' view; None to encode here.
        shelf: Folder of the shelf; None with no index.
        limit_gb: Its limit in 10^9 bytes.
        output: Folder to write, ``{case}.png`` of 0 and 255 for each case; whole or absent.
        table: CSV to write, columns ``TABLE_COLUMNS``: ``score`` and ``agreement`` as ``Refinement``
            has them, how many prompts were decoded, the window as four numbers.
        device: "cpu", "cuda", "mps" or "auto".
        card: Card of the weights where the study finetuned them; None where it did not. Other
            weights that this project trained are known by the card beside them.
        protocol: ``nested`` or ``seed``; under ``seed`` the test cases of a fold may have selected
            its weights.
        slices: Which case is which slice of which volume, for a refiner that follows volumes; None
            for one that takes each case by itself.

    Raises:
        ConfigError: Unknown family or option.
        WeightsError: The weights are absent, damaged, another model's or not those of the card.
        LeakError: The weights have seen some of the cases; the message names them.
        SplitError: They are of another fold than the prompts file is filed under.
        PromptError: The refiner cannot use a prompt; the message names the case.
        UltraRefinerError: A file is absent or damaged, or the index is not of these prompts,
            images, weights and options.
        OutputError: The outputs or the shelf cannot be written.
    """
    if (slices is None) != (options.get("propagate", "none") == "none"):
        raise ConfigError(
            "a refiner that propagates needs `slices`, the table of list_volumes, and no other one "
            "takes it"
        )
    file = load_prompts(prompts)
    names = sorted(file.cases)
    require_files(images, names, "image", "Run prepare_dataset again.")
    if embeddings is not None:
        _require_shelf(family)
    if card is not None:
        _require_unseen(read_card(card), card, weights, file, protocol)
    elif (facts := card_beside(weights)) is not None:
        # Weights of the user's own that an earlier study trained: they have seen cases too.
        check_leak(facts, file.cases, allow_selected=False)
    index = None if embeddings is None else read_index(embeddings)
    refiner = load_refiner(family, weights, device, **options)
    store = None if index is None else Shelf(shelf, round(limit_gb * 1e9), images=len(names))

    def read(case: str) -> Seen:
        image = read_image(images, case)
        prompt = _prompt(file, case, image, soft_masks)
        if prompt is None:
            return Seen(case, image.shape[:2], image)
        seen = look_at(refiner, store, case, image, file.window(case), prompt)
        if index is not None and index.get(case) != IndexRow(seen.key, seen.window):
            raise UltraRefinerError(stale_index(embeddings, case, index.get(case), seen))
        return seen

    if slices is not None:
        _follow(refiner, file, slices, images, soft_masks, embeddings, store, output, table)
        return
    rows = []
    empty = encoded = 0
    with atomic_directory(output) as folder:
        for seen in progress(read_ahead(read, names), len(names), "refine"):
            if seen.prompt is None:
                empty += 1
                refined = None
                mask = np.zeros(seen.image_hw, dtype=bool)
            else:
                encoded += seen.embedding is None
                refined = _refine(
                    refiner, seen, seen.embedding or embed_again(refiner, store, seen)
                )
                mask = refined.mask
            write_mask(folder / f"{seen.case}.png", mask)
            rows.append(_row(seen, refined))
    write_rows(table, TABLE_COLUMNS, rows)
    logger.info("refined %d cases, %d of them empty by their prompt", len(names), empty)
    if store is not None:
        kept = len(names) - empty - encoded
        logger.info("encoded %d images, %d were on the shelf", encoded, kept)
        if encoded:
            logger.warning(
                "%d embeddings were gone from the shelf and were made again: they were deleted, or "
                "embeddings.limit_gb (%g) is less than the study needs",
                encoded,
                limit_gb,
            )


def _follow(
    refiner: Refiner,
    file: PromptFile,
    slices: str | Path,
    images: str | Path,
    soft_masks: str | Path,
    embeddings: str | Path | None,
    store: Shelf | None,
    output: str | Path,
    table: str | Path,
) -> None:
    from ultrarefiner.refine.volume_jobs import follow_volumes

    index = None if embeddings is None else read_index(embeddings)

    def embed(case: str) -> Embedding:
        seen = look_at(refiner, store, case, read_image(images, case), None)
        if index is not None and index.get(case) != IndexRow(seen.key, None):
            raise UltraRefinerError(stale_index(embeddings, case, index.get(case), seen))
        return seen.embedding or embed_again(refiner, store, seen)

    with atomic_directory(output) as folder:
        rows = list(follow_volumes(refiner, file, slices, soft_masks, embed, folder))
    write_rows(table, TABLE_COLUMNS, rows)


def _require_unseen(
    facts: dict[str, Any],
    card: str | Path,
    weights: str | Path | None,
    file: PromptFile,
    protocol: str,
) -> None:
    part = parse_part(file.part)
    if is_of_a_fold(facts):
        if part.fold is None:
            raise SplitError(
                f"{card} is the card of a model of fold {facts['fold']}, and no single model refines "
                f"{part.name}. Take a part of that fold."
            )
        check_fold(facts, part.fold)
    check_leak(facts, file.cases, protocol == "seed" and part.evaluation == "folds")
    digest = file_sha256(weights)
    if digest != facts["weights_sha256"]:
        raise WeightsError(
            f"{weights} is not the file that {card} describes: its sha256 is {digest[:12]}..., the "
            f"card says {facts['weights_sha256'][:12]}.... Delete both and train the refiner again."
        )


def _window(recipe: WindowRecipe, masks: str | Path, case: str, image: np.ndarray) -> Window | None:
    mask = read_mask(Path(masks) / f"{case}.png")
    if mask.shape != image.shape[:2]:
        raise UltraRefinerError(
            f"the mask of {case} in {masks} is {mask.shape}, its image {image.shape[:2]} (height, "
            "width). Run the job that writes this folder again."
        )
    return window_of_mask(mask, recipe)


def _encode(refiner: Refiner, store: Shelf, waiting: dict[str, np.ndarray]) -> int:
    """Encode what waits under its keys, store it, and return how many images that were.

    What another job has put on the shelf meanwhile is left out.
    """
    made_by = refiner.weights_sha256
    images = [pixels for key, pixels in waiting.items() if store.get(key, made_by) is None]
    if images:
        for embedding in refiner.embed_batch(images):
            store.put(embedding)
    waiting.clear()
    return len(images)


def _prompt(
    file: PromptFile, case: str, image: np.ndarray, soft_masks: str | Path
) -> Prompt | list[Prompt] | None:
    record = file.cases[case]
    if record.image_size != image.shape[:2]:
        raise PromptError(
            f"the prompt of {case} was made for {record.image_size} pixels (height, width), its "
            f"image has {image.shape[:2]}. Run make_prompts again."
        )
    if record.mask is None:
        return file.prompts(case)
    return file.prompts(case, read_probability(Path(soft_masks) / record.mask))


def _refine(refiner: Refiner, seen: Seen, embedding: Embedding) -> Refinement:
    try:
        return refine_in_window(refiner, embedding, seen.prompt, seen.window, seen.image_hw)
    except PromptError as error:
        raise PromptError(f"{seen.case}: {error}") from None


def _row(seen: Seen, refined: Refinement | None) -> dict[str, Any]:
    score, agreement = (refined.score, refined.agreement) if refined else (math.nan, math.nan)
    several = len(seen.prompt) if isinstance(seen.prompt, list) else 1
    return {
        "case": seen.case,
        "score": "" if math.isnan(score) else score,
        "agreement": "" if math.isnan(agreement) else agreement,
        "prompts": 0 if seen.prompt is None else several,
        "window": " ".join(map(str, seen.window or ())),
    }


def _require_shelf(family: str) -> None:
    if not REFINERS[family].shelves_embeddings:
        keep = ", ".join(name for name, row in REFINERS.items() if row.shelves_embeddings)
        raise ConfigError(
            f"refiner family '{family}' keeps no embeddings on file (these do: {keep}); run "
            "refine_masks without them"
        )
