"""Guards that venv, conda and image are made of the same packages: those that the tests passed with."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
ENVS = ROOT / "envs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = SpecifierSet(PROJECT["requires-python"])
CONDA = yaml.safe_load((ENVS / "environment.yaml").read_text())
# One instruction a line: continued lines joined, comments dropped.
DOCKER = [
    line.split(None, 1)
    for line in (ENVS / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


def pins():
    """Return the pinned version of each package; the file holds nothing but pins and comments."""
    lines = (ENVS / "requirements.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
    found = {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}
    assert len(found) == len(lines), "a package is pinned twice"
    return found


PINS = pins()


def direct():
    """Return what pyproject.toml asks for, in all its extras, on this platform."""
    extras = PROJECT["optional-dependencies"].values()
    wanted = map(
        Requirement, [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]
    )
    return [
        one for one in wanted
        if one.name != PROJECT["name"] and (one.marker is None or one.marker.evaluate())
    ]  # fmt: skip


def image_python():
    return re.fullmatch(r"python:(3\.\d+)-slim-\w+", DOCKER[0][1])[1]


def conda_python():
    return next(
        one.removeprefix("python=")
        for one in CONDA["dependencies"]
        if str(one).startswith("python=")
    )


@pytest.mark.parametrize("wanted", direct(), ids=str)
def test_what_is_asked_for_is_pinned_allowed_and_installed(wanted):
    pin = PINS.get(canonicalize_name(wanted.name))
    assert pin, f"{wanted} has no pin"
    assert wanted.specifier.contains(pin), f"{wanted} against the pin {pin}"
    # The build (`+cpu`) is the machine's affair.
    installed = Version(metadata.version(wanted.name)).public
    assert installed == pin, f"{wanted.name}: tested {installed}, pinned {pin}; see envs/README.md"


@pytest.mark.parametrize("python", sorted({f"{sys.version_info[0]}.{sys.version_info[1]}",
                                           conda_python(), image_python()}))  # fmt: skip
def test_what_these_ask_for_in_turn_is_pinned_too(python):
    around = {"python_version": python, "python_full_version": f"{python}.0"}
    seen, waiting = set(), [(one.name, frozenset(one.extras)) for one in direct()]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            # Asked for by another Python than this one: its pin is all that can be looked at.
            continue
        for need in map(Requirement, needs):
            if need.marker is None or any(
                need.marker.evaluate(around | {"extra": extra}) for extra in ("", *extras)
            ):
                waiting.append((canonicalize_name(need.name), frozenset(need.extras)))
    missing = sorted({name for name, _ in seen if canonicalize_name(name) not in PINS})
    assert not missing, f"no pin for {missing}"


@pytest.mark.parametrize("python", [conda_python(), image_python()], ids=["conda", "image"])
def test_the_pins_can_be_installed_by_the_python_of(python):
    assert PYTHONS.contains(python)
    for name in PINS:
        try:
            needs = metadata.metadata(name)["Requires-Python"]
        except metadata.PackageNotFoundError:
            continue
        assert needs is None or SpecifierSet(needs).contains(f"{python}.99"), name


def test_conda_and_image_use_one_python():
    assert conda_python() == image_python()


def test_the_conda_environment_installs_this_package_by_these_pins():
    (pip,) = (one["pip"] for one in CONDA["dependencies"] if isinstance(one, dict))
    (constraint, package) = (line.split() for line in pip)
    # conda runs pip in the folder of environment.yaml.
    assert (constraint[0], (ENVS / constraint[1]).resolve()) == ("-c", ENVS / "requirements.txt")
    assert (package[0], (ENVS / package[1]).resolve()) == ("-e", ROOT)


def test_the_linter_has_nothing_to_say_about_the_dockerfile(tmp_path):
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, ENVS / "Dockerfile"], capture_output=True, text=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
    # It does speak up.
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN apt-get install git\n")
    result = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert result.returncode == 1
    assert {"DL3007", "DL3008", "DL3009"} & set(re.findall(r"DL\d+", result.stdout))


def test_the_layer_of_the_dependencies_does_not_see_the_code():
    steps = [tuple(step) for step in DOCKER]
    everything = steps.index(("COPY", ". ."))
    installs = [
        n for n, (kind, text) in enumerate(steps) if kind == "RUN" and "pip install" in text
    ]
    assert installs[0] < everything < installs[1]
    before = [text.split() for kind, text in steps[:everything] if kind == "COPY"]
    assert sorted(before) == [["envs/requirements.txt", "envs/"], ["pyproject.toml", "./"]]
    assert "--no-deps" in steps[installs[1]][1]


def test_the_image_installs_what_the_package_asks_for():
    (script,) = (
        re.search(r'python -c "(.*?)" >', text)[1] for kind, text in DOCKER if "tomllib" in text
    )
    asked = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert asked.stdout.splitlines() == PROJECT["dependencies"]


def test_the_image_runs_as_nobody_in_particular():
    users = [text for kind, text in DOCKER if kind == "USER"]
    assert users and users[-1].split(":")[0] not in ("0", "root")


def test_data_results_and_history_stay_out_of_the_image():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = {line for line in lines if line and not line.startswith("#")}
    by_git = (ROOT / ".gitignore").read_text().splitlines()
    assert {name.strip("/") for name in by_git if name.endswith("/") and "*" not in name} <= {
        *ignored, *(line.removeprefix("**/") for line in ignored),
    }  # fmt: skip
    assert ".git" in ignored
    # What it runs, and what its package is built of.
    needed = {"Snakefile", "rules", "workflow", "src", "config", "profiles", "pyproject.toml",
              PROJECT["readme"], *PROJECT["license-files"]}  # fmt: skip
    assert not needed & ignored
    assert all((ROOT / name).exists() for name in needed)
