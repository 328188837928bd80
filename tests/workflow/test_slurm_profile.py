"""Guards the Slurm profile without a Slurm: what it sends there, and that no line of it is idle."""

import re
import subprocess
import sys

import pytest
import yaml

from benchmarks.planning import STUDY
from tests.workflow.study import ROOT, planned

PROFILE = ROOT / "profiles" / "slurm" / "config.yaml"
SECONDARY = {"train_inner", "predict_inner", "train_refiner", "train_end_to_end"}


@pytest.fixture(scope="module")
def profile():
    return yaml.safe_load(PROFILE.read_text())


def rule_texts():
    texts = {}
    for path in (ROOT / "rules").glob("*.smk"):
        parts = re.split(r"^rule (\w+):$", path.read_text(), flags=re.M)
        texts |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return texts


def local_rules():
    return {name for name, text in rule_texts().items() if "localrule: True" in text}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """Return what the plan of 5 datasets x 5 folds x 8 methods says under the profile."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    command = [
        *(sys.executable, "-m", "snakemake", "--profile", "slurm", "--dry-run", "all"),
        *("--directory", str(folder), "--configfile", str(folder / "study.yaml")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_large_study_sends_few_jobs_to_slurm(profile, dry_run):
    jobs = planned(dry_run)
    assert sum(jobs.values()) > 700
    assert jobs["score_masks"] == 225
    grouped = dict(row.split("=") for row in profile["groups"])
    alone = {
        rule: count
        for rule, count in jobs.items()
        if rule not in grouped and rule not in local_rules()
    }
    assert alone == {"embed_images": 75, "train_coarse": 25}
    groups = re.findall(r"Group job (\w+) \(jobs", dry_run)
    assert set(groups) == {"preparation", "prediction", "refinement", "scoring"}
    assert len(groups) + sum(alone.values()) <= 200


def test_every_name_in_the_profile_is_a_rule_and_none_is_both_local_and_remote(profile):
    grouped = {row.partition("=")[0] for row in profile["groups"]}
    configured = set(profile["set-resources"])
    known = set(rule_texts())
    # Snakemake ignores the name of a rule that does not exist.
    assert grouped <= known and configured <= known
    assert not (grouped | configured) & local_rules()


def test_members_of_a_group_go_to_one_partition(profile):
    own, default = profile["set-resources"], profile["default-resources"]
    groups = {}
    for row in profile["groups"]:
        rule, _, group = row.partition("=")
        groups.setdefault(group, []).append(rule)
    for rules in groups.values():
        assert (
            len(
                {
                    str(own.get(rule, default)["slurm_partition"])
                    if "slurm_partition" in own.get(rule, default)
                    else default["slurm_partition"]
                    for rule in rules
                }
            )
            == 1
        )


def test_a_group_asks_for_one_member_at_a_time_and_for_the_time_of_all(profile):
    slots = int(profile["resources"][0].removeprefix("slot="))
    assert profile["default-resources"]["slot"] == slots == 1
    assert not [rule for rule, row in profile["set-resources"].items() if "slot" in row]
    assert profile["set-resource-scopes"] == ["slot=local"]


def test_trainings_are_told_of_the_time_limit_before_it_comes(profile):
    trainings = {name for name in rule_texts() if name.startswith("train_")}
    for rule in trainings:
        assert "--signal=TERM@" in profile["set-resources"][rule]["slurm_extra"]


def test_keys_that_would_be_overwritten_or_hang_are_in_no_profile(profile):
    default = yaml.safe_load((ROOT / "profiles" / "default" / "config.yaml").read_text())
    assert not set(default) & set(profile)
    assert not {"cores", "default-resources", "set-resources", "jobs", "retries"} & set(default)
    assert "cores" not in profile and "slurm-array-jobs" not in profile
    assert profile["slurm-status-command"] == "squeue"
    assert profile["slurm-no-requeue"] is True
