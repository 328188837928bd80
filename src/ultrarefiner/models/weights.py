"""Published weights: where they come from, under which terms, and where they are on the disk."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ultrarefiner.errors import WeightsError
from ultrarefiner.registry import Registry, unknown_name

logger = logging.getLogger(__name__)

FOLDER = "resources/weights"


@dataclass(frozen=True)
class WeightsFile:
    """A row of the table of weights.

    Attributes:
        file: Name of the file in the weights folder.
        url: Where the authors publish it.
        bytes: Size of the published file; None when unknown.
        licence: SPDX name of the licence.
        terms: What the licence asks of a user, and what else to know before a use.
        citation: The paper to cite.
        family: Which loader reads it: "transunet" or "sam".
        trained_on: What the weights have seen, for judging a score on public images.
    """

    file: str
    url: str
    bytes: int | None
    licence: str
    terms: str
    citation: str
    family: str
    trained_on: str


_APACHE = "Free use and redistribution with the licence text and a note of changes."
_SAM_PAPER = "Kirillov et al., Segment Anything, ICCV 2023, arXiv 2304.02643"
_SAM_DATA = "SA-1B: 11 million photographs; no medical images."
_SAM_FOLDER = "https://dl.fbaipublicfiles.com/segment_anything"


def _sam(file: str, size: int) -> WeightsFile:
    return WeightsFile(
        file=file,
        url=f"{_SAM_FOLDER}/{file}",
        bytes=size,
        licence="Apache-2.0",
        terms=_APACHE,
        citation=_SAM_PAPER,
        family="sam",
        trained_on=_SAM_DATA,
    )


WEIGHTS: Registry[WeightsFile] = Registry(
    "weights file",
    {
        "r50_vit_b_16": WeightsFile(
            file="R50+ViT-B_16.npz",
            url="https://storage.googleapis.com/vit_models/imagenet21k/R50%2BViT-B_16.npz",
            bytes=461_217_452,
            licence="Apache-2.0",
            terms=_APACHE,
            citation="Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image "
            "Recognition at Scale, ICLR 2021, arXiv 2010.11929",
            family="transunet",
            trained_on="ImageNet-21k: 14 million photographs; no medical images.",
        ),
        "sam_vit_b": _sam("sam_vit_b_01ec64.pth", 375_042_383),
        "sam_vit_l": _sam("sam_vit_l_0b3195.pth", 1_249_524_607),
        "sam_vit_h": _sam("sam_vit_h_4b8939.pth", 2_564_550_879),
        "medsam_vit_b": WeightsFile(
            file="medsam_vit_b.pth",
            url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
            bytes=375_049_145,
            licence="Apache-2.0",
            terms=f"{_APACHE} The Zenodo record 10689643 is marked CC-BY-4.0: credit the authors.",
            citation="Ma et al., Segment Anything in Medical Images, Nature Communications 15, "
            "654, 2024, doi 10.1038/s41467-024-44824-z",
            family="sam",
            trained_on="1.57 million public medical image-mask pairs of ten modalities, "
            "ultrasound among them: it may have seen the images of a public dataset.",
        ),
    },
)


def _row_of_file(path: Path) -> tuple[str, WeightsFile] | None:
    return next(((name, row) for name, row in WEIGHTS.items() if row.file == path.name), None)


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or bool(Path(text).suffix)


def _absent(name: str, row: WeightsFile, target: Path) -> WeightsError:
    size = "" if row.bytes is None else f" ({row.bytes / 1e6:.0f} MB, {row.licence})"
    return WeightsError(
        f"weights '{name}' are absent: {target} is not there. Download {row.url}{size} and save it "
        f"as {target.absolute()}; or give the path of a copy in place of the name '{name}'."
    )


def locate_weights(name_or_path: str | Path, folder: str | Path = FOLDER) -> Path:
    """Return the weights file that a name of the table, or a path, stands for.

    Args:
        name_or_path: A row of ``WEIGHTS``, looked up in ``folder``; anything with a separator or
            a suffix, or an existing file, is taken as a path.
        folder: The weights folder.

    Raises:
        WeightsError: Unknown name (with the nearest known one), or no such file (with the
            address to download it from and the place to put it).
    """
    text = str(name_or_path)
    if text in WEIGHTS and not isinstance(name_or_path, Path):
        row = WEIGHTS[text]
        target = Path(folder) / row.file
        if not target.is_file():
            raise _absent(text, row, target)
        if row.bytes is not None and target.stat().st_size != row.bytes:
            logger.warning(
                "%s has %d bytes, the published file %d: cut off, or another file of that name",
                target,
                target.stat().st_size,
                row.bytes,
            )
        return target
    path = Path(text)
    if path.is_file():
        return path
    if not _looks_like_path(text) and not isinstance(name_or_path, Path):
        raise WeightsError(
            f"{unknown_name('weights', text, WEIGHTS)} For a file of your own give its path."
        )
    known = _row_of_file(path)
    if known is not None:
        raise _absent(*known, path)
    what = "is a folder, not a file" if path.is_dir() else "no such weights file"
    raise WeightsError(
        f"{path}: {what}. Give the path of a weights file, or one of the known names: "
        f"{', '.join(sorted(WEIGHTS))}."
    )


def weights_name(name_or_path: str | Path) -> str:
    """Return a name of lower-case letters, digits and underscores for a weights file.

    A name of ``WEIGHTS`` stays. A path becomes its stem and eight digits of the path's hash, so
    that two files called ``model.pth`` never share a folder of embeddings.
    """
    text = str(name_or_path)
    if text in WEIGHTS and not isinstance(name_or_path, Path):
        return text
    path = Path(text)
    stem = re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_")
    digest = sha256(path.as_posix().encode()).hexdigest()[:8]
    return f"{stem or 'weights'}_{digest}"
