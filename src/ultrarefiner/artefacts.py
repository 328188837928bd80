"""Cards of artefacts: what made each output, its checksum, and whether it still is what was made.

The card of ``results/main/report/summary.csv`` is ``results/main/provenance/report/summary.csv.json``.
Beside the card of a folder stands a listing of its files in the form of ``sha256sum``; the SHA-256
of that listing is the SHA-256 of the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import (
    atomic_path,
    file_sha256,
    hashed_files,
    read_json,
    tree_files,
    write_text,
)

FOLDER = "provenance"
"""Folder of a run that holds the cards."""

_NOTES = ".begun"


@dataclass(frozen=True)
class Digest:
    """What identifies an artefact.

    Attributes:
        sha256: Of a file's bytes; of the listing of a folder's files.
        bytes: Size in bytes.
        files: How many files a folder holds; None: it is a file.
    """

    sha256: str
    bytes: int
    files: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return the digest for a record."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Card:
    """The card of an output.

    Attributes:
        path: File of the card.
        artefact: The output, as its job named it.
        digest: What was written.
        job: The record of the job.
    """

    path: Path
    artefact: str
    digest: Digest
    job: dict[str, Any]

    @property
    def listing(self) -> Path:
        """File that lists the SHA-256 of each file of a folder."""
        return _listing(self.path)


def run_folder(log: str | Path, rule: str) -> Path | None:
    """Return the folder of the run that a job belongs to; None: its log tells of none.

    Args:
        log: The job's log, ``results/{run}/logs/{rule}/...``.
        rule: The rule; used from another workflow its name has a prefix.
    """
    parts = Path(log).parts
    for place in range(1, len(parts) - 2):
        name = parts[place + 1]
        if parts[place] == "logs" and (rule == name or rule.endswith(f"_{name}")):
            return Path(*parts[:place])
    return None


def card_path(run: Path, artefact: str | Path) -> Path | None:
    """Return where the card of an output belongs; None: it lies outside of the run."""
    try:
        below = Path(artefact).relative_to(run)
    except ValueError:
        return None
    return run / FOLDER / below.parent / f"{below.name}.json"


def digest_of(path: str | Path) -> Digest:
    """Return what identifies a file or folder as it is now.

    Raises:
        FileNotFoundError: There is none.
    """
    path = Path(path)
    if not path.is_dir():
        return Digest(file_sha256(path), path.stat().st_size)
    return _tree_digest(_lines(path, tree_files(path)))


def _lines(folder: Path, names: list[str]) -> Iterator[tuple[str, int]]:
    """Yield the line of each file in a folder's listing, and its bytes."""
    for name, digest, size in hashed_files(folder, names):
        yield f"{digest}  {name}\n", size


def _tree_digest(lines: Iterable[tuple[str, int]]) -> Digest:
    whole, size, files = hashlib.sha256(), 0, 0
    for line, bytes_ in lines:
        whole.update(line.encode())
        size += bytes_
        files += 1
    return Digest(whole.hexdigest(), size, files)


def write_card(run: Path, artefact: str | Path, job: dict[str, Any]) -> None:
    """Write the card of an output, if it is one of the run.

    Args:
        run: Folder of the run.
        artefact: The output, a file or a folder.
        job: The record of the job that made it.

    Raises:
        OutputError: The card cannot be written.
    """
    path = card_path(run, artefact)
    if path is None or not Path(artefact).exists():
        return
    if Path(artefact).is_dir():
        digest = _write_listing(_listing(path), Path(artefact))
    else:
        digest = digest_of(artefact)
    card = {"artefact": str(artefact), **digest.facts(), "job": job}
    write_text(path, json.dumps(card, indent=2, default=str) + "\n")


def _listing(card: Path) -> Path:
    return card.with_suffix(".sha256")


def _write_listing(path: Path, folder: Path) -> Digest:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as listing:

        def written() -> Iterator[tuple[str, int]]:
            for line, size in _lines(folder, tree_files(folder)):
                listing.write(line)
                yield line, size

        return _tree_digest(written())


