"""Guards that a change reruns exactly what depends on it, and nothing else."""

import os

import pytest

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed, planned, run_snakemake, write_study

SHOWN = {"record_study", "write_report"}
"""Where the whole configuration stands: they change with any value of it."""
REPORT = {
    *("summarise_scores", "compare_methods", "measure_gap"),
    *("plot_scores", "draw_overlays", "write_tables"),
    *SHOWN,
}


def plan(folder, study, comment=""):
    write_study(folder, study, comment)
    return planned(run_snakemake(folder, "--dry-run"))


@pytest.fixture
def folder(finished_study):
    yield finished_study
    write_study(finished_study, TINY)


def test_a_finished_study_plans_nothing(folder):
    assert plan(folder, TINY) == {}


def test_a_comment_reruns_nothing(folder):
    assert plan(folder, TINY, comment="a thought") == {}


def test_reordered_keys_rerun_nothing(folder):
    study = changed(TINY)
    study["coarse"]["transunet"] = dict(reversed(study["coarse"]["transunet"].items()))
    study["prompts"] = dict(reversed(study["prompts"].items()))
    assert plan(folder, study) == {}


def test_expand_reruns_only_its_prompt_mode(folder):
    jobs = plan(folder, changed(TINY, prompts__box_loose__expand=0.3))
    assert {rule: jobs.get(rule) for rule in ("make_prompts", "refine_masks", "score_masks")} == {
        "make_prompts": 2,
        "refine_masks": 2,
        "score_masks": 2,
    }
    assert set(jobs) == {"make_prompts", "refine_masks", "score_masks"} | REPORT


def test_a_prompt_mode_of_another_view_encodes_only_that_view(folder):
    crop = {"kind": "box", "crop": {"expand": 0.3, "min_size": 16}}
    study = changed(TINY, prompts__box_crop=crop)
    study["compare"]["refine"]["tiny_sam"] = ["box_loose", "box_crop"]
    jobs = plan(folder, study)
    assert (jobs["embed_images"], jobs["make_prompts"], jobs["refine_masks"]) == (2, 2, 2)
    assert not {"train_coarse", "predict_coarse"} & set(jobs)


@pytest.mark.parametrize("time", [None, (0, 0)], ids=["new", "old"])
def test_replaced_weights_rerun_what_they_made(study_copy, time):
    path = write_tiny_sam(study_copy / "tiny_sam.pth", seed=1)
    os.utime(path, time)  # a copy may keep the time of what it is a copy of
    jobs = planned(run_snakemake(study_copy, "--dry-run"))
    assert jobs["embed_images"] == 2
    assert jobs["refine_masks"] == 2
    assert not {"train_coarse", "make_prompts"} & set(jobs)


def test_a_new_method_retrains_nothing(folder):
    study = changed(TINY, compare__refine__tiny_sam=["box_loose", "mask"])
    jobs = plan(folder, study)
    assert jobs["refine_masks"] == 2
    assert not {"train_coarse", "predict_coarse", "embed_images", "make_prompts"} & set(jobs)


def test_another_dataset_trains_for_itself_alone(folder):
    study = changed(TINY, datasets__stu={"phantom": {"cases": 14, "size": 64}})
    jobs = plan(folder, study)
    assert (jobs["train_coarse"], jobs["prepare_dataset"], jobs["find_overlaps"]) == (2, 1, 1)
    assert (jobs["score_masks"], jobs["refine_masks"]) == (10, 6)


def test_an_unseen_dataset_and_a_cross_test_train_nothing(folder):
    stu = {"phantom": {"cases": 14, "size": 64}, "role": "unseen"}
    jobs = plan(folder, changed(TINY, datasets__stu=stu))
    assert "train_coarse" not in jobs
    assert (jobs["predict_coarse"], jobs["ensemble_masks"]) == (2, 1)
    # transunet by each fold, mean and vote; its chosen threshold; three refined methods.
    assert jobs["score_masks"] == 4 + 1 + 3


def test_a_union_leaves_the_models_of_its_members_alone(folder):
    study = changed(
        TINY,
        datasets__stu={"phantom": {"cases": 14, "size": 64}},
        trainsets={"both": ["busi", "stu"]},
    )
    jobs = plan(folder, study)
    assert jobs["train_coarse"] == 4  # two folds of stu and two of the union
    assert jobs["join_splits"] == 1


@pytest.mark.slow
def test_a_cross_test_between_known_datasets_joins_no_union_again(tmp_path):
    stu = {"phantom": {"cases": 14, "size": 64}}
    study = changed(TINY, datasets__stu=stu, trainsets={"both": ["busi", "stu"]})
    splits = ("results/tiny/both/splits.csv",)
    write_tiny_sam(tmp_path / "tiny_sam.pth")
    write_study(tmp_path, study)
    run_snakemake(tmp_path, targets=splits)
    write_study(tmp_path, changed(study, compare__cross=True))
    assert planned(run_snakemake(tmp_path, "--dry-run", targets=splits)) == {}


def test_defaults_written_out_and_rows_that_nobody_asks_for_rerun_nothing(folder):
    study = changed(TINY, refiners__tiny_sam__passes=1)
    study["refiners"]["unused"] = {"family": "ultrasam", "weights": "./tiny_sam.pth"}
    assert set(plan(folder, study)) == SHOWN
