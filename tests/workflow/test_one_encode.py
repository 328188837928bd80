"""Guards that over a whole study an image is encoded once for each view, whatever else happens."""

import re
import shutil
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed, run_snakemake, snakemake_command, write_study
from ultrarefiner.images import read_mask, write_mask, write_probability
from ultrarefiner.models.weights import weights_name
from ultrarefiner.refine.embeddings import read_index

pytestmark = pytest.mark.slow

CROP = {"expand": 0.3, "min_size": 16}
PROMPTS = {
    "box": {"kind": "box"},
    "point": {"kind": "point"},
    "both": {"kind": "both"},
    "mask": {"kind": "mask"},
    "oracle_box": {"kind": "box", "source": "ground_truth"},
    "box_crop": {"kind": "box", "crop": CROP},
    "point_crop": {"kind": "point", "crop": CROP},
    "oracle_crop": {"kind": "box", "source": "ground_truth", "crop": CROP},
}
STUDY = changed(
    TINY,
    prompts=PROMPTS,
    refiners={"sam": {"family": "sam", "weights": "small_sam.pth"}},
    compare__refine={"sam": list(PROMPTS)},
)
SHELF = "resources/embeddings"
CASES, VIEWS, FOLDS = 14, 3, 2


def targets(*prompts, run="tiny"):
    return tuple(f"results/{run}/busi/masks/sam-{p}/fold{f}" for p in prompts for f in range(FOLDS))


def encoded(folder, rule, run="tiny"):
    """Return how many images the jobs of a rule encoded, and how many they found on the shelf."""
    logs = (folder / "results" / run / "logs" / rule).rglob("fold*.log")
    lines = re.findall(
        r"encoded (\d+) images, (\d+) were on the shelf", "".join(p.read_text() for p in logs)
    )
    return tuple(sum(map(int, column)) for column in zip(*lines, strict=True))


def stored(folder):
    """Return the files on the shelf of embeddings."""
    return [p for p in (folder / SHELF).rglob("*.safetensors") if p.name[0] != "."]


def give_coarse_masks(folder):
    """Replace what two epochs of training make of the masks: in each fold one is empty, one whole.

    The others are the truth, moved a little.
    """
    base = folder / "results/tiny/busi"
    for fold in range(FOLDS):
        names = sorted(path.name for path in (base / f"masks/transunet/fold{fold}").glob("*.png"))
        for number, name in enumerate(names):
            mask = np.roll(read_mask(base / "prepared/masks" / name), 2, axis=1)
            mask = np.full_like(mask, number == 1) if number < 2 else mask
            write_mask(base / f"masks/transunet/fold{fold}" / name, mask)
            write_probability(base / f"probabilities/transunet/fold{fold}" / name, mask * 0.9)


@pytest.fixture(scope="module")
def refined(finished_study, tmp_path_factory):
    """Return a study whose every prompt mode has been refined."""
    folder = tmp_path_factory.mktemp("one_encode") / "study"
    shutil.copytree(finished_study, folder, symlinks=True)
    shutil.rmtree(folder / SHELF)
    shutil.rmtree(folder / "results/tiny/busi/embeddings")
    shutil.rmtree(folder / "results/tiny/logs")
    # With its cards, the masks that it is given would be found to be changed.
    shutil.rmtree(folder / "results/tiny/provenance")
    write_tiny_sam(folder / "small_sam.pth", side=256)
    give_coarse_masks(folder)
    write_study(folder, STUDY)
    run_snakemake(folder, "--set-threads", "refine_masks=1", targets=targets(*PROMPTS))
    return folder


@pytest.fixture
def copy(refined, tmp_path):
    shutil.copytree(refined, tmp_path / "study", symlinks=True)
    return tmp_path / "study"


def test_images_times_views_are_encoded_and_no_more(refined):
    indices = sorted((refined / "results/tiny/busi/embeddings").rglob("fold*.csv"))
    rows = [row for path in indices for row in read_index(path).values()]
    assert len(indices) == VIEWS * FOLDS and len(rows) == CASES * VIEWS
    cropped = [path for path in indices if "crop" in str(path)]
    full = sum(row.window is None for path in cropped for row in read_index(path).values())
    # Of the coarse crops at least the empty and the whole mask of each fold are the full image.
    assert 2 * FOLDS <= full < CASES
    keys = {row.key for row in rows}
    assert CASES * (VIEWS - 1) < len(keys) <= CASES * VIEWS - full
    assert encoded(refined, "embed_images") == (len(keys), CASES * VIEWS - len(keys))
    assert encoded(refined, "refine_masks")[0] == 0
    assert len(stored(refined)) == len(keys)


