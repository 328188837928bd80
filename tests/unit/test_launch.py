"""Guards trainings on several GPUs: they give the numbers of one process, stop and go on as it does."""

import os
import signal
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from tests import team_fixture
from tests.refiner_fixture import write_weights
from tests.training_fixture import outputs, tiny_config, train
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.io import read_json, read_rows
from ultrarefiner.training.checkpoint import load_weights
from ultrarefiner.training.coarse import CoarseTask
from ultrarefiner.training.launch import launch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let the processes find the tests' modules, and use one thread each."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


# In each epoch of so small a training what sums are rounded by grows a hundredfold: after three
# steps both ways are equal to 1e-5 (in double precision to 1e-15), after nine they are to 1e-3.
GENTLE = {"model": "unet", "width": 4, "lr": 0.02, "momentum": 0.0}


@pytest.fixture(scope="module")
def gentle(toy_study, one_thread, tmp_path_factory):
    """Return the folder of a model that one process trained without a break."""
    return train(tiny_config(**GENTLE), toy_study, tmp_path_factory.mktemp("gentle"))


def check_choice(folder, expected, far):
    """Check that two trainings chose the same epoch by the same numbers; so say their cards.

    Rounding may put a pixel of a mask to the other side of one half, which `far` does not allow for.
    """
    cards = [read_json(one / "card.json") for one in (folder, expected)]
    assert cards[0]["metrics"] == pytest.approx(cards[1]["metrics"], abs=2e-3)
    assert cards[0]["metrics"]["epoch"] == cards[1]["metrics"]["epoch"]
    for card in cards:
        del card["metrics"], card["weights_sha256"], card["config"]["gpu"], card["config"]["nodes"]
    assert cards[0] == cards[1]
    histories = [read_rows(one / "history.csv") for one in (folder, expected)]
    for one, other in zip(*histories, strict=True):
        for name in ("train_loss", "val_loss"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=far), name


def test_two_processes_take_the_steps_of_one(toy_study, toy_model, tmp_path):
    found = tmp_path / "found.json"
    launch(
        team_fixture.all_trainings,
        processes=2,
        model=found,
        study=toy_study,
        toy=toy_model,
        weights=write_weights(tmp_path / "weights"),
        device="cpu",
    )
    for name, distances in read_json(found).items():
        assert distances == pytest.approx(dict.fromkeys(distances, 0), abs=1e-5), name
    assert not list(tmp_path.glob("resume/launch-*"))


@pytest.mark.slow
def test_a_training_goes_on_in_the_middle_of_an_epoch_in_as_many_processes_as_it_has(
    toy_study, gentle, tmp_path, caplog, monkeypatch
):
    folder, losses = tmp_path / "model", CoarseTask.losses
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(
            CoarseTask,
            "losses",
            lambda *given: os.kill(os.getpid(), signal.SIGTERM) or losses(*given),
        )
        train(tiny_config(**GENTLE), toy_study, folder)
    assert stopped.value.code == 143
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as stopped:
        launch(
            team_fixture.ask_for_a_stop,
            processes=2,
            config=tiny_config(**GENTLE),
            parent=os.getpid(),
            at=4,
            name="tiny",
            trainset="toy",
            prepared=toy_study[0],
            splits=toy_study[1],
            fold=0,
            protocol="nested",
            **outputs(folder),
        )
    assert stopped.value.code == 143
    assert {number: signal.getsignal(number) for number in before} == before
    # The first member's words, once.
    said = caplog.text
    assert said.count("resuming after epoch 0 of 3 and 1 batches") == 1
    assert said.count("EPOCH 1/3") == 1 and "2 x cpu" in said
    assert "stopped by SIGUSR1" in said
    assert not (folder / "model.safetensors").exists()
    state = torch.load(folder / "resume" / "state.pt", weights_only=True)
    assert (len(state["rows"]), state["progress"]["batches"]) == (1, 2)
    assert len(state["progress"]["losses"]) == len(state["progress"]["observed"]) == 4
    with caplog.at_level("INFO"):
        train(tiny_config(**GENTLE), toy_study, folder)
    assert "resuming after epoch 1 of 3 and 2 batches" in caplog.text
    check_choice(folder, gentle, far=1e-3)
    assert read_json(folder / "card.json")["metrics"]["epoch"] == 3


def test_several_nodes_need_slurm(toy_study, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match=r"nodes: 2 machines.*only Slurm.*--profile slurm"):
        train(tiny_config(nodes=2), toy_study, tmp_path / "model")
    assert not (tmp_path / "model").exists()


FAKE_SRUN = """#!/bin/sh
echo "$@" > "$0.log"
while [ "${1#--}" != "$1" ]; do
    case "$1" in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
pids=
for task in $(seq "$tasks"); do "$@" & pids="$pids $!"; done
status=0
for pid in $pids; do wait "$pid" || status=$?; done
exit $status
"""


@pytest.mark.slow
def test_two_nodes_give_the_numbers_of_one_process(toy_study, tmp_path, monkeypatch):
    """Slurm is played by a script; the two agents find each other as on two machines."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(FAKE_SRUN)
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{srun.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    folder = train(tiny_config(nodes=2, epochs=1, **GENTLE), toy_study, tmp_path / "model")
    alone = train(tiny_config(epochs=1, **GENTLE), toy_study, tmp_path / "alone")
    check_choice(folder, alone, far=1e-5)
    weights = [load_weights(at / "model.safetensors") for at in (folder, alone)]
    assert team_fixture.distance(*weights) < 1e-5
    options = (srun.parent / "srun.log").read_text()
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=2" in options
    assert "--nnodes=2 --rdzv-id=77 --rdzv-backend=c10d" in options


@pytest.mark.slow
@pytest.mark.parametrize("how", ["told", "error", "killed"])
def test_a_process_that_fails_ends_the_others_and_says_why(tmp_path, caplog, how):
    message = {
        "told": "process 1 cannot",
        "error": "a process of the training failed: ZeroDivisionError: of the second",
        "killed": "ended from outside.*Run again",
    }[how]
    with pytest.raises(UltraRefinerError, match=message):
        launch(team_fixture.fail_in_the_second, 2, how=how, model=tmp_path / "model.safetensors")
    assert ("raise ZeroDivisionError" in caplog.text) == (how == "error")
    assert not list(tmp_path.glob("resume/*"))


class Resources(dict):
    """A job's resources, as the Slurm plugin reads them."""

    __getattr__ = dict.get


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ({"gpu": 2, "nodes": 1}, "--nodes=1 --cpus-per-task=8 --gpus=2"),
        # An empty `mpi` asks for nothing, and its name keeps Snakemake out of an srun of its own.
        ({"gpu": 4, "nodes": 2, "mpi": ""}, "--nodes=2 --cpus-per-task=8 --gpus=4"),
    ],
)
def test_slurm_is_asked_for_all_gpus_and_one_task_on_each_node(resources, asked):
    job = SimpleNamespace(threads=8, resources=Resources(resources))
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    command = get_submit_command(job, dict.fromkeys(names, "")) + set_gres_string(job)
    assert command.split("--comment ''")[1].split() == asked.split()
