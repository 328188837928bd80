"""Guards resuming: a killed training ends where an unbroken one does, a changed one starts over."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training_fixture import make_study, tiny_config, train, write_case, write_splits
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import file_sha256, read_rows
from ultrarefiner.training.resume import ResumeFolder, explain_changes

ROOT = Path(__file__).resolve().parents[2]

# The child trains for real; where it dies is fixed by what it has logged or is about to rename.
CHILD = """
import logging, os, signal, sys
import torch
torch.set_num_threads(1)
from tests.training_fixture import tiny_config, train
study, folder, how = sys.argv[1:]
kill = lambda number: os.kill(os.getpid(), number)

class AskToStopAfterEpoch2(logging.Handler):
    def emit(self, record):
        if "EPOCH 2/" in record.getMessage():
            kill(getattr(signal, how))

logging.basicConfig(level=logging.INFO, format="%(message)s")
if how == "SIGKILL":
    rename, seen = os.replace, []
    def replace(source, target):
        seen.append(str(target).endswith("state.pt"))
        if sum(seen) == 3:
            kill(signal.SIGKILL)
        rename(source, target)
    os.replace = replace
else:
    logging.getLogger().addHandler(AskToStopAfterEpoch2())
train(tiny_config(), (f"{study}/prepared", f"{study}/splits.csv"), folder)
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def unbroken(study, tmp_path_factory):
    return train(tiny_config(), study, tmp_path_factory.mktemp("unbroken"))


def die(study, folder, how):
    """Start a training that dies in its third epoch; return its status and what it said."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", CHILD, str(study[0].parent), str(folder), how]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stderr


def same_result(folder, expected):
    histories = [read_rows(one / "history.csv") for one in (folder, expected)]
    for row in (*histories[0], *histories[1]):
        del row["seconds"]
    weights = [file_sha256(one / "model.safetensors") for one in (folder, expected)]
    cards = [json.loads((one / "card.json").read_text()) for one in (folder, expected)]
    return weights[0] == weights[1] and histories[0] == histories[1] and cards[0] == cards[1]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_killed_training_ends_where_an_unbroken_one_does(study, unbroken, tmp_path, caplog, how):
    folder = tmp_path / "model"
    status, said = die(study, folder, how)
    assert status == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -signal.SIGKILL}[how], said
    assert (f"stopped by {how}" in said) == (how != "SIGKILL")
    assert not (folder / "model.safetensors").exists()
    assert not (folder / "card.json").exists()
    assert len(read_rows(folder / "history.csv")) == 2
    # SIGKILL comes while the third epoch's state is written: half of it lies there and is ignored.
    half_written = list((folder / "resume").glob(".partial-*state.pt"))
    assert len(half_written) == (how == "SIGKILL")
    with caplog.at_level("INFO"):
        train(tiny_config(), study, folder)
    assert "resuming after epoch 2 of 3" in caplog.text
    assert "EPOCH 2/3" not in caplog.text
    assert same_result(folder, unbroken)
    assert not list((folder / "resume").glob(".partial-*"))


def test_a_finished_training_is_not_repeated(study, tmp_path, caplog):
    folder = tmp_path / "model"
    train(tiny_config(), study, folder)
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    for name in ("model.safetensors", "card.json", "history.csv"):
        (folder / name).unlink()  # as Snakemake does before it runs a job again
    with caplog.at_level("INFO"):
        train(tiny_config(threads=2), study, folder)
    assert "finished before with the same recipe, cases and code" in caplog.text
    assert "EPOCH" not in caplog.text.split("finished before")[1]
    assert (folder / "history.csv").read_bytes() == (kept / "history.csv").read_bytes()
    assert file_sha256(folder / "model.safetensors") == file_sha256(kept / "model.safetensors")


def test_changed_training_code_repeats_a_finished_training(study, tmp_path, caplog, monkeypatch):
    folder = tmp_path / "model"
    train(tiny_config(), study, folder)
    first = file_sha256(folder / "model.safetensors")
    monkeypatch.setattr("ultrarefiner.training.resume.code_digest", lambda: "another")
    with caplog.at_level("INFO"):
        caplog.clear()
        train(tiny_config(), study, folder)
    assert "training starts over: the training code has changed" in caplog.text
    assert "EPOCH 1/3" in caplog.text
    assert file_sha256(folder / "model.safetensors") == first


def test_a_second_process_is_kept_out(tmp_path):
    first = ResumeFolder(tmp_path, {"config": {"lr": 1}})
    code = (
        "import sys\nfrom ultrarefiner.training.resume import ResumeFolder\n"
        "ResumeFolder(sys.argv[1], {'config': {'lr': 2}})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} on" in second.stderr
    assert "Wait for it or stop it" in second.stderr
    assert json.loads((tmp_path / "fingerprint.json").read_text())["parts"] == {"config": {"lr": 1}}
    first.clear()
    del first
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


class Stop(Exception):
    """Ends a training in the test's own process."""


