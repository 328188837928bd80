"""Guards that a study's trainings run in several processes, and that their number reruns nothing."""

import pytest

from tests.workflow.study import TINY, changed, planned, run_snakemake, write_study
from ultrarefiner.io import read_json

FOLDER = "results/tiny/busi/models/transunet/fold0"


@pytest.mark.slow
def test_a_study_trains_in_two_processes_and_their_number_reruns_nothing(tmp_path):
    targets = (f"{FOLDER}/model.safetensors",)
    only = changed(
        TINY,
        refiners={"grabcut": {"family": "grabcut"}},
        compare__refine={"grabcut": ["mask"]},
    )
    write_study(tmp_path, changed(only, coarse__transunet__gpu=2))
    run_snakemake(tmp_path, targets=targets)
    log = (tmp_path / "results/tiny/logs/train_coarse/busi/transunet/fold0.log").read_text()
    assert "2 x cpu" in log and log.count("EPOCH 2/2") == 1
    assert read_json(tmp_path / FOLDER / "card.json")["config"]["gpu"] == 2
    assert not list((tmp_path / FOLDER).rglob("launch-*"))
    write_study(tmp_path, changed(only, coarse__transunet__gpu=1))
    assert planned(run_snakemake(tmp_path, "-n", targets=targets)) == {}
