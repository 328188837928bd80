"""Guards that the shipped studies plan in a fresh checkout, also by profile and as a module."""

import shutil
import subprocess
import sys

import pytest

from tests.workflow.study import ROOT, planned


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Return a copy of the checkout as git would clone it: no data, no results."""
    folder = tmp_path_factory.mktemp("clone") / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return folder


def snakemake(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments], cwd=folder, capture_output=True, text=True
    )


def test_the_default_study_plans(fresh):
    result = snakemake(fresh, "-n", "all")
    assert result.returncode == 0, result.stderr + result.stdout
    jobs = planned(result.stdout + result.stderr)
    # 2 datasets x 5 folds; one coarse model at two thresholds; eight refined methods.
    assert jobs["train_coarse"] == 10
    assert jobs["refine_masks"] == 80
    assert jobs["score_masks"] == 100
    # Two refiners see the full images, one of them crops too.
    assert jobs["embed_images"] == 30
    # TransUNet's start, SAM and MedSAM: none of them is in a fresh checkout.
    assert jobs["fetch_weights"] == 3


@pytest.mark.parametrize("profile", ["slurm", "profiles/workstation"])
def test_profiles_plan(fresh, profile):
    assert (fresh / "slurm").resolve() == (fresh / "profiles/slurm").resolve()
    result = snakemake(fresh, "--profile", profile, "-n", "all")
    assert result.returncode == 0, result.stderr + result.stdout


def test_the_demo_plans(fresh):
    result = snakemake(fresh, "--configfile", "config/demo.yaml", "-n", "all")
    assert result.returncode == 0, result.stderr + result.stdout
    assert planned(result.stdout + result.stderr)["train_coarse"] == 2


def test_the_study_over_all_public_datasets_plans(fresh):
    result = snakemake(fresh, "--configfile", "config/public_datasets.yaml", "-n", "all")
    assert result.returncode == 0, result.stderr + result.stdout
    jobs = planned(result.stdout + result.stderr)
    # Five datasets and their union; three models; five folds.
    assert jobs["train_coarse"] == jobs["choose_threshold"] == 6 * 3 * 5
    assert jobs["join_splits"] == 1


def test_a_subset_of_folds_plans_only_those(fresh, tmp_path):
    text = (fresh / "config" / "config.yaml").read_text()
    assert "run: all " in text
    (tmp_path / "quick.yaml").write_text(text.replace("run: all ", "run: [0] "))
    result = snakemake(fresh, "--configfile", str(tmp_path / "quick.yaml"), "-n", "all")
    jobs = planned(result.stdout + result.stderr)
    assert (jobs["train_coarse"], jobs["refine_masks"], jobs["split_folds"]) == (2, 16, 2)


def test_the_catalog_entry_plans(fresh):
    result = snakemake(fresh, "--snakefile", "workflow/Snakefile", "-n", "all")
    assert result.returncode == 0, result.stderr + result.stdout


def test_another_workflow_can_import_it(fresh, tmp_path):
    (tmp_path / "Snakefile").write_text(
        f'configfile: "{fresh}/config/demo.yaml"\n'
        f'module house:\n    snakefile: "{fresh}/Snakefile"\n    config: config\n'
        "use rule * from house as house_*\n"
    )
    result = snakemake(tmp_path, "-n", "house_all")
    assert result.returncode == 0, result.stderr + result.stdout


def test_missing_data_stops_a_real_run_before_its_first_job(fresh):
    result = snakemake(fresh, "--cores", "1", "all")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    for part in ("datasets.busi.root", "data/BUSI", "datasets.busbra.root"):
        assert part in output
    assert not (fresh / "results" / "main" / "busi").exists()
    assert not (fresh / "resources").exists()


def test_lint_is_clean(fresh):
    result = snakemake(fresh, "--lint")
    assert result.returncode == 0, result.stderr + result.stdout
    assert "Lints for" not in result.stdout + result.stderr
