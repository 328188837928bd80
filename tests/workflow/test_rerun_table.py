"""Guards, for every key of the configuration, that a change reruns what depends on it and no more."""

from __future__ import annotations

import copy
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.workflow.planner import Planner, pretend_to_run
from tests.workflow.rerun_effects import SHOWN, VOLUMES
from tests.workflow.rerun_studies import DEEP, WHOLE, WIDE, write_files
from tests.workflow.rerun_table import TABLE
from tests.workflow.study import ROOT, planned, run_snakemake
from ultrarefiner.schema import table_text

STUDIES = {"deep": DEEP, "wide": WIDE, "whole": WHOLE}
NEVER_AGAIN = {"all", "fetch_weights"}
"""Rules without a finished job: one has no output, the other one's is an input as soon as it is there."""
EVERYWHERE = ("/report/", "/study.json", "/calibration/")
"""What shows several rows of a section at once."""


def keys_of_the_config():
    """Return every key that holds a value, as `config/README.md` lists it."""
    keys, family = [], ""
    for line in table_text().splitlines():
        if heading := re.match(r"### Keys of refiner family `(\w+)`", line):
            family = f" ({heading[1]})"
        elif row := re.match(r"\| `([\w.*]+)` \|", line):
            keys.append((row[1], family))
    sections = {key.rpartition(".")[0].removesuffix(".*") for key, _ in keys}
    return [key + family for key, family in keys if key.removesuffix(".*") not in sections]


def with_changes(study, values):
    study = copy.deepcopy(study)
    for path, value in values.items():
        *parents, last = path.split(".")
        section = study
        for key in parents:
            section = section.setdefault(key, {})
        if value is None:
            section.pop(last, None)
        else:
            section[last] = copy.deepcopy(value)
    return study


class Finished:
    """A study that Snakemake believes to have run."""

    def __init__(self, folder, study):
        self.folder, self.study = write_files(folder), study
        self.planner = Planner().__enter__()
        pretend_to_run(self.planner, self.folder, study)
        self.unchanged = self.plan({})

    def plan(self, values):
        return self.planner.plan(self.folder, with_changes(self.study, values))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in STUDIES}
    with ThreadPoolExecutor() as pool:  # most of it is waiting
        made = dict(
            zip(STUDIES, pool.map(Finished, folders.values(), STUDIES.values()), strict=True)
        )
    yield made
    for one in made.values():
        one.planner.__exit__()


def test_every_key_has_a_row_and_every_row_a_key():
    keys, rows = keys_of_the_config(), [row.key for row in TABLE]
    assert len(keys) > 200
    assert [key for key in keys if key not in rows] == []
    assert [key for key in rows if key not in keys] == []


def test_every_rule_is_in_a_study(finished):
    deep, wide, _ = finished.values()
    listed = deep.planner.run(deep.folder, "--list-rules").splitlines()
    rules = {line for line in listed if line.isidentifier()}
    assert rules - deep.unchanged.rules - wide.unchanged.rules == NEVER_AGAIN


def test_only_datasets_of_volumes_have_jobs_of_volumes(finished):
    deep, wide, _ = finished.values()
    rules = VOLUMES | {"list_volumes", "export_medsam2"}
    assert not deep.unchanged.rules & rules
    made = [out for out in wide.unchanged.outputs if out.rule in rules]
    assert {out.rule for out in made} == rules
    assert {out.path.split("/")[2] for out in made} == {"sweep", "report"}
    images = [out.path for out in deep.unchanged.outputs + wide.unchanged.outputs]
    images = [path for path in images if not re.match("results/wide/(sweep|report)/", path)]
    assert not [path for path in images if "volume" in path]


@pytest.mark.parametrize("name", STUDIES)
def test_an_unchanged_study_plans_nothing(finished, name):
    assert not finished[name].unchanged.reruns | finished[name].unchanged.makes


def rows():
    """Yield the rows; those of an effect that an earlier one has too are for `make slow`."""
    seen = set()
    for row in TABLE:
        effect = (row.study, frozenset(row.reruns), frozenset(row.makes))
        marks = [pytest.mark.slow] if effect in seen else []
        seen.add(effect)
        yield pytest.param(row, marks=marks, id=f"{row.study}:{row.key}")


@pytest.mark.parametrize("row", rows())
def test_a_change_reruns_its_rules_and_no_others(finished, row):
    one = finished[row.study]
    plan = one.plan(row.values)
    assert plan.reruns == row.reruns & one.unchanged.rules
    assert plan.makes == row.makes & plan.rules
    if row.within:
        paths = [out.path for out in plan.again if not any(part in out.path for part in EVERYWHERE)]
        assert [path for path in paths if not any(word in path for word in row.within)] == []


def test_two_changes_at_once_lose_neither(finished):
    one = finished["wide"]
    epochs, cases = {"coarse.unet.epochs": 3}, {"datasets.bus.phantom.seed": 1}
    alone = {out.path for values in (epochs, cases) for out in one.plan(values).again}
    assert {out.path for out in one.plan(epochs | cases).again} == alone


@pytest.mark.parametrize("key", ["guard.band", "prompts.*.crop.expand", "datasets.*.role"])
def test_a_plan_is_what_a_dry_run_says(finished, key):
    row = next(row for row in TABLE if row.key == key)
    one = finished[row.study]
    plan = one.plan(row.values)
    assert set(planned(run_snakemake(one.folder, "--dry-run"))) == plan.reruns | plan.makes


def test_the_page_tells_what_the_table_says():
    page = (ROOT / "docs/reference/reruns.md").read_text()
    lines = re.findall(r"^\| (`.*?)\|(.*?)\|(.*?)\|$", page, re.M)
    told = {key: line[1:] for line in lines for key in re.findall("`(.+?)`", line[0])}
    used = set()
    for row in TABLE:
        key = row.key.partition(" ")[0]
        most = max((one for one in told if f"{key}.".startswith(f"{one}.")), key=len, default=None)
        assert most, f"{key} is not on the page"
        runs, stays = (set(re.findall("`(.+?)`", text)) for text in told[most])
        used.add(most)
        assert runs <= row.reruns | row.makes, row.key
        assert not stays & row.reruns, row.key
        assert ("nothing is computed" in told[most][0]) <= (row.reruns == SHOWN), row.key
    assert used == set(told)
