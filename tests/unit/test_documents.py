"""Guards that commands and links in the documents are ones that work."""

import re
import shlex
from pathlib import Path

import pytest
from snakemake.cli import parse_args
from typer.main import get_command

from ultrarefiner.cli import app

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
