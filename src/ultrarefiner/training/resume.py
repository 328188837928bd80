"""The resume folder: what a killed training needs to go on, and the proof that it may.

Snakemake deletes a job's declared outputs before it runs again, so the state of a training lies
beside them, undeclared. It counts only if the fingerprint of everything that decides the numbers
is the same; otherwise training starts over and says what changed. A finished training leaves its
result there: Snakemake may run the job again although nothing changed that a number depends on (a
script touched by an update, say), and days of training are then not repeated.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import platform
from pathlib import Path
from typing import Any

import torch

import ultrarefiner
from ultrarefiner import __version__
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import atomic_path, json_sha256, read_json, write_json
from ultrarefiner.training.checkpoint import load_weights, save_weights
from ultrarefiner.training.team import ALONE, Team

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_SHOWN = 5


def code_digest() -> str:
    """Return the SHA-256 of the code that decides what a training gives."""
    root = Path(ultrarefiner.__file__).parent
    digest = hashlib.sha256()
    for pattern in (
        "datasets/loader.py",
        "prompts/*.py",
        "models/*.py",
        "refine/*.py",
        "training/*.py",
    ):
        for path in sorted(root.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flatten(part, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _list_change(old: list[Any], new: list[Any]) -> str:
    parts = []
    for word, items in (
        ("added", [item for item in new if item not in old]),
        ("removed", [item for item in old if item not in new]),
    ):
        if items:
            shown = ", ".join(map(str, items[:_SHOWN])) + (", ..." if len(items) > _SHOWN else "")
            parts.append(f"{len(items)} {word} ({shown})")
    return "; ".join(parts) or "the order changed"


def _value(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def explain_changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say in one line how two fingerprints' parts differ, at most a few differences.

    Args:
        old: Nested dicts of values and lists, as they were.
        new: The same, as they are now.

    Returns:
        For example "config.lr was 0.01, is now 0.02"; empty when nothing differs.
    """
    before, after = _flatten(old), _flatten(new)
    changes = []
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in after:
            changes.append(f"{key} is gone (was {_value(before[key])})")
        elif key not in before:
            changes.append(f"{key} is new ({_value(after[key])})")
        elif isinstance(before[key], list) and isinstance(after[key], list):
            if before[key] != after[key]:
                changes.append(f"{key}: {_list_change(before[key], after[key])}")
        elif before[key] != after[key]:
            changes.append(f"{key} was {_value(before[key])}, is now {_value(after[key])}")
    rest = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return "; ".join(changes[:_SHOWN]) + rest


