"""What every test may use."""

import os
from pathlib import Path

import pytest

# Set before torch and OpenCV are imported: tests run side by side on small machines.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def stu_root() -> Path:
    """Return the folder of the real STU-Hospital images; they may not be redistributed."""
    folder = Path(os.environ.get("ULTRAREFINER_STU", ROOT.parent / "shared" / "data" / "stu"))
    if not (folder / "Hospital").is_dir():
        pytest.skip(f"the STU-Hospital images are not in {folder}; set ULTRAREFINER_STU")
    return folder
