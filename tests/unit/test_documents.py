"""Guards that commands, links and configurations in the documents are ones that work."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from snakemake.cli import parse_args
from typer.main import get_command

from ultrarefiner.cli import app
from ultrarefiner.config import StudyConfig, load_config
from ultrarefiner.study import load_study

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("config/*"),
        *ROOT.glob("*/README.md"),
    ]
)
LINE = re.compile(
    r"`((?:snakemake|ultrarefiner) [^`\n…]*)`|^((?:snakemake|ultrarefiner) .*)$", re.M
)


def commands(name):
    for page in PAGES:
        for quoted, line in LINE.findall(page.read_text()):
            command = (quoted or line).split("#")[0].split("`")[0].strip()
            if command.startswith(name + " "):
                yield pytest.param(command, id=f"{page.name}: {command}")


# What a document's excerpt of a study is put into, to see whether its keys are right.
AROUND = {
    "datasets": {"busi": {"root": "data/BUSI"}},
    "coarse": {"transunet": {}},
    "compare": {"coarse": ["transunet"]},
}


def studies():
    """Yield the YAML of each page that is a study, or some sections of one."""
    for page in PAGES:
        if page.suffix == ".md":
            for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S):
                values = yaml.safe_load(block)
                if isinstance(values, dict) and set(values) & set(StudyConfig.model_fields):
                    yield pytest.param(values, id=f"{page.name}: {' '.join(values)}")


@pytest.mark.parametrize("values", studies())
def test_configurations_are_ones_that_start(values):
    load_config(AROUND | values)
    if "compare" in values:
        assert load_study(values).methods


def test_the_whole_study_of_several_datasets_is_what_its_page_says():
    page = (ROOT / "docs/how-to/compare_datasets.md").read_text()
    study = load_study(yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", page, re.M | re.S)[1]))
    trained = len(study.trainsets) * len(study.coarse) * len(study.folds)
    assert f"5 × 2 × 5 =\n{trained} trainings" in page
    named = page.split("## Names of the rows")[1].split("##")[0]
    rows = set(re.findall(r"^\| `([\w@-]+)` \| ", named, re.M))
    assert len(rows) == 5 and rows <= set(study.applied)


@pytest.mark.parametrize("command", commands("snakemake"))
def test_snakemake_commands_parse_as_they_are_meant(command):
    _, given = parse_args(shlex.split(command)[1:])
    assert set(given.targets or ()) <= {"all"}, given.targets
    for path in given.configfile or ():
        assert Path(path).suffix == ".yaml", f"{path} is read as a config file"


@pytest.mark.parametrize("command", commands("ultrarefiner"))
def test_our_commands_exist(command):
    assert shlex.split(command)[1] in {*get_command(app).commands, "--version"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