def stopped_training(config, study, folder, monkeypatch):
    """Train, and fail just after the first epoch was saved."""
    save = ResumeFolder.save

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(ResumeFolder, "save", save_and_stop)
        train(config, study, folder)
    assert (folder / "resume" / "state.pt").is_file()


def test_a_changed_lr_starts_over_and_says_why(study, tmp_path, caplog, monkeypatch):
    stopped_training(tiny_config(lr=0.02), study, tmp_path / "model", monkeypatch)
    with caplog.at_level("INFO"):
        changed = train(tiny_config(lr=0.04), study, tmp_path / "model")
    assert "training starts over: config.lr was 0.02, is now 0.04" in caplog.text
    assert "EPOCH 1/3" in caplog.text
    fresh = train(tiny_config(lr=0.04), study, tmp_path / "fresh")
    assert same_result(changed, fresh)


def test_a_change_after_success_is_explained_too(study, unbroken, tmp_path, caplog):
    folder = train(tiny_config(epochs=1), study, tmp_path / "model")
    caplog.clear()
    train(tiny_config(epochs=2), study, folder)
    assert "training starts over: config.epochs was 1, is now 2" in caplog.text
    assert len(read_rows(folder / "history.csv")) == 2


def test_other_training_cases_or_pixels_start_over(tmp_path, caplog, monkeypatch):
    study = make_study(tmp_path)
    prepared, splits, roles = study
    folder, config = tmp_path / "model", tiny_config(epochs=2)
    stopped_training(config, study, folder, monkeypatch)
    write_case(prepared, roles["train"][0], seed=77)
    stopped_training(config, study, folder, monkeypatch)
    assert f"training starts over: cases.{roles['train'][0]} was" in caplog.text
    caplog.clear()
    write_splits(splits, {**roles, "train": roles["train"][1:], "test": roles["train"][:1]})
    stopped_training(config, study, folder, monkeypatch)
    assert f"splits.train: 1 removed ({roles['train'][0]})" in caplog.text


def test_what_changes_no_number_does_not_start_over(tmp_path, caplog, monkeypatch):
    study = make_study(tmp_path)
    prepared, _, roles = study
    stopped_training(tiny_config(), study, tmp_path / "model", monkeypatch)
    write_case(prepared, roles["test"][0], seed=77)
    with caplog.at_level("INFO"):
        train(tiny_config(threads=1, tensorboard=True), study, tmp_path / "model")
    assert "resuming after epoch 1 of 3" in caplog.text
    assert "starts over" not in caplog.text
    assert list((tmp_path / "model" / "tensorboard").iterdir())


def test_explanations_name_the_key_and_both_values():
    old = {"config": {"lr": 0.01, "loss": {"ce": 0.5}}, "splits": {"train": ["a", "b"]}}
    new = {"config": {"lr": 0.02, "loss": {"ce": 0.5}}, "splits": {"train": ["b", "c"]}}
    assert explain_changes(old, new) == (
        "config.lr was 0.01, is now 0.02; splits.train: 1 added (c); 1 removed (a)"
    )
    assert explain_changes(old, old) == ""
    assert explain_changes({"a": {"x": 1}}, {"a": {"y": "f" * 64}}) == (
        "a.x is gone (was 1); a.y is new (ffffffffffff...)"
    )
    many = explain_changes({str(i): 0 for i in range(9)}, {str(i): 1 for i in range(9)})
    assert many.endswith("4 was 0, is now 1; and 4 more")


def test_only_the_best_model_that_the_state_names_is_kept(tmp_path):
    folder = ResumeFolder(tmp_path, {"config": {"lr": 1}})
    for epoch in (1, 3):
        folder.save_best(epoch, {"w": torch.full((2,), float(epoch))})
        folder.save({"rows": [1]}, best_epoch=epoch)
    # A kill between the two writes leaves a model that no state speaks of.
    folder.save_best(4, {"w": torch.full((2,), 4.0)})
    again = ResumeFolder(tmp_path, {"config": {"lr": 1}})
    assert again.load()["rows"] == [1]
    assert again.load_best(3)["w"].tolist() == [3, 3]
    assert not (tmp_path / "best-00001.safetensors").exists()
    again.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"fingerprint.json", "lock"}


def test_a_damaged_state_is_named_with_its_cure(tmp_path):
    folder = ResumeFolder(tmp_path, {})
    folder.save({"rows": []}, best_epoch=None)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(UltraRefinerError, match=r"state\.pt.*Delete the folder"):
        folder.load()
