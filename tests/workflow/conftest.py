"""One tiny study, run once; tests look at it or copy it."""

import shutil

import pytest

from tests.made_once import made_once
from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, run_snakemake, write_study


def finish(folder):
    write_tiny_sam(folder / "tiny_sam.pth", side=256)
    write_study(folder, TINY)
    run_snakemake(folder)


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory):
    """Return the folder of a finished tiny study, this process's own copy."""
    base = tmp_path_factory.getbasetemp()
    made = made_once(base, "finished_study", finish)
    return shutil.copytree(made, base / "finished_study", symlinks=True)


@pytest.fixture
def study_copy(finished_study, tmp_path):
    """Return a copy of the finished study that a test may change."""
    folder = tmp_path / "study"
    shutil.copytree(finished_study, folder, symlinks=True)
    return folder
