"""Weights from the internet: resumed when the line breaks, verified, never a half file in place.

Everything happens in a hidden folder beside the target, so that a killed job leaves nothing else
and the next one goes on where it ended. What stands under the target's name is whole and verified.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO
from urllib.parse import quote

import pooch

from ultrarefiner.errors import OutputError, WeightsError
from ultrarefiner.io import PARTIAL, atomic_path
from ultrarefiner.models.download import ResumingDownloader, SourceError
from ultrarefiner.models.weights import WEIGHTS, WeightsFile, how_to_get, terms_to_accept
from ultrarefiner.models.weights_record import (
    checked_sha256,
    checksum_problem,
    record_path,
    record_weights,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def fetch_weights(
    name: str,
    target: str | Path,
    mirrors: Sequence[str] = (),
    accepted: Collection[str] = (),
) -> Path:
    """Fetch a file of the table of weights; a file that is there already is only verified.

    Args:
        name: A row of ``WEIGHTS``.
        target: Where the file goes.
        mirrors: Addresses of folders that hold copies; tried first, in this order.
        accepted: The rows whose terms were accepted, where a row asks for it.

    Returns:
        The target.

    Raises:
        ConfigError: Unknown name.
        WeightsError: The terms are not accepted, or no source gave the file; the message lists
            each with its reason, and says how to get the file by hand.
        OutputError: The target cannot be written.
    """
    return fetch_row(name, WEIGHTS[name], target, mirrors, accepted)


def fetch_row(
    name: str,
    row: WeightsFile,
    target: str | Path,
    mirrors: Sequence[str] = (),
    accepted: Collection[str] = (),
    wait: float = 2.0,
) -> Path:
    """Fetch the file of a row; see ``fetch_weights``.

    Args:
        name: Name of the row.
        row: The row.
        target: Where the file goes.
        mirrors: Addresses of folders that hold copies; tried first, in this order.
        accepted: The rows whose terms were accepted, where a row asks for it.
        wait: Seconds before a broken connection is tried again; it doubles with each failure.
    """
    target = Path(target)
    if row.accept and name not in accepted:
        raise WeightsError(terms_to_accept(name, row))
    sources = [f"{mirror.rstrip('/')}/{quote(row.file)}" for mirror in mirrors] + [*row.urls]
    with _held(target.with_name(f"{PARTIAL}fetch-{target.name}")) as folder:
        _keep_partials(folder, sources)
        if target.is_file():
            _verify(name, row, target)
        else:
            _fetch(name, row, target, sources, folder, wait)
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _verify(name: str, row: WeightsFile, target: Path) -> None:
    """Check a file that is there already."""
    found = target.stat().st_size
    if found != row.bytes:
        raise WeightsError(
            f"{target} is there, but it has {found} bytes and the published file {row.bytes}: cut "
            "off, or another file. Delete it and fetch it again; a file of your own needs a place of "
            "its own."
        )
    problem = None if row.checksum is None else checksum_problem(target, row.checksum)
    if problem is not None:
        raise WeightsError(
            f"{target} is there, but it is not the published file: {problem}. Delete it and fetch "
            "it again; a file of your own needs a place of its own."
        )
    if record_path(target).is_file():
        checked_sha256(target)
    else:
        record_weights(target, name, row, None, accepted=row.accept)
    logger.info("%s is there already", target)


def _fetch(
    name: str, row: WeightsFile, target: Path, sources: list[str], folder: Path, wait: float
) -> None:
    reasons = []
    for url in sources:
        logger.info("%s: %s from %s", name, row.size, url)
        try:
            whole = _from(url, row, folder, wait)
        except SourceError as error:
            logger.info("%s: %s", url, error)
            reasons.append(f"{url}: {error}")
            continue
        with atomic_path(target) as temporary:
            whole.replace(temporary)
        digest = record_weights(target, name, row, url, accepted=row.accept)
        known = "the published checksum" if row.checksum else "trusted on first use, and recorded"
        logger.info("%s: %s, SHA-256 %s (%s)", target, row.size, digest, known)
        return
    listed = "\n  - ".join([f"weights '{name}' could not be fetched:", *reasons])
    raise WeightsError(f"{listed}\n{how_to_get(name, row, target)}.")


def _from(url: str, row: WeightsFile, folder: Path, wait: float) -> Path:
    """Return the verified file from one source, in the hidden folder.

    Raises:
        SourceError: The source does not give it.
    """
    # Its advice on files without a known checksum is not for our users.
    pooch.get_logger().setLevel(logging.WARNING)
    partial = folder / _digits(url)
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=row.checksum,
                fname=row.file,
                path=folder,
                downloader=ResumingDownloader(partial, row.bytes, wait),
            )
        )
    except ValueError as error:
        # pooch has deleted the file: resuming it would give the same wrong bytes again.
        said = re.search(r"expected (\S+) but got (\w+)", str(error))
        found = f"their checksum is {said[2]}, published is {said[1]}" if said else error
        raise SourceError(f"its bytes are not those of the published file: {found}") from None
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}. Free space or grant permission on "
            f"{folder.parent}."
        ) from None


def _digits(url: str) -> str:
    return sha256(url.encode()).hexdigest()[:16]


def _keep_partials(folder: Path, sources: list[str]) -> None:
    """Remove all but the partial files of these sources from what a killed job left."""
    kept = {"lock"} | {_digits(url) + suffix for url in sources for suffix in ("", ".json")}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


@contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """Hold the hidden folder for one process; another one waits here until the first is done."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = open(folder / "lock", "a")  # noqa: SIM115 - held as long as the folder is
        except FileNotFoundError:
            continue  # the process before us has just removed the folder
        except OSError as error:
            raise OutputError(
                f"cannot write {folder.parent}: {error.strerror or error}. Grant permission, or "
                "name another folder."
            ) from None
        with handle:
            _lock(handle)
            if _is_current(handle, folder / "lock"):
                try:
                    yield folder
                finally:
                    if folder.exists() and not _has_partial(folder):
                        shutil.rmtree(folder, ignore_errors=True)
                return


def _has_partial(folder: Path) -> bool:
    """Whether there is something to go on with."""
    return any(path.suffix != ".json" and path.stat().st_size > 0 for path in folder.iterdir())


def _lock(handle: IO[str]) -> None:
    if fcntl is None:
        return
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            logger.info("another process is fetching this file; waiting for it")
            fcntl.lockf(handle, fcntl.LOCK_EX)
    except OSError as error:  # a file system without locks
        logger.warning("cannot lock (%s); let only one process fetch this file", error)


def _is_current(handle: IO[str], path: Path) -> bool:
    """Whether an open lock file is still the one that others would open."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False
