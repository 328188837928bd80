"""Files: read with a clear error, written to a temporary name and then renamed.

A file or folder that stands under its final name is whole; a killed job leaves only a
``.partial-*`` entry beside it, which the next run of the same job removes.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultrarefiner.errors import OutputError, UltraRefinerError

PARTIAL = ".partial-"
"""How the temporary names of files and folders begin."""
_CANNOT_WRITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.ENOTDIR,
}
_PROBE_BYTES = 1 << 20
_SNAKEMAKES = ".snakemake_timestamp"
_READERS, _BATCH = 8, 512


def _in_partial_folder(path: Path) -> bool:
    return any(part.startswith(PARTIAL) for part in path.parts[:-1])


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _partial_name(path: Path) -> Path:
    """Return a temporary name that tells whose it is, and remove those of dead processes."""
    host = re.sub(r"\W", "_", platform.node())
    if not _in_partial_folder(path):
        for stale in path.parent.glob(f"{PARTIAL}{host}-*-{path.name}"):
            process = stale.name.removeprefix(f"{PARTIAL}{host}-").split("-")[0]
            if process.isdigit() and int(process) != os.getpid() and _is_dead(int(process)):
                _remove(stale)
    unique = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    # The suffix stays last: image writers choose the format by it.
    return path.parent / f"{PARTIAL}{unique}-{path.name}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> Exception:
    if error.errno not in _CANNOT_WRITE:
        return error
    return OutputError(
        f"cannot write {path}: {_reason(path.parent, error)}. Free space or grant permission on "
        f"{path.parent}, or choose another results folder; nothing half-written was left."
    )


def _reason(folder: Path, error: OSError) -> str:
    if error.errno == errno.EDQUOT:
        return "your disk quota is used up"
    if error.errno == errno.EFBIG:
        return "a file of this size is not allowed here (`ulimit -f`, or the file system's limit)"
    if error.errno != errno.ENOSPC:
        return error.strerror or str(error)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return "the disk is full"
    return f"the disk is full ({free / 1e6:.1f} MB free)"


def _refused(temporary: Path) -> OSError | None:
    """Return why no more can be written to a file that is about to be removed, or in its folder.

    Writers in C++ and Rust tell of a full disk in words of their own; the system tells it here.
    """
    probe = temporary / PARTIAL if temporary.is_dir() else temporary
    try:
        with open(probe, "ab") as handle:
            handle.write(bytes(_PROBE_BYTES))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        return error if error.errno in _CANNOT_WRITE else None
    return None


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success what stands there takes its place."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _partial_name(path)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    except UltraRefinerError:
        raise
    except Exception as error:
        refused = None if temporary is None else _refused(temporary)
        if refused is None:
            raise
        raise _cannot_write(path, refused) from error
    finally:
        if temporary is not None:
            _remove(temporary)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary file name beside ``path``; rename it to ``path`` when the block succeeds.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    with _renamed(Path(path)) as temporary:
        yield temporary
        # A file in a folder that is renamed as a whole needs no sync of its own.
        if not _in_partial_folder(temporary):
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; it takes the place of ``path`` on success.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    with _renamed(Path(path)) as temporary:
        temporary.mkdir()
        yield temporary
        _remove(Path(path))


def require_writable(folder: str | Path) -> None:
    """Check, by writing an empty file and removing it, that results can be written to a folder.

    Raises:
        OutputError: They cannot.
    """
    probe = Path(folder) / ".writable"
    with _renamed(probe) as temporary:
        temporary.touch()
    probe.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write strict JSON (no NaN or Infinity) atomically, keys in the order given.

    Raises:
        ValueError: ``value`` holds a number that JSON cannot.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        UltraRefinerError: The file is absent or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UltraRefinerError(
            f"cannot read {path}: {error}. Delete it and run again to make it anew."
        ) from error


def write_rows(path: str | Path, columns: list[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a CSV of ``columns`` atomically; a key that is not a column is an error."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as handle,
    ):
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Read a CSV as one dict of strings a row."""
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def tree_files(folder: str | Path) -> list[str]:
    """Return the files below a folder: sorted, relative, with forward slashes.

    What is half-written is left out, and so is the file by which Snakemake dates the folder.
    """
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(PARTIAL)]
        below = Path(here).relative_to(folder)
        found += [
            (below / name).as_posix()
            for name in names
            if name != _SNAKEMAKES and not name.startswith(PARTIAL)
        ]
    return sorted(found)


def hashed_files(folder: str | Path, names: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield name, SHA-256 and size in bytes of files of a folder, in the order given.

    Several are read at a time, as a network file system takes long to open each. A file that
    is not there has an empty SHA-256.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        # In batches: a hundred thousand waiting tasks would take more memory than the rest.
        for first in range(0, len(names), _BATCH):
            batch = names[first : first + _BATCH]
            paths = [f"{folder}/{name}" for name in batch]
            for name, facts in zip(batch, readers.map(_hashed, paths), strict=True):
                yield name, *facts


def _hashed(path: str) -> tuple[str, int]:
    try:
        with open(path, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            return digest, handle.tell()
    except FileNotFoundError:
        return "", 0


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON: key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def item_seed(*parts: Any) -> int:
    """Return a 63-bit seed from a SHA-256 of ``parts``.

    It depends on nothing else: not on the process, the worker count or PYTHONHASHSEED.
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
