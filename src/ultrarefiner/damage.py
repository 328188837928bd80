"""Inputs that are not what was written: found before a job reads them, moved aside, made anew.

Snakemake looks at times, not at content: a torn file would be read as if it were whole.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ultrarefiner.artefacts import Card, Digest, digest_of, find_card, find_changes
from ultrarefiner.errors import OutputError, UltraRefinerError, first_names

DAMAGED = ".damaged"
"""End of the name under which a damaged artefact is kept."""

# A shared file system may for a moment show an old card beside a new file, or a folder half-full.
_SETTLES_S = 2.0
_WHAT_NOW = (
    "Damage like this comes from a disk fault, a copy that broke off, or an edit by hand (make "
    "those in the configuration or in the raw data). Run the same command again: what was moved "
    "aside is made anew, with all that depends on it."
)


def check_inputs(run: Path | None, paths: Iterable[str]) -> dict[str, Digest]:
    """Return what identifies each input of a job, having compared it with its card.

    An artefact that is not what its job wrote is moved aside, so that the next run of Snakemake
    makes it again. Inputs without a card are only described.

    Args:
        run: Folder of the run; None: there are no cards.
        paths: Files and folders.

    Raises:
        UltraRefinerError: Some are damaged; it names the files, and where they were moved.
    """
    found: dict[str, Digest] = {}
    damage: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        if any(artefact in (Path(path), *Path(path).parents) for artefact in damage):
            continue
        digest, problem = _check_input(run, Path(path))
        if problem is None:
            found[path] = digest
        else:
            damage[problem[0]] = problem[1]
    if damage:
        raise UltraRefinerError("\n".join([*damage.values(), _WHAT_NOW]))
    return found


_Damage = tuple[Path, str]


def _check_input(run: Path | None, path: Path) -> tuple[Digest | None, _Damage | None]:
    """Return what identifies an input; if it is damaged, which artefact, and a message."""
    digest, damage = _look_at(run, path)
    if isinstance(damage, Card):
        time.sleep(_SETTLES_S)
        digest, damage = _look_at(run, path)
    if isinstance(damage, Card):
        artefact = Path(damage.artefact)
        changes = find_changes(damage, artefact, _inside(artefact, path))
        return None, (artefact, _set_aside(artefact, damage, changes))
    return digest, None if damage is None else (path, damage)


def _look_at(run: Path | None, path: Path) -> tuple[Digest | None, Card | str | None]:
    """Return what identifies an input; and what is wrong, or the card that it does not fit."""
    try:
        digest = digest_of(path)
    except FileNotFoundError:
        return None, _absent(path)
    except OSError as error:
        named = error.filename or path
        return None, f"cannot read {named}: {error.strerror or error}. Delete it, or grant access."
    card = None if run is None else find_card(run, path)
    if card is None or digest == card.digest:
        return digest, None
    artefact = Path(card.artefact)
    inside = _inside(artefact, path)
    if find_changes(card, artefact, inside):
        return None, card
    # Files that nobody wrote do not count, so that the digest is the one of the card.
    return digest if inside else card.digest, None


def _inside(artefact: Path, path: Path) -> str | None:
    return None if artefact == path else path.relative_to(artefact).as_posix()


def _absent(path: Path) -> str:
    for one in (path, *path.parents):
        aside = one.parent / f"{one.name}{DAMAGED}"
        if one.name and aside.exists():
            return f"{path} is not there: it was found damaged and moved to {aside}."
    return f"{path} is not there, though it was when this job was planned."


def _set_aside(artefact: Path, card: Card, changes: dict[str, str]) -> str:
    """Move a damaged artefact away, and return a message that names what is wrong with it."""
    named = first_names(f"{name or artefact.name} ({how})" for name, how in changes.items())
    what = f"{artefact} is not what {card.job.get('rule', 'its job')} wrote: {named}."
    aside = artefact.with_name(f"{artefact.name}{DAMAGED}")
    try:
        _move(artefact, aside)
        for folder in _second_names(aside):
            _move(folder, folder.with_name(f"{folder.name}{DAMAGED}"))
        card.path.unlink(missing_ok=True)
        card.listing.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{what} It cannot be moved aside: {error.strerror or error}. Delete it, and run the "
            "same command again."
        ) from None
    return f"{what} It was moved to {aside}."


def _move(path: Path, aside: Path) -> None:
    """Move a file or folder, in the place of what was moved there before."""
    # By a name of its own: of two jobs that find the same damage only one can do the first step,
    # and the other must not clear away what that one has just moved.
    own = path.with_name(f"{path.name}{DAMAGED}-{uuid.uuid4().hex[:8]}")
    try:
        path.rename(own)
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink()
    own.rename(aside)


def _second_names(artefact: Path) -> list[Path]:
    """Return the folder of a training's state if it holds the same bytes under another name.

    A finished training keeps its model there, and would hand out the damaged one again.
    """
    folder = artefact.parent / "resume"
    if not artefact.is_file() or not folder.is_dir():
        return []
    return [folder] if any(one.samefile(artefact) for one in folder.iterdir()) else []
