"""Refiner on MobileSAM: SAM's refiner with a small image encoder."""

from __future__ import annotations

from typing import ClassVar

from ultrarefiner.refine.sam import SamRefiner


class MobileSamRefiner(SamRefiner):
    """Refine with MobileSAM; prompts, options and masks are those of ``SamRefiner``."""

    family: ClassVar[str] = "mobile_sam"
