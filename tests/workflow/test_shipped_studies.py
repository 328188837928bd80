"""Guards the numbers that the README promises: the demo, and a run on real images."""

import csv
import subprocess
import sys

import pytest

from tests.workflow.study import ROOT, TINY, changed, run_snakemake, write_study


def table(folder, run, name):
    with open(folder / "results" / run / "report" / name, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
def test_the_demo_refines_what_is_worth_refining(tmp_path):
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"),
        "--directory", str(tmp_path), "--configfile", str(ROOT / "config" / "demo.yaml"),
        "--cores", "2", "all",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=580)
    means = {
        (row["dataset"], row["method"]): float(row["mean"])
        for row in table(tmp_path, "demo", "summary.csv")
        if row["metric"] == "dice" and row["fold"] == row["subgroup"] == "all"
    }
    for dataset in ("busi", "busbra"):
        assert means[dataset, "transunet"] >= 0.65
        for method in ("grabcut-mask", "repaired-mask", "end_to_end", "end_to_end-guarded"):
            assert means[dataset, method] > means[dataset, "transunet"]
    compared = [
        row for row in table(tmp_path, "demo", "comparisons.csv") if row["metric"] == "dice"
    ]
    methods = {row["method"] for row in compared}
    refined = {"grabcut-mask", "grabcut-oracle_mask", "repaired-mask"}
    joint = {f"end_to_end{suffix}" for suffix in ("", "-coarse", "-guarded", "-tuned")}
    assert methods == {"transunet-tuned", *refined, *joint}
    for row in compared:
        if row["method"] in refined:
            assert float(row["ci_low"]) > 0
        assert (row["method"] == "grabcut-oracle_mask") == (row["oracle"] == "true")
    again = subprocess.run([*command, "-n"], check=True, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr


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
