"""Guards that a change of code is known to concern the results that it made, and no others."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_reader import Page
from report_page import write_page

from ultrarefiner.code import (
    ALL,
    Code,
    OtherCode,
    fingerprint,
    made_by_other_code,
    write_fingerprints,
)
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import write_json

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"

SCRIPT = """
from tool.stages import work

work.run(None)
"""
PACKAGE = {
    "__init__.py": '__version__ = "1"\nSIDE = 1\n',
    "stages/__init__.py": "LEVEL = 1\n",
    "stages/work.py": (
        '"""Work."""\n\n'
        "from __future__ import annotations\n\n"
        "from typing import TYPE_CHECKING\n\n"
        "from tool.rows import ROWS\n\n"
        "if TYPE_CHECKING:\n    from tool.typed import Thing\n\n\n"
        "def run(thing: Thing) -> int:\n"
        '    """Run."""\n'
        "    import tool.deep.lazy  # on first use\n\n"
        "    return tool.deep.lazy.double(len(ROWS))\n"
    ),
    "stages/idle.py": "VALUE = 1\n",
    "typed.py": "class Thing:\n    pass\n",
    "rows.py": 'ROWS = {"one": "tool.targets.one:build", "none": "tool.targets.absent:build"}\n',
    "targets/__init__.py": "",
    "targets/one.py": 'HERE = __file__\nPAGE = "page.html.j2"\n\n\ndef build():\n    return 1\n',
    "targets/page.html.j2": "<p>{% include 'parts/row.html.j2' %}</p>\n",
    "targets/parts/row.html.j2": "<b></b>\n",
    "targets/notes.txt": "notes\n",
    "other.html.j2": "<i></i>\n",
    "deep/__init__.py": "",
    "deep/lazy.py": (
        "from tool.deep.constants import FACTOR\n\n\n"
        "def double(value):\n    return FACTOR * value\n"
    ),
    "deep/constants.py": 'FACTOR = 2\n"""What a value is\nmultiplied by."""\n',
}


@pytest.fixture
def tool(tmp_path):
    """Return a package of its own, with a script that uses a part of it."""
    for name, text in PACKAGE.items():
        path = tmp_path / "tool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "run_it.py").write_text(f'"""Run it."""\n{SCRIPT}')
    (scripts / "rest_it.py").write_text('"""Rest."""\n\nfrom tool.stages.idle import VALUE\n')
    return tmp_path / "tool"


def replaced(tool, name, old, new):
    """Return the fingerprints before and after a change of a file of the package."""
    script = tool.parent / "scripts" / "run_it.py"
    path = tool / name
    before, text = fingerprint(script, tool), path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return before, fingerprint(script, tool)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("deep/lazy.py", "\n\ndef", "\n\n# Twice, as a rule.\ndef"),
        ("deep/lazy.py", "FACTOR * value", "(\n        FACTOR\n        * value\n    )  # twice"),
        ("stages/work.py", '"""Run."""', '"""Run it all."""'),
        ("stages/work.py", '    """Run."""\n', ""),
        ("deep/constants.py", "multiplied by", "taken times"),
        ("__init__.py", '"1"', '"2"'),
        ("stages/idle.py", "1", "2"),
        ("typed.py", "pass", "size = 1"),
        ("targets/notes.txt", "notes", "other notes"),
        ("other.html.j2", "<i>", "<em>"),
    ],
)
def test_what_runs_no_code_of_the_stage_leaves_its_fingerprint_alone(tool, name, old, new):
    before, after = replaced(tool, name, old, new)
    assert after == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("deep/constants.py", "2", "3"),
        ("deep/constants.py", "2", "2.0"),
        ("deep/lazy.py", "FACTOR * value", "value * FACTOR"),
        ("stages/work.py", "return tool", "return 1 + tool"),
        ("__init__.py", "SIDE = 1", "SIDE = 2"),
        ("stages/__init__.py", "1", "2"),
        ("targets/one.py", "return 1", "return None"),
        ("targets/page.html.j2", "<p>", "<div>"),
        ("targets/parts/row.html.j2", "<b>", "<u>"),
        ("rows.py", "targets.absent:", "stages.idle:"),
    ],
)
def test_a_change_of_what_the_stage_runs_changes_its_fingerprint(tool, name, old, new):
    before, after = replaced(tool, name, old, new)
    assert after != before


def test_the_script_itself_counts_but_for_its_words(tool):
    script = tool.parent / "scripts" / "run_it.py"
    before = fingerprint(script, tool)
    script.write_text(f'"""Run it again."""\n{SCRIPT}')
    assert fingerprint(script, tool) == before
    script.write_text(SCRIPT.replace("None", "1"))
    assert fingerprint(script, tool) != before


def test_a_file_that_is_no_python_is_named(tool):
    (tool / "deep" / "constants.py").write_text("FACTOR = 2\nFACTOR = = 3\n")
    with pytest.raises(UltraRefinerError, match=r"constants\.py, line 2: invalid syntax"):
        fingerprint(tool.parent / "scripts" / "run_it.py", tool)


def contents(folder):
    return {name: (folder / name).read_text() for name in ("run_it", "rest_it", ALL)}


def test_only_fingerprints_that_changed_are_written(tool):
    scripts, folder = tool.parent / "scripts", tool.parent / "code"
    write_fingerprints(scripts, folder, tool)
    first = contents(folder)
    assert first["run_it"] == f"{fingerprint(scripts / 'run_it.py', tool)}\n"
    for name in first:
        os.utime(folder / name, (1, 1))
    (tool / "stages" / "idle.py").write_text("VALUE = 2\n")
    write_fingerprints(scripts, folder, tool)
    second = contents(folder)
    assert {name for name in first if first[name] != second[name]} == {"rest_it", ALL}
    assert (folder / "run_it").stat().st_mtime == 1
    assert (folder / "rest_it").stat().st_mtime > 1


def test_a_file_is_read_again_only_if_it_changed(tool, monkeypatch):
    scripts, folder = tool.parent / "scripts", tool.parent / "code"
    write_fingerprints(scripts, folder, tool)
    first = contents(folder)
    read = []
    parse = ast.parse
    monkeypatch.setattr(ast, "parse", lambda text: read.append(text) or parse(text))
    write_fingerprints(scripts, folder, tool)
    assert read == []
    path = tool / "deep" / "constants.py"
    stat = path.stat()
    path.write_text(path.read_text().replace("2", "3"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy with its times would
    write_fingerprints(scripts, folder, tool)
    assert read == [path.read_bytes()]
    assert contents(folder)["run_it"] != first["run_it"]


LOADED = """
import ast, json, os, sys
import matplotlib, pandas, torch  # once, before the forks

