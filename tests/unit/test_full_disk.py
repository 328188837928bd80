"""Guards that a disk that is really full is named by every writer, and that no half file is left."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WRITE_ALL = """
import os, resource, sys
from pathlib import Path
import numpy as np, torch
from ultrarefiner.errors import OutputError
from ultrarefiner.images import write_png
from ultrarefiner.io import atomic_directory, write_rows
from ultrarefiner.refine.embeddings import SamEmbedding
from ultrarefiner.training.checkpoint import save_weights
from ultrarefiner.training.resume import ResumeFolder

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
noise = torch.rand(600_000)

def npz():
    with atomic_directory(folder / "npz") as partial:
        np.savez_compressed(partial / "a.npz", image=noise.numpy())

def embedding():
    facts = dict(image_size=(8, 8), input_size=(8, 8), image_sha256="0" * 64)
    facts |= dict(weights_sha256="0" * 64, family="sam", recipe={})
    SamEmbedding(noise.numpy().reshape(6, 100, 1000), **facts).save(folder / "e.safetensors")

def state():
    ResumeFolder(folder / "resume", {"a": 1}).save({"optimizer": noise}, None)

rows = ({"case": f"busi__{i}", "dice": i / 7} for i in range(100_000))
writers = {
    "npz": npz,
    "e.safetensors": embedding,
    "model.safetensors": lambda: save_weights(folder / "model.safetensors", {"w": noise}),
    "state.pt": state,
    "scores.csv": lambda: write_rows(folder / "scores.csv", ["case", "dice"], rows),
    "a.png": lambda: write_png(folder / "a.png", (noise.numpy() * 255).astype("u1").reshape(600, -1)),
}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for name, write in writers.items():
    try:
        write()
    except OutputError as error:
        print(name, "|", error)
"""


def write_all(folder, limit=0):
    """Return what each writer says, by the name of its file, and which files there are then."""
    result = subprocess.run(
        [sys.executable, "-c", WRITE_ALL, str(folder), str(limit)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    said = dict(line.split(" | ", 1) for line in result.stdout.splitlines())
    return said, {path.name for path in Path(folder).rglob("*") if path.is_file()}


NAMES = {"npz", "e.safetensors", "model.safetensors", "state.pt", "scores.csv", "a.png"}
# What is small enough to be written: which training the state is of, and who has it open.
SMALL = {"fingerprint.json", "lock"}


def test_a_size_limit_stops_every_writer_with_its_reason(tmp_path):
    said, left = write_all(tmp_path, limit=300_000)
    assert said.keys() == NAMES
    for name, text in said.items():
        assert f"{name}: a file of this size is not allowed here" in text
        assert "nothing half-written was left" in text
    assert left == SMALL


@pytest.fixture
def small_disk(tmp_path):
    """Return a disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small disk can be mounted: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_every_writer_with_its_reason(small_disk):
    said, left = write_all(small_disk)
    assert said.keys() == NAMES
    for name, text in said.items():
        assert f"{name}: the disk is full (0." in text
        assert "MB free" in text and "Free space" in text
    assert left == SMALL
