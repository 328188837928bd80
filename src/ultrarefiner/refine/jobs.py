"""Jobs of the refine stage: embed the images of a dataset, refine the masks of a fold.

Model code is imported when a refiner is loaded, so that GrabCut jobs start without torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ultrarefiner.errors import ConfigError, PromptError, UltraRefinerError
from ultrarefiner.images import read_probability, read_rgb, write_mask
from ultrarefiner.io import atomic_directory, read_rows
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.records import PromptFile, load_prompts, require_files
from ultrarefiner.refine import REFINERS, load_refiner
from ultrarefiner.refine.base import Embedding, Refiner
from ultrarefiner.refine.embeddings import SUFFIX, embedding_path, image_sha256

logger = logging.getLogger(__name__)

_LOG_EVERY = 50


def embed_images(
    family: str,
    weights: str,
    images: str | Path,
    cases: str | Path,
    output: str | Path,
    device: str,
) -> None:
    """Encode every image of a dataset once.

    Args:
        family: Row of ``REFINERS`` that shelves embeddings.
        weights: File of the weights, or their name in the weights table.
        images: Folder of ``{case}.png``.
        cases: ``cases.csv``; its column ``case`` says which images.
        output: Folder to write, ``{case}.safetensors`` for each case; whole or absent.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        ConfigError: Unknown family, or one whose embeddings are not worth a file.
        WeightsError: The weights are absent, damaged or another model's.
        UltraRefinerError: An image is absent or damaged.
        OutputError: The folder cannot be written.
    """
    _require_shelf(family)
    names = sorted(row["case"] for row in read_rows(cases))
    require_files(images, names, "image", "Run prepare_dataset again.")
    # No row of options changes an embedding.
    refiner = load_refiner(family, weights, device)
    with atomic_directory(output) as folder:
        for case in _progress(names, "embed"):
            refiner.embed(_read_image(images, case)).save(embedding_path(folder, case))


def refine_masks(
    family: str,
    weights: str | None,
    options: dict[str, Any],
    prompts: str | Path,
    images: str | Path,
    soft_masks: str | Path,
    embeddings: str | Path | None,
    output: str | Path,
    device: str,
) -> None:
    """Refine every case of a prompts file.

    A case whose prompt is empty gets an empty mask: the prompts file has already decided what an
    empty coarse mask means.

    Args:
        family: Row of ``REFINERS``.
        weights: File of the weights, or their name in the weights table; None where none are used.
        options: The refiner row's own keys.
        prompts: The prompts file; its cases are refined, no others.
        images: Folder of ``{case}.png``.
        soft_masks: Folder of probabilities or masks ``{case}.png``, read for mask prompts.
        embeddings: Folder that ``embed_images`` wrote with the same weights; None to encode here.
        output: Folder to write, ``{case}.png`` of 0 and 255 for each case; whole or absent.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        ConfigError: Unknown family or option.
        WeightsError: The weights are absent, damaged or another model's, or not the ones that the
            embeddings were made with.
        PromptError: The refiner cannot use a prompt; the message names the case.
        UltraRefinerError: A file is absent or damaged, or an embedding is of another image.
        OutputError: The folder cannot be written.
    """
    file = load_prompts(prompts)
    names = sorted(file.cases)
    require_files(images, names, "image", "Run prepare_dataset again.")
    if embeddings is not None:
        _require_shelf(family)
        cure = "Run embed_images again for this dataset and these weights."
        require_files(embeddings, names, "embedding", cure, SUFFIX)
    refiner = load_refiner(family, weights, device, **options)
    empty = 0
    with atomic_directory(output) as folder:
        for case in _progress(names, "refine"):
            image = _read_image(images, case)
            prompt = _prompt(file, case, image, soft_masks)
            if prompt is None:
                empty += 1
                refined = np.zeros(image.shape[:2], dtype=bool)
            else:
                embedding = _embedding(refiner, embeddings, case, image)
                refined = _refine(refiner, embedding, prompt, case)
            write_mask(folder / f"{case}.png", refined)
    logger.info("refined %d cases, %d of them empty by their prompt", len(names), empty)


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


def _refine(
    refiner: Refiner, embedding: Embedding, prompt: Prompt | list[Prompt], case: str
) -> np.ndarray:
    try:
        return refiner.refine(embedding, prompt).mask
    except PromptError as error:
        raise PromptError(f"{case}: {error}") from None


def _embedding(
    refiner: Refiner, folder: str | Path | None, case: str, image: np.ndarray
) -> Embedding:
    if folder is None:
        return refiner.embed(image)
    path = embedding_path(folder, case)
    embedding = refiner.embedding_type.load(path)
    if embedding.image_sha256 != image_sha256(image):
        raise UltraRefinerError(
            f"{path} was made from another image than the present one of {case}. Run embed_images "
            "again."
        )
    return embedding


def _require_shelf(family: str) -> None:
    if not REFINERS[family].shelves_embeddings:
        keep = ", ".join(name for name, row in REFINERS.items() if row.shelves_embeddings)
        raise ConfigError(
            f"refiner family '{family}' keeps no embeddings on file (these do: {keep}); run "
            "refine_masks without them"
        )


def _read_image(images: str | Path, case: str) -> np.ndarray:
    return read_rgb(Path(images) / f"{case}.png")


def _progress(cases: list[str], verb: str) -> Iterator[str]:
    """Yield the cases; a bar on a terminal, a log line now and then everywhere."""
    # disable=None: no bar when stderr is a file.
    for done, case in enumerate(tqdm(cases, desc=verb, unit="case", disable=None)):
        if done % _LOG_EVERY == 0:
            logger.info("%s: %d of %d cases done", verb, done, len(cases))
        yield case
