"""Is a weights file what it should be? A published checksum says so, or the record of first use."""

from __future__ import annotations

import hashlib
import logging
import re
from datetime import UTC, datetime
from pathlib import Path

from ultrarefiner.errors import OutputError, WeightsError
from ultrarefiner.io import file_sha256, read_json, write_json
from ultrarefiner.models.weights import (
    FOLDER,
    WEIGHTS,
    WeightsFile,
    fetched_anew,
    name_of_file,
)

logger = logging.getLogger(__name__)

_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*(<(!doctype|html|head|\?xml)|\{\s*\")", re.IGNORECASE)


def is_web_page(start: bytes) -> bool:
    """Return whether a file that begins so is a server's page or JSON answer, not weights."""
    return _WEB_PAGE.match(start) is not None


def checked_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a weights file, having compared it with what the file should be.

    That is what the record beside it says. A file of the table that lies in the weights folder
    without a record (put there by hand) is compared with the published checksum, if there is one,
    and recorded. Any other file is the user's own and is only hashed.

    Raises:
        WeightsError: The bytes are not those that they should be.
    """
    path = Path(path)
    record = record_path(path)
    if record.is_file():
        digest, recorded = file_sha256(path), _recorded(record)
        if digest != recorded:
            raise WeightsError(
                f"{path} has changed: its SHA-256 is {digest}, recorded on first use was "
                f"{recorded}. Put the first file back; or, if you replaced it on purpose, delete "
                f"{record}."
            )
        return digest
    name = name_of_file(path.name)
    if name is None or path.absolute().parent.parts[-2:] != Path(FOLDER).parts:
        return file_sha256(path)
    row = WEIGHTS[name]
    if row.checksum is not None and (problem := checksum_problem(path, row.checksum)):
        raise WeightsError(
            f"{path} is not the published file: {problem}. Delete it; {fetched_anew(name)}"
        )
    return record_weights(path, name, row, url=None)


def checksum_problem(path: Path, checksum: str) -> str | None:
    """Return how a file differs from an "algorithm:digits" checksum; None: it does not."""
    algorithm, _, wanted = checksum.partition(":")
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, algorithm).hexdigest()
    return None if found == wanted else f"its {algorithm} is {found}, the published one {wanted}"


def record_path(path: str | Path) -> Path:
    """Return where it is recorded what a weights file is."""
    return Path(f"{path}.json")


def record_weights(
    path: Path, name: str, row: WeightsFile, url: str | None, accepted: bool = False
) -> str:
    """Record beside a weights file what it is, and return its SHA-256.

    Args:
        path: The file.
        name: Name of its row.
        row: The row.
        url: Where it was fetched; None: somebody put it there.
        accepted: Whether its terms were asked for and accepted by name.
    """
    digest = file_sha256(path)
    record = {
        "weights": name,
        "sha256": digest,
        "bytes": path.stat().st_size,
        "url": url,
        "licence": row.licence,
        "terms": row.terms,
        "terms_accepted": accepted,
        "recorded": datetime.now(UTC).date().isoformat(),
    }
    try:
        write_json(record_path(path), record)
    except OutputError as error:  # a shared folder that only its keeper writes
        logger.info("%s is not recorded: %s", path, error)
    return digest


def _recorded(record: Path) -> str:
    values = read_json(record)
    digest = values.get("sha256") if isinstance(values, dict) else None
    if not isinstance(digest, str):
        raise WeightsError(
            f"{record} does not say what the file beside it was. Delete {record}: it is made anew."
        )
    return digest