class ResumeFolder:
    """State of a training, valid for one fingerprint.

    Args:
        folder: The folder; made when it is absent.
        parts: Everything that decides the numbers, readable: ``{"config": {...}, "splits": {...},
            "cases": {...}, "parents": {...}}``. JSON values only.
        team: Who trains; the first member alone reads and writes here, and tells the others.

    Attributes:
        fingerprint: SHA-256 of ``parts``.
    """

    def __init__(self, folder: str | Path, parts: dict[str, Any], team: Team = ALONE) -> None:
        self.folder, self.team = Path(folder), team
        self.fingerprint = json_sha256(parts)
        self._state = self.folder / "state.pt"
        self._record = self.folder / "fingerprint.json"
        if team.is_first:
            self._lock = self._take_lock()
            self._keep_or_clear(parts)

    def _take_lock(self) -> Any:
        """Keep other processes out: one that outlived its Snakemake may still be training here."""
        if fcntl is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = open(self.folder / "lock", "a+")  # noqa: SIM115 - held as long as the folder is
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            handle.close()
            raise UltraRefinerError(
                f"{holder} is training in {self.folder.parent}. Wait for it or stop it, then run "
                "again."
            ) from None
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s); let only one process train here", handle.name, error
            )
            return handle
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}")
        handle.flush()
        return handle

    def _keep_or_clear(self, parts: dict[str, Any]) -> None:
        if self._record.is_file():
            old = read_json(self._record)
            if old["fingerprint"] == self.fingerprint:
                return
            log.warning("training starts over: %s", explain_changes(old["parts"], parts))
        elif self._state.is_file():
            log.warning("training starts over: %s is missing", self._record)
        # The old state goes first: a kill in between must not leave it under the new fingerprint.
        self.clear()
        write_json(
            self._record,
            {"format": 1, "version": __version__, "fingerprint": self.fingerprint, "parts": parts},
        )

    def load(self) -> dict[str, Any] | None:
        """Return the last state, on the CPU; ``None`` when there is none.

        Raises:
            UltraRefinerError: The state cannot be read.
        """
        return self.team.tell(self._read() if self.team.is_first else None)

    def _read(self) -> dict[str, Any] | None:
        if not self._state.is_file():
            return None
        try:
            state = torch.load(self._state, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UltraRefinerError(
                f"cannot read {self._state}: {error}. Delete the folder {self.folder} to train from "
                "the start."
            ) from error
        if state["fingerprint"] != self.fingerprint:
            return None
        if state.get("finished"):
            if state["code"] != code_digest():
                log.warning("training starts over: the training code has changed since it finished")
                self.clear()
                return None
            log.info(
                "finished before with the same recipe, cases and code; its result is taken. Delete "
                "%s to train again.",
                self.folder,
            )
        return state

    def finish(self, state: dict[str, Any], best_epoch: int, model: Path | None) -> None:
        """Keep the result of a finished training, and nothing that only training needs.

        Args:
            state: History and best metrics.
            best_epoch: Epoch of the best model.
            model: Its weights under their final name; kept here as a second name of the same
                file where the file system can, so that they take no more room. None: the final
                file is another than the saved one, which stays.
        """
        if model is not None:
            self._link(model, self._best(best_epoch))
        self.save({**state, "finished": True, "code": code_digest()}, best_epoch)

    def _link(self, model: Path, second: Path) -> None:
        linked = second.with_name(f".partial-{second.name}")
        linked.unlink(missing_ok=True)
        try:
            os.link(model, linked)
            os.replace(linked, second)
        except OSError as error:
            log.info("%s keeps a copy of the weights: %s", self.folder, error.strerror)

    def save(self, state: dict[str, Any], best_epoch: int | None) -> None:
        """Write a state, then drop best models that it does not name.

        Args:
            state: Tensors, numbers, strings, and lists and dicts of them.
            best_epoch: Epoch of the best model so far.
        """
        if not self.team.is_first:
            return
        with atomic_path(self._state) as temporary:
            torch.save({**state, "fingerprint": self.fingerprint}, temporary)
        kept = None if best_epoch is None else self._best(best_epoch)
        for path in self.folder.glob("best-*.safetensors"):
            if path != kept:
                path.unlink()

    def _best(self, epoch: int) -> Path:
        # The epoch is in the name, so that a model saved just before a kill cannot be taken for
        # the one that the saved state speaks of.
        return self.folder / f"best-{epoch:05d}.safetensors"

    def save_best(self, epoch: int, model: dict[str, torch.Tensor]) -> None:
        """Write the best model so far; it counts once ``save`` names its epoch."""
        if self.team.is_first:
            save_weights(self._best(epoch), model)

    def load_best(self, epoch: int) -> dict[str, torch.Tensor]:
        """Read the best model.

        Raises:
            WeightsError: The file is absent or damaged.
        """
        return load_weights(self._best(epoch))

    @property
    def is_empty(self) -> bool:
        """Whether there is no state to go on from."""
        return not self._state.is_file()

    def clear(self) -> None:
        """Remove the state; the fingerprint stays, so that a later run can say what changed."""
        if self.folder.is_dir():
            for path in [self._state, *self.folder.glob("best-*"), *self.folder.glob(".partial-*")]:
                path.unlink(missing_ok=True)
