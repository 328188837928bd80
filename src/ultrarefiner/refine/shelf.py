"""The shelf of image embeddings: files named by what they hold, kept until others need the room."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ultrarefiner.errors import OutputError, UltraRefinerError
from ultrarefiner.io import PARTIAL
from ultrarefiner.refine.embeddings import SUFFIX, SamEmbedding

logger = logging.getLogger(__name__)

Dtype = Literal["float16", "float32"]

# After making room, this share of the limit is free, so that the next files need no new scan.
_HEADROOM = 0.1
# What other jobs write is seen by scanning again after this share of the limit was written here.
_BLIND = 0.05
_HEADER_BYTES = 1024
_WRITING_NS = 3600 * 10**9  # a half-written file younger than an hour may still be written
# Only files of this shape are counted and removed: whatever else lies in the folder is not ours.
_FOLDERS = (re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{2}"))
_FILE = re.compile(rf"({re.escape(PARTIAL)}.*-)?[0-9a-f]{{64}}{re.escape(SUFFIX)}")


class Shelf:
    """Embeddings in a folder, shared by jobs, runs and studies.

    ``{folder}/{16 digits of the weights' SHA-256}/{2 of the key}/{key}.safetensors``, float16. A
    key names all that an embedding depends on, so a file is never out of date and needs no owner:
    it may vanish at any time and is then made again. Above the limit the files that were not used
    for longest go first; the time of a file's last use is its modification time. Several processes
    may use a shelf at once; together they may pass the limit by 5 % for each of them.

    Args:
        folder: The folder; made if it is not there.
        limit_bytes: Most bytes that the files may take.
        images: How many embeddings the job works with, for the message when there is no room.
        dtype: "float16", or "float32" for twice the room; the key has to tell which.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, limit_bytes: int, images: int = 1, dtype: Dtype = "float16"
    ) -> None:
        self.folder, self.dtype = Path(folder), dtype
        self.limit = limit_bytes
        self._images = images
        self._started = self._clock()
        self._bytes: int | None = None  # as last seen, and what was written here since
        self._unseen = 0
        self._full = False

    def path(self, key: str, weights_sha256: str) -> Path:
        """Return the file of an embedding, whether it is there or not."""
        return self.folder / weights_sha256[:16] / key[:2] / f"{key}{SUFFIX}"

    def get(self, key: str, weights_sha256: str) -> SamEmbedding | None:
        """Return an embedding and mark it as used; None when it is not there.

        A file that is damaged, or holds another embedding than its name says, is logged and counts
        as not there. Threads may call this at once.

        Args:
            key: ``embedding_key``.
            weights_sha256: SHA-256 of the weights file.
        """
        path = self.path(key, weights_sha256)
        if not path.is_file():
            return None
        try:
            embedding = SamEmbedding.load(path)
        except UltraRefinerError as error:
            if path.exists():  # else another process has just made room
                logger.warning("%s (It counts as absent.)", error)
            return None
        if embedding.key != key:
            logger.warning("%s holds another embedding than its name says: absent.", path)
            return None
        try:
            os.utime(path)
        except OSError as error:
            logger.debug("cannot mark %s as used: %s", path, error)
        return embedding

    def put(self, embedding: SamEmbedding) -> bool:
        """Store an embedding under its key; whether there was room for it.

        Files that were used since this shelf was opened are never removed. When they leave no room
        nothing more is stored, one warning says so, and the caller goes on.

        Raises:
            OutputError: The folder cannot be written.
        """
        size = np.dtype(self.dtype).itemsize * embedding.features.size + _HEADER_BYTES
        if self._full:
            return False
        if not self._room_for(size):
            self._full = True
            logger.warning(
                "the shelf of embeddings %s is full of what is in use (embeddings.limit_gb: %g); "
                "the rest is not stored and will be encoded again for each prompt mode. This job "
                "alone needs %.3g GB: set embeddings.limit_gb to more.",
                self.folder,
                self.limit / 1e9,
                self._images * size / 1e9,
            )
            return False
        path = self.path(embedding.key, embedding.weights_sha256)
        try:
            embedding.save(path, self.dtype)
        except OutputError as error:
            raise OutputError(f"{error} (It is the folder of embeddings.folder.)") from None
        except FileNotFoundError as error:
            # Somebody is clearing the folder: the embedding is made again when it is asked for.
            logger.warning("%s could not be stored: %s", path, error)
            return False
        except OSError as error:
            raise self._unwritable(error.strerror or error) from None
        self._bytes = (self._bytes or 0) + size
        self._unseen += size
        return True

    def _room_for(self, size: int) -> bool:
        if self._bytes is None or self._unseen > _BLIND * self.limit:
            self._bytes, self._unseen = sum(entry[1] for entry in self._scan()), 0
        if self._bytes + size > self.limit:
            self._bytes, self._unseen = self._make_room(size), 0
        return self._bytes + size <= self.limit

    def _make_room(self, size: int) -> int:
        """Remove the longest unused files until there is room and some more; return what is left."""
        files = sorted(self._scan())
        left = sum(entry[1] for entry in files)
        if left + size <= self.limit:
            return left
        removed = 0
        for used, bytes_, path in files:
            if used >= self._started or left + size <= (1 - _HEADROOM) * self.limit:
                break
            if path.name.startswith(PARTIAL) and used >= self._started - _WRITING_NS:
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.debug("cannot remove %s: %s", path, error)
                continue
            left -= bytes_
            removed += 1
        logger.info("removed %d of %d embeddings from %s", removed, len(files), self.folder)
        return left

    def _scan(self) -> Iterator[tuple[int, int, Path]]:
        """Yield time of last use in ns, bytes and path of each file."""
        for weights in _matching(self.folder, _FOLDERS[0]):
            for part in _matching(weights.path, _FOLDERS[1]):
                for entry in _matching(part.path, _FILE):
                    try:
                        facts = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # another process has just removed it
                        continue
                    yield facts.st_mtime_ns, facts.st_size, Path(entry.path)

    def _clock(self) -> int:
        """Return the time in ns by the file system's clock, which may be another machine's."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                return os.fstat(probe.fileno()).st_mtime_ns
        except OSError as error:
            raise self._unwritable(error.strerror or error) from None

    def _unwritable(self, reason: object) -> OutputError:
        return OutputError(
            f"cannot write to the shelf of embeddings {self.folder}: {reason}. Grant permission or "
            "free space there, or set embeddings.folder to another folder."
        )


def _matching(folder: str | Path, name: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if name.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return