def load(script):
    tree = ast.parse(open(script).read())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, script, "exec"), {})
    from ultrarefiner.registry import Registry, resolve
    modules = [module for name, module in sys.modules.items() if name.startswith("ultrarefiner.")]
    tables = [v for module in modules for v in vars(module).values() if isinstance(v, Registry)]
    for row in [row for table in tables for row in table.values()]:
        for text in [row, *getattr(row, "__dict__", {}).values()]:
            if isinstance(text, str) and text.startswith("ultrarefiner."):
                resolve(text)
    return [name for name in sys.modules if name.partition(".")[0] == "ultrarefiner"]

for script in sys.argv[1:]:
    if os.fork() == 0:
        print(json.dumps([script, load(script)]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
STAGES = ("split_folds", "score_masks", "refine_masks", "train_coarse", "write_report")


@pytest.fixture(scope="module")
def loaded():
    """Return the modules of the package that each of some stages really imports."""
    scripts = [str(SCRIPTS / f"{stage}.py") for stage in STAGES]
    result = subprocess.run(
        [sys.executable, "-c", LOADED, *scripts], capture_output=True, text=True, check=True
    )
    return {
        Path(script).stem: names
        for script, names in map(json.loads, result.stdout.split("\n")[:-1])
    }


@pytest.fixture(scope="module")
def closures():
    """Return the files of the package that each stage answers for, by their place in it."""
    code = Code()
    return {
        script.stem: {path.relative_to(code.package).as_posix() for path in code.closure(script)}
        for script in SCRIPTS.glob("*.py")
    }


@pytest.mark.parametrize("stage", STAGES)
def test_all_that_a_stage_imports_is_in_its_closure(loaded, closures, stage):
    paths = {path.removesuffix(".py") for path in closures[stage]}
    names = {f"ultrarefiner/{path}".removesuffix("/__init__") for path in paths}
    assert len(loaded[stage]) > 20
    assert {name.replace(".", "/") for name in loaded[stage]} <= names


def test_a_stage_does_not_answer_for_the_rest_of_the_package(closures):
    def stages_of(name):
        return {stage for stage, paths in closures.items() if name in paths}

    assert stages_of("report/page.html.j2") == {"write_report"}
    assert {"train_coarse", "predict_coarse"} <= stages_of("models/unet.py")
    assert not {"split_folds", "score_masks", "make_prompts"} & stages_of("models/unet.py")
    assert not {"score_masks", "refine_masks"} & stages_of("training/coarse.py")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return the folder of a run whose report was made from two scores, of two masks."""
    monkeypatch.chdir(tmp_path)
    run = Path("results/main")
    for rule in ("refine_masks", "score_masks", "write_report", "fetch_weights"):
        path = Path(".snakemake/code") / rule
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{rule} now\n")
    write_record(run, "fetch_weights/sam", "old", {}, {"weights": "resources/weights/sam.pth"})
    for name in ("a", "b", "removed"):
        masks, weights = f"results/main/masks/{name}", "resources/weights/sam.pth"
        write_record(run, f"refine_masks/{name}", "refine_masks old", [weights], {"masks": masks})
        table = {"scores": f"results/main/scores/{name}.csv"}
        write_record(run, f"score_masks/{name}", "score_masks now", {"masks": [masks]}, table)
    scores = {"scores": ["results/main/scores/a.csv", "results/main/scores/b.csv"]}
    page = {"page": "results/main/report/report.html"}
    write_record(run, "write_report/all", "write_report now", scores, page, finished=None)
    return run


def write_record(run, name, code, inputs, outputs, finished="2026-01-01"):
    # As a workflow calls it that imports this one with a prefix.
    record = {
        "rule": f"house_{name.split('/')[0]}",
        "input": inputs,
        "output": outputs,
        "code": code,
    }
    write_json(run / "logs" / f"{name}.json", record | {"finished": finished})


def test_results_behind_the_report_that_other_code_made_are_counted(run):
    assert made_by_other_code(run) == OtherCode({"refine_masks": 2}, {})


def test_without_a_report_every_result_of_the_run_counts(run):
    (run / "logs" / "write_report" / "all.json").unlink()
    assert made_by_other_code(run) == OtherCode({"refine_masks": 3}, {})


def test_a_result_of_unknown_code_is_told_apart_and_an_unfinished_job_is_none(run):
    table = {"scores": "results/main/scores/a.csv"}
    masks = {"masks": "results/main/masks/a"}
    write_record(run, "score_masks/a", None, masks, table)
    write_record(
        run, "refine_masks/b", "refine_masks old", {}, {"masks": "results/main/masks/b"}, None
    )
    assert made_by_other_code(run) == OtherCode({"refine_masks": 1}, {"score_masks": 1})


def test_a_run_without_jobs_has_no_results(tmp_path):
    assert made_by_other_code(tmp_path / "results" / "main") == OtherCode({}, {})


@pytest.mark.parametrize("mode", ["warn", True, False])
def test_the_report_says_what_other_code_made(run, report_study, mode):
    write_record(
        run,
        "score_masks/a",
        None,
        {"masks": ["results/main/masks/a"]},
        {"scores": "results/main/scores/a.csv"},
    )
    config = report_study["provenance"]["config"] | {"rerun_on_code_change": mode}
    provenance = report_study["provenance"] | {"config": config}
    text = Page(write_page(report_study, run / "report", provenance=provenance)).text
    said = "made by the present code: 3 by older code, or nobody knows by which." in " ".join(
        text.split()
    )
    assert said == (mode is not False)
    assert ("refine_masks: 2 by older code" in text) == said
    assert ("score_masks: 1, code not recorded" in text) == said