def test_crops_see_their_window_and_every_mode_gives_its_own_masks(refined):
    base = refined / "results/tiny/busi/masks"
    masks = {
        mode: [path.read_bytes() for path in sorted((base / f"sam-{mode}").rglob("*.png"))]
        for mode in PROMPTS
    }
    assert all(len(images) == CASES for images in masks.values())
    assert len({tuple(images) for images in masks.values()}) == len(PROMPTS)
    table = (base / "sam-box_crop" / "fold0.csv").read_text().splitlines()
    assert table[0] == "case,score,agreement,prompts,window"
    assert sum(len(line.split(",")[-1].split()) == 4 for line in table[1:]) >= 4


def test_another_run_encodes_nothing(copy):
    for name in ("prepared", "masks/transunet", "probabilities", "splits.csv", "check"):
        source, target = (copy / "results" / run / "busi" / name for run in ("tiny", "again"))
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    write_study(copy, changed(STUDY, run="again"))
    modes = ("box", "box_crop", "oracle_crop")
    run_snakemake(copy, targets=targets(*modes, run="again"))
    assert encoded(copy, "embed_images", "again") == (0, CASES * VIEWS)
    assert encoded(copy, "refine_masks", "again")[0] == 0
    for mode in modes:
        tiny, again = (copy / "results" / run / "busi/masks" for run in ("tiny", "again"))
        for path in (tiny / f"sam-{mode}").rglob("*.*"):
            assert path.read_bytes() == (again / path.relative_to(tiny)).read_bytes()


def test_a_deleted_shelf_is_filled_again_by_whoever_needs_it(copy):
    mode = copy / "results/tiny/busi/masks/sam-box_crop/fold0"
    before = {path.name: path.read_bytes() for path in mode.iterdir()}
    shutil.rmtree(copy / SHELF)
    shutil.rmtree(copy / "results/tiny/logs")
    for prompt in ("box_crop", "point_crop"):
        shutil.rmtree(copy / f"results/tiny/busi/masks/sam-{prompt}/fold0")
    run_snakemake(copy, targets=targets("box_crop")[:1])
    used = len(stored(copy))
    assert encoded(copy, "refine_masks") == (used, 0) and used >= 5
    assert before == {path.name: path.read_bytes() for path in mode.iterdir()}
    run_snakemake(copy, targets=targets("point_crop")[:1])
    assert encoded(copy, "refine_masks") == (used, used)
    assert not (copy / "results/tiny/logs/embed_images").exists()


def test_a_killed_encoding_goes_on_where_it_was(copy):
    write_tiny_sam(copy / "small_sam.pth")  # at SAM's own frame it can be killed in the middle
    shutil.rmtree(copy / SHELF)
    shutil.rmtree(copy / "results/tiny/logs")
    shutil.rmtree(copy / "results/tiny/busi/embeddings")
    index = f"results/tiny/busi/embeddings/{weights_name('small_sam.pth')}/full/fold0.csv"
    run = subprocess.Popen(
        snakemake_command(copy, targets=(index,)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 120
    while len(stored(copy)) < 2:
        assert time.monotonic() < deadline and run.poll() is None, "nothing was encoded"
        time.sleep(0.02)
    children = psutil.Process(run.pid).children(recursive=True)
    jobs = [child for child in children if "embed_images.py" in " ".join(child.cmdline())]
    jobs[-1].send_signal(signal.SIGKILL)
    run.communicate(timeout=120)
    assert run.returncode != 0 and not (copy / index).exists()
    kept = len(stored(copy))
    assert 2 <= kept < CASES / FOLDS
    run_snakemake(copy, targets=(index,))
    assert encoded(copy, "embed_images") == (CASES / FOLDS - kept, kept)
    assert len(stored(copy)) == CASES / FOLDS
    assert not list((copy / SHELF).rglob(".partial-*"))
