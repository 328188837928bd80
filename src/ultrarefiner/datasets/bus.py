"""Dataset B: `original/000001.png` with `GT/000001.png`. `bus` and `udiat` are two names for it."""

from __future__ import annotations

from pathlib import Path

from ultrarefiner.datasets.base import (
    Case,
    DatasetRow,
    Listing,
    list_folder,
    locate_folder,
    subfolders,
)
from ultrarefiner.datasets.pairing import leave_out, pair_folders

_IMAGES, _MASKS = "original", "gt"
_TABLE = "datasetb.xlsx"
_TITLE = "Dataset B"
_EXPECTS = "the folders original/ and GT/ (BUS)"


def list_bus(root: Path, title: str = _TITLE, expects: str = _EXPECTS) -> Listing:
    """List the images and masks of Dataset B.

    The archive tells no patients and, but for a spreadsheet that some copies have, no classes.

    Args:
        root: Folder of original/ and GT/, or the folder that holds it.
        title: Name of the dataset, for messages.
        expects: What the folder holds, for messages.

    Raises:
        DatasetError: The folder does not hold original/ and GT/.
    """
    folder = locate_folder(
        root, lambda path: {_IMAGES, _MASKS} <= set(subfolders(path)), title, expects
    )
    listing = Listing(folder)
    leave_out(listing, folder, {_IMAGES, _MASKS, _TABLE})
    for entry in list_folder(folder):
        if entry.name.lower() == _TABLE:
            listing.warnings.append(
                f"{entry}: its classes are not read, so the classes of these images are unknown; "
                "for results by class describe the images in a table of the layout `manifest`"
            )
    inside = subfolders(folder)
    for pair in pair_folders(listing, inside[_IMAGES], inside[_MASKS]):
        listing.cases.append(Case(pair.name, pair.image, pair.masks))
    return listing


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_bus,
    expects=_EXPECTS,
    # The number of benign images is given as 109 and as 110, so no class has a published count.
    counts={"images": 163},
    source="https://doi.org/10.1109/JBHI.2017.2731873",
    terms="on request from the authors (M. H. Yap), for research; not to be redistributed. "
    "`udiat` is another name for the same 163 images",
    citation="Yap et al. Automated breast ultrasound lesions detection using convolutional neural "
    "networks. IEEE Journal of Biomedical and Health Informatics 22(4), 1218-1226 (2018). "
    "doi:10.1109/JBHI.2017.2731873",
)
