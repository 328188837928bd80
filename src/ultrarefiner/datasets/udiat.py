"""UDIAT: the name that many papers give to Dataset B, see `bus`; a row of its own, read as that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ultrarefiner.datasets import bus
from ultrarefiner.datasets.base import Listing

_TITLE = "UDIAT"
_EXPECTS = "the folders original/ and GT/ (UDIAT)"


def list_udiat(root: Path) -> Listing:
    """List the images and masks of UDIAT; see `bus.list_bus`."""
    return bus.list_bus(root, _TITLE, _EXPECTS)


ROW = replace(
    bus.ROW,
    title=_TITLE,
    adapter=list_udiat,
    expects=_EXPECTS,
    terms="on request from the authors (M. H. Yap), for research; not to be redistributed. The "
    "same 163 images as `bus` (Dataset B): a model trained on the one has seen the other",
)
