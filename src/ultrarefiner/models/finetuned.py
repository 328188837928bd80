"""Finetuned weights and the encoder that they may share with the weights they began as."""

from __future__ import annotations

from pathlib import Path

from ultrarefiner.models.export import read_about
from ultrarefiner.models.weights_record import checked_sha256

ENCODER_OF = "encoder_of"
"""Entry of a finetuned file: SHA-256 of the weights whose encoder it has, unchanged."""


def encoder_sha256(path: str | Path) -> str:
    """Return what a file's embeddings are kept under: a SHA-256 that names its encoder.

    That of the file itself; where finetuning left the encoder as it was, that of the weights it
    began as, so that no image is encoded again for a finetuned decoder.

    Raises:
        WeightsError: The bytes are not those that they should be.
    """
    return read_about(path).get(ENCODER_OF) or checked_sha256(path)
