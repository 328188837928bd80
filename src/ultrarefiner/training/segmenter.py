"""A trained model of a study, ready for any image: coarse models, and those trained end to end."""

from __future__ import annotations

from pathlib import Path

from ultrarefiner.models.cards import read_card
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.training.coarse_segmenter import CoarseSegmenter
from ultrarefiner.training.segmented import END_TO_END, Segmenter


def open_segmenter(
    model: str | Path, card: str | Path, device: str = "auto", shelf: Shelf | None = None
) -> Segmenter:
    """Load a coarse model or one that was trained end to end.

    Args:
        model: ``model.safetensors``.
        card: ``card.json`` beside it.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        shelf: Where embeddings are kept, for a model that was trained end to end; None: every image
            is encoded.

    Raises:
        WeightsError: A file is absent or damaged, or they do not belong together.
        ConfigError: The device is not on this machine.
    """
    if read_card(card)["phase"] == END_TO_END:
        # Only here: coarse models need nothing of a SAM.
        from ultrarefiner.training.end_to_end_segmenter import EndToEndSegmenter

        return EndToEndSegmenter(model, card, device, shelf)
    return CoarseSegmenter(model, card, device)
