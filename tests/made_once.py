"""What takes long to make is made by one of the processes of `make test`, for all of them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def made_once(base: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder that `make` filled, now or in another process; nobody changes it.

    Args:
        base: `tmp_path_factory.getbasetemp()`.
        name: Of the folder.
        make: Is given the folder, empty.
    """
    # The processes of pytest-xdist have folders of their own in a common one.
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    place.mkdir(exist_ok=True)
    folder, done = place / name, place / f"{name}.done"
    with open(place / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
