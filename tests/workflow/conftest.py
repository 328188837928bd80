"""One tiny study, run once; tests look at it or copy it."""

import shutil

import pytest

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, run_snakemake, write_study


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory):
    """Return the folder of a finished tiny study."""
    folder = tmp_path_factory.mktemp("finished")
    write_tiny_sam(folder / "tiny_sam.pth")
    write_study(folder, TINY)
    run_snakemake(folder)
    return folder


@pytest.fixture
def study_copy(finished_study, tmp_path):
    """Return a copy of the finished study that a test may change."""
    folder = tmp_path / "study"
    shutil.copytree(finished_study, folder, symlinks=True)
    return folder
