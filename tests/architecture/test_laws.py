"""Guards the five laws of the house and the shape of the tree."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "ultrarefiner"
RULE_FILES = sorted((ROOT / "rules").glob("*.smk"))
SCRIPTS = sorted((ROOT / "workflow" / "scripts").glob("*.py"))

# Imports point downhill: a room may import rooms that stand before it in this list.
ROOMS = [
    {"errors", "registry", "io", "images", "config", "runtime", "provenance", "code", "__init__"}
    | {"artefacts", "damage", "gpus"},
    {"datasets"},
    {"prompts"},
    {"models"},
    {"refine"},
    {"training"},
    {"evaluation"},
    {"report"},
    {"study", "jobs", "cli", "schema", "deploy", "viewer", "cluster"},
]
# These start many short jobs: torch would cost each of them seconds.
TORCH_FREE = ("datasets", "prompts", "evaluation", "report", "study", "jobs", "config", "io")
# What gradients flow through; only models import it.
OF_TENSORS = {
    Path("prompts/soft.py"),
    Path("prompts/soft_geometry.py"),
    Path("prompts/roi.py"),
}


def rule_blocks() -> dict[str, str]:
    """Return the text of each rule but `all`."""
    blocks = {}
    for path in RULE_FILES:
        parts = re.split(r"^(?:check)?(?:rule|checkpoint) (\w+):$", path.read_text(), flags=re.M)
        blocks |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return blocks


def imported(path: Path) -> set[str]:
    """Return the dotted names that a module imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__version__" else "__init__"


def test_one_name_for_rule_script_log_benchmark_and_heading():
    blocks = rule_blocks()
    assert len(blocks) >= 15
    headings = set(
        re.findall(r"^## `(\w+)`$", (ROOT / "docs/reference/rules.md").read_text(), re.M)
    )
    assert headings == set(blocks)
    assert {path.stem for path in SCRIPTS} == set(blocks)
    for name, block in blocks.items():
        assert re.fullmatch(r"[a-z]+(_[a-z][a-z0-9]*)+", name), name
        assert f'"../workflow/scripts/{name}.py"' in block
        # Weights belong to no run, so their rule has no such wildcard and names the run itself.
        run = "{RUN}" if name == "fetch_weights" else "{run}"
        assert f"results/{run}/logs/{name}/" in block
        assert f"results/{run}/benchmarks/{name}/" in block
        assert "message:" in block


def test_every_rule_reruns_by_its_own_code():
    for name, block in rule_blocks().items():
        assert re.findall(r"code_of\(.*?\)", block) == [f'code_of("{name}")'], name
        inputs = block.split("    output:\n")[0]
        assert f'    input:\n        code=code_of("{name}"),\n' in inputs, name
    triggers = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())["rerun-triggers"]
    assert sorted(triggers) == ["input", "mtime", "params", "software-env"]


def test_rules_hold_no_functions_outside_common():
    for path in [ROOT / "Snakefile", *RULE_FILES]:
        if path.name != "common.smk":
            assert not re.search(r"^\s*(def|class) ", path.read_text(), re.M), path
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 60


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_bridges(path):
    text = path.read_text()
    tree = ast.parse(text)
    banned = (ast.FunctionDef, ast.ClassDef, ast.If, ast.For, ast.While, ast.Lambda, ast.Try)
    assert not [node for node in ast.walk(tree) if isinstance(node, banned)]
    assert len(text.splitlines()) <= 25
    assert ast.get_docstring(tree)
    assert "snakemake.config" not in text
    assert "print(" not in text
    *imports, block = tree.body[1:]
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in imports)
    assert isinstance(block, ast.With)
    assert len(block.body) == 1


def test_only_the_workflow_knows_snakemake():
    for path in SRC.rglob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] == "snakemake"}, path
    for path in [*SCRIPTS, *SRC.rglob("*.py")]:
        assert "snakemake.config" not in path.read_text(), path


def test_imports_point_downhill():
    height = {name: level for level, names in enumerate(ROOMS) for name in names}
    for path in SRC.rglob("*.py"):
        room = path.relative_to(SRC).parts[0].removesuffix(".py")
        for name in imported(path):
            if name.split(".")[0] == "ultrarefiner":
                assert height[room_of(name)] <= height[room], f"{path} imports {name}"


def test_short_jobs_do_not_import_torch():
    code = "import sys\n" + "".join(
        f"import {'.'.join(path.relative_to(SRC.parent).with_suffix('').parts)}\n"
        for path in sorted(SRC.rglob("*.py"))
        if path.relative_to(SRC).parts[0].removesuffix(".py") in TORCH_FREE
        and path.name != "__init__.py"
        and path.relative_to(SRC) not in OF_TENSORS
    )
    code += "import ultrarefiner.refine.jobs, ultrarefiner.refine.grabcut\n"
    code += "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    result = subprocess.run(
        [str(Path(__import__("sys").executable)), "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_no_file_is_too_long():
    files = [*SRC.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *RULE_FILES]
    assert not [(path.name, n) for path in files if (n := len(path.read_text().splitlines())) > 400]


def test_no_swallowed_exceptions_or_leftovers():
    for path in [*SRC.rglob("*.py"), *SCRIPTS, *RULE_FILES]:
        text = path.read_text()
        assert not re.search(
            r"except\s*:|except (Base)?Exception:\s*(pass|continue|return)", text
        ), path
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text), path
        assert "sys.path" not in text, path


def test_generated_files_are_current():
    from ultrarefiner.schema import stale_files

    assert stale_files(ROOT) == []


def test_every_registry_row_resolves():
    from ultrarefiner.datasets import DATASETS
    from ultrarefiner.models import MODELS
    from ultrarefiner.models.sam import SAM_FAMILIES
    from ultrarefiner.prompts import PROMPTS
    from ultrarefiner.refine import REFINERS
    from ultrarefiner.registry import resolve

    assert {"busi", "busbra", "stu"} <= set(DATASETS)
    joint = {"box+point", "mask+point", "mask+box"}
    assert {"box", "point", "both", "mask"} | joint == set(PROMPTS)
    for row in [*MODELS.values(), *REFINERS.values()]:
        assert callable(resolve(row.target))
    for target in SAM_FAMILIES.values():
        assert callable(resolve(target))


def test_the_profile_link_is_a_link():
    link = ROOT / "slurm"
    assert link.is_symlink()
    assert (link / "config.yaml").is_file()


def test_on_a_cluster_every_rule_that_asks_for_a_gpu_goes_where_gpus_are():
    wanted = {name for name, text in rule_blocks().items() if re.search(r"^ +gpu=", text, re.M)}
    assert {"train_coarse", "refine_masks"} <= wanted
    own = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())["set-resources"]
    assert {name for name, row in own.items() if row.get("slurm_partition") == "gpu"} == wanted


def test_nothing_names_a_machine_or_a_registry_host():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    hosts = re.compile(r"pypi\.or" r"g|pythonhoste" r"d|registry\.npmj" r"s")
    for name in filter(None, listed):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".smk", ""}
            and path.is_file()
        ):
            assert not hosts.search(path.read_text(errors="replace")), path
