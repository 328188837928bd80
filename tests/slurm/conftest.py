"""One local Slurm for all tests here; without one they are skipped and say so."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.checkout import Checkout, copy_checkout
from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster():
    # Not tmp_path: a Unix socket's path may have 107 characters.
    state = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(state)
    problem = cluster.start()
    if problem:
        shutil.rmtree(state)
        pytest.skip(f"no local Slurm: {problem}")
    yield cluster
    cluster.stop()
    shutil.rmtree(state)


@pytest.fixture
def checkout_copy(tmp_path):
    """Return a fresh copy of the checkout."""
    return Checkout(copy_checkout(tmp_path / "checkout"))
