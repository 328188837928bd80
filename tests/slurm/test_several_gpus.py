"""Guards that a training in several processes runs on Slurm, and gives the numbers of one."""

import json
import re

import pytest
import yaml

from tests.checkout import Checkout, copy_checkout
from tests.slurm.cluster import end
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
    coarse__transunet__validate_every=3,
    # Adam would blow up the rounding of gradients that are nearly zero.
    coarse__transunet__optimizer="sgd",
    coarse__transunet__lr=0.05,
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
            assert float(row[key] or 0) == pytest.approx(float(other[key] or 0), abs=1e-5), key
    weights, mine = (load_weights(root / MODEL) for root in (one, several))
    apart = max(
        float((value - mine[key]).abs().max())
        for key, value in weights.items()
        if value.is_floating_point()
    )
    print(f"{name}: weights after three steps at most {apart:.1e} apart")
    assert apart < 1e-5
    cards = [
        json.loads((root / MODEL).with_name("card.json").read_text()) for root in (one, several)
    ]
    assert cards[0]["metrics"]["epoch"] == cards[1]["metrics"]["epoch"] == 3


def test_the_training_ran_in_two_processes(finished):
    assert "2 x cpu" in (finished["two GPUs"].root / LOG).read_text()


@pytest.mark.parametrize(
    ("name", "gpus", "nodes"), [("one", 1, 1), ("two GPUs", 2, 1), ("two nodes", 2, 2)]
)
def test_slurm_gave_as_many_gpus_and_nodes_as_were_asked_for(cluster, finished, name, gpus, nodes):
    said = finished[name].said()
    (job,) = re.findall(r"jobid (\d+) .*train_coarse", said)
    assert re.fullmatch(f"gres[:/]gpu:{gpus}", cluster.detail(job, "TresPerJob"))
    assert cluster.detail(job, "NumNodes") == str(nodes)
    record = json.loads((finished[name].root / LOG).with_suffix(".json").read_text())
    assert len(record["gpus"]) == gpus / nodes