def begin_outputs(run: Path, log: str | Path, artefacts: Iterable[str | Path]) -> None:
    """Note that a job begins to make its outputs, whose cards are removed.

    Args:
        run: Folder of the run.
        log: The job's log, which stands for it.
        artefacts: Its outputs.

    Raises:
        OutputError: The note cannot be written.
    """
    artefacts = [str(artefact) for artefact in artefacts]
    write_text(_note(run, log), json.dumps(artefacts))
    for artefact in artefacts:
        if path := card_path(run, artefact):
            # What they say does not hold while the output is made again.
            path.unlink(missing_ok=True)
            _listing(path).unlink(missing_ok=True)


def end_outputs(run: Path, log: str | Path, artefacts: Iterable[str], job: dict[str, Any]) -> None:
    """Write the cards of a job's outputs, and remove the note that it has begun.

    Args:
        run: Folder of the run.
        log: The job's log.
        artefacts: Its outputs.
        job: Its record.

    Raises:
        OutputError: A card cannot be written.
    """
    for artefact in artefacts:
        write_card(run, artefact, job)
    _note(run, log).unlink(missing_ok=True)


def unfinished_outputs(run: str | Path) -> list[str]:
    """Return the outputs that are not there because a job began to make them and did not succeed.

    Snakemake removes outputs before it makes them again and then does not miss them: where all that
    depends on them is still there, from before, it plans nothing. They have to be asked for.

    Args:
        run: Folder of the run.
    """
    notes = sorted(Path(run, FOLDER, _NOTES).glob("*.json"))
    outputs = dict.fromkeys(output for note in notes for output in read_json(note))
    return [output for output in outputs if not Path(output).exists()]


def _note(run: Path, log: str | Path) -> Path:
    return run / FOLDER / _NOTES / f"{hashlib.sha256(str(log).encode()).hexdigest()[:32]}.json"


def read_card(path: Path) -> Card | None:
    """Return the card in a file; None where there is none, or none that is whole.

    Raises:
        UltraRefinerError: The file is no card.
    """
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        digest = Digest(values["sha256"], values["bytes"], values.get("files"))
        card = Card(path, values["artefact"], digest, values["job"])
    except (KeyError, TypeError, AttributeError):
        raise UltraRefinerError(
            f"{path} is not the card of an artefact. Delete it: the artefact then counts as made "
            "without a card."
        ) from None
    # Card and listing are two files: a job that was killed between them left two that differ.
    if digest.files is not None and not _is_whole(card):
        return None
    return card


def _is_whole(card: Card) -> bool:
    return card.listing.is_file() and file_sha256(card.listing) == card.digest.sha256


def find_card(run: Path, path: str | Path) -> Card | None:
    """Return the card of an output, or of the folder of a run that a file is part of."""
    path = Path(path)
    for artefact in (path, *path.parents):
        where = card_path(run, artefact)
        if where is None or artefact == run:
            return None
        if (card := read_card(where)) is not None:
            return card
    return None


def listed(card: Card) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder by its name, as they were written."""
    lines = card.listing.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def find_changes(card: Card, artefact: Path, only: str | None = None) -> dict[str, str]:
    """Return the files that are not as they were written, and how: "changed" or "missing".

    Args:
        card: The card.
        artefact: Where the artefact is.
        only: One file of a folder; None: all that are on the card. Others are no change.

    Returns:
        By name; that of the artefact itself is empty.
    """
    if card.digest.files is None:
        if not artefact.is_file():
            return {"": "missing"}
        return {} if file_sha256(artefact) == card.digest.sha256 else {"": "changed"}
    known = listed(card)
    names = list(known) if only is None else [only] if only in known else []
    found = hashed_files(artefact, names)
    return {
        name: "changed" if digest else "missing"
        for name, digest, _ in found
        if digest != known[name]
    }
