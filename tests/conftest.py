"""What every test may use."""

import os
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one thread: small models are no faster on two, and sums stay in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
