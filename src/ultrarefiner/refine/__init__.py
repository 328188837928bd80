"""Refiners: one registry row for each family; model code is imported on first use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ultrarefiner.config import Section, explain
from ultrarefiner.errors import ConfigError
from ultrarefiner.refine.base import Embedding, Refinement, Refiner
from ultrarefiner.refine.options import (
    GrabCutOptions,
    MedSam2Options,
    SamOptions,
    SamUNetOptions,
    UltraSamOptions,
)
from ultrarefiner.registry import Registry, resolve, unknown_name

__all__ = ["REFINERS", "Embedding", "Refinement", "Refiner", "load_refiner", "parse_options"]


@dataclass(frozen=True)
class RefinerFamily:
    """A row of the registry.

    Attributes:
        target: The class, as "module:attribute"; called as ``Class(weights, device, options)``.
        options: The model of the row's own keys.
        needs_weights: Whether the family cannot run without a weights file.
        shelves_embeddings: Whether embedding is worth a file for each image.
        needs_mask: Why the family refuses prompts without a mask; empty when it takes them.
        embedding_options: The options that change an embedding.
        trainable: Whether it can be finetuned.
        encoder_blocks: Whether its encoder is a row of equal blocks, of which the last ones can be
            trained alone and each can take low-rank additions.
        encoder_additions: Whether its encoder's blocks take low-rank additions, though they differ.
        scratch: Whether there is a small model of it that begins from random weights.
        joint: Whether it can be trained as one with a coarse model.
        adapts_encoder: Whether training changes its embeddings although its encoder rests.
        begins_as: Other families whose weights its training can begin with.
        begin: How its training begins, as "module:function"; see ``begin.begin_refiner``. Empty:
            as the refiner is loaded.
    """

    target: str
    options: type[Section]
    needs_weights: bool = False
    shelves_embeddings: bool = False
    needs_mask: str = ""
    embedding_options: tuple[str, ...] = ()
    trainable: bool = False
    encoder_blocks: bool = False
    encoder_additions: bool = False
    scratch: bool = False
    joint: bool = False
    adapts_encoder: bool = False
    begins_as: tuple[str, ...] = ()
    begin: str = ""


REFINERS: Registry[RefinerFamily] = Registry(
    "refiner family",
    {
        "grabcut": RefinerFamily(
            "ultrarefiner.refine.grabcut:GrabCutRefiner",
            GrabCutOptions,
            needs_mask="from a rectangle or a point alone GrabCut finds next to nothing on "
            "ultrasound (mean Dice at most 0.12 on the 42 images of STU-Hospital); use a prompt of "
            "kind 'mask' or 'mask+point'",
        ),
        "sam": RefinerFamily(
            "ultrarefiner.refine.sam:SamRefiner",
            SamOptions,
            needs_weights=True,
            shelves_embeddings=True,
            embedding_options=("precision",),
            trainable=True,
            encoder_blocks=True,
            scratch=True,
            joint=True,
        ),
        "medsam2": RefinerFamily(
            "ultrarefiner.refine.medsam2:MedSam2Refiner",
            MedSam2Options,
            needs_weights=True,
            shelves_embeddings=True,
            embedding_options=("precision", "resize", "image_size"),
            trainable=True,
            encoder_additions=True,
        ),
        "mobile_sam": RefinerFamily(
            "ultrarefiner.refine.mobile_sam:MobileSamRefiner",
            SamOptions,
            needs_weights=True,
            shelves_embeddings=True,
            embedding_options=("precision",),
            trainable=True,
            joint=True,
        ),
        "sam_unet": RefinerFamily(
            "ultrarefiner.refine.sam_unet:SamUNetRefiner",
            SamUNetOptions,
            needs_weights=True,
            shelves_embeddings=True,
            trainable=True,
            adapts_encoder=True,
            begins_as=("sam",),
            begin="ultrarefiner.refine.sam_unet:begin",
        ),
        "ultrasam": RefinerFamily(
            "ultrarefiner.refine.ultrasam:UltraSamRefiner",
            UltraSamOptions,
            needs_weights=True,
            shelves_embeddings=True,
            embedding_options=("precision", "padding"),
            trainable=True,
            encoder_blocks=True,
            joint=True,
        ),
    },
)


def parse_options(family: str, options: dict[str, Any]) -> Section:
    """Check a refiner row's own keys.

    Raises:
        ConfigError: Unknown family or key, or a value out of range.
    """
    row = REFINERS[family]
    known = row.options.model_fields
    for key in options:
        if key not in known:
            raise ConfigError(unknown_name(f"option of refiner family '{family}'", key, known))
    try:
        return row.options.model_validate(options)
    except ValidationError as error:
        lines = [explain(item, row.options).removeprefix("config: ") for item in error.errors()]
        raise ConfigError(f"refiner family '{family}': {'; '.join(lines)}") from None


def load_refiner(
    family: str, weights: str | None = None, device: str = "cpu", **row_options: Any
) -> Refiner:
    """Return a refiner, ready to ``embed`` and ``refine``.

    Args:
        family: A row of ``REFINERS``.
        weights: File of the model's weights, or its name in the weights table.
        device: Where it runs: "cpu", "cuda", "auto".
        row_options: The family's own options.

    Raises:
        ConfigError: Unknown family or option.
        WeightsError: The weights are absent, damaged or another model's.
    """
    row = REFINERS[family]
    options = parse_options(family, row_options)
    if row.needs_weights and weights is None:
        raise ConfigError(
            f"refiner family '{family}' needs `weights`: a file, or a name in the table"
        )
    if not row.needs_weights and weights is not None:
        raise ConfigError(
            f"refiner family '{family}' takes no weights; remove `weights: {weights}`"
        )
    return resolve(row.target)(weights, device, options)
