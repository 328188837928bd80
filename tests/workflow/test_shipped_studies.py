"""Guards the numbers that the README promises: the demo, and a run on real images."""

import csv

import pytest

from tests.checkout import DEMO, Checkout
from tests.workflow.study import TINY, changed, run_snakemake, write_study


def table(folder, run, name):
    with open(folder / "results" / run / "report" / name, newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_demo_refines_what_is_worth_refining(finished_demo):
    compared = {
        row["method"]: row
        for row in table(finished_demo, "demo", "comparisons.csv")
        if row["metric"] == "dice"
    }
    improved = {"grabcut-mask", "repaired-mask", "end_to_end", "end_to_end-guarded"}
    others = {"grabcut-oracle_mask", "transunet-tuned", "end_to_end-tuned", "end_to_end-coarse"}
    assert set(compared) == improved | others
    for method in (*improved, "grabcut-oracle_mask"):
        assert float(compared[method]["ci_low"]) > 0
    for method, row in compared.items():
        assert float(row["mean_reference"]) >= 0.65
        assert (method == "grabcut-oracle_mask") == (row["oracle"] == "true")


def test_the_demo_leaves_nothing_to_do(finished_demo):
    said = Checkout(finished_demo).run("--cores", "2", "--dry-run", *DEMO)
    assert "Nothing to be done" in said


@pytest.mark.slow
def test_real_images_go_all_the_way(tmp_path, stu_root):
    study = changed(
        TINY,
        datasets={"stu": {"root": str(stu_root)}},
        splits={"folds": 5},
        coarse__transunet__image_size=64,
        coarse__transunet__epochs=30,
        coarse__transunet__batch_size=8,
        refiners={"grabcut": {"family": "grabcut"}},
        compare__refine={"grabcut": ["mask", "oracle_mask"]},
    )
    write_study(tmp_path, study)
    run_snakemake(tmp_path)
    rows = table(tmp_path, "tiny", "scores.csv")
    for method in ("transunet", "grabcut-mask", "grabcut-oracle_mask"):
        dice = [float(row["dice"]) for row in rows if row["method"] == method]
        assert len(dice) == 42
        assert sum(dice) / 42 > 0.6
    report = (tmp_path / "results" / "tiny" / "report" / "report.html").read_text()
    assert report.count("stu__test_image_") > 3
