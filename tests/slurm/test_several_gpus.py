"""Guards that a training in several processes runs on Slurm, and gives the numbers of one."""

import json

import pytest
import yaml

from tests.slurm.cluster import Checkout, copy_checkout, end
from tests.slurm.test_faults import LOG, MODEL, QUICK
from tests.workflow.study import TINY, changed
from ultrarefiner.io import read_rows
from ultrarefiner.training.checkpoint import load_weights

pytestmark = pytest.mark.slow

# device: auto, so that the GPUs are asked for; CUDA is not there, so gloo processes share the CPU.
STUDY = changed(
    TINY,
    device="auto",
    coarse__transunet__epochs=3,
    coarse__transunet__precision="32-true",
    refiners={"grabcut": {"family": "grabcut"}},
    compare__refine={"grabcut": ["mask"]},
)
RUNS = {
    "one": {},
    "two GPUs": {"coarse__transunet__gpu": 2},
    "two nodes": {"coarse__transunet__nodes": 2},
}


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """Return a checkout for each way to train, after its run on Slurm."""
    checkouts = {}
    for name, changes in RUNS.items():
        root = copy_checkout(tmp_path_factory.mktemp("gpus") / "checkout")
        checkouts[name] = Checkout(root)
        (root / "study.yaml").write_text(yaml.safe_dump(changed(STUDY, **changes)))
        arguments = ("--profile", "slurm", MODEL, "--configfile", "study.yaml", *QUICK)
        process = checkouts[name].start(*arguments, "--slurm-keep-successful-logs")
        assert end(process) == 0, checkouts[name].said()[-5000:]
    return checkouts


@pytest.mark.parametrize("name", ["two GPUs", "two nodes"])
def test_several_processes_on_slurm_give_the_model_of_one(finished, name):
    one, several = finished["one"].root, finished[name].root
    rows, others = (read_rows((root / MODEL).parent / "history.csv") for root in (one, several))
    for row, other in zip(rows, others, strict=True):
        for key in set(row) - {"seconds"}:
            assert float(row[key] or 0) == pytest.approx(float(other[key] or 0), abs=1e-4), key
    weights, mine = (load_weights(root / MODEL) for root in (one, several))
    for key, value in weights.items():
        if value.is_floating_point():
            assert (value - mine[key]).abs().max() < 1e-3, key
    cards = [
        json.loads((root / MODEL).with_name("card.json").read_text()) for root in (one, several)
    ]
    assert cards[0]["metrics"]["epoch"] == cards[1]["metrics"]["epoch"]


def test_the_training_ran_in_two_processes(finished):
    assert "2 x cpu" in (finished["two GPUs"].root / LOG).read_text()
