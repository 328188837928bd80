"""Guards the command line: what it says, and that its exit status says the same."""

import re
import shutil

import pytest
from typer.testing import CliRunner

from ultrarefiner import __version__
from ultrarefiner.cli import app
from ultrarefiner.datasets.phantom import write_phantom
from ultrarefiner.io import read_rows
from ultrarefiner.report.tables import EVALUATIONS


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def busi(tmp_path):
    write_phantom("busi", tmp_path / "BUSI", cases=6, size=64, seed=0, odd_cases=False)
    return tmp_path / "BUSI"


def test_the_doctor_passes_a_sound_folder(busi):
    status, output = run("doctor", "busi", busi)
    assert status == 0
    assert "0 errors" in output


def test_the_doctor_names_the_file_and_fails(busi):
    mask = sorted(busi.rglob("*_mask.png"))[0]
    mask.write_bytes(mask.read_bytes()[:100])
    status, output = run("doctor", "busi", busi)
    assert status == 1
    assert mask.name in output


@pytest.mark.parametrize(("name", "says"), [("bussi", "Did you mean 'busi'"), ("busi", "benign")])
def test_the_doctor_refuses_wrong_names_and_folders(tmp_path, name, says):
    (tmp_path / "empty").mkdir()
    status, output = run("doctor", name, tmp_path / "empty")
    assert status == 1
    assert says in output


def test_the_doctor_takes_the_layouts_options_and_a_curation_file(tmp_path, busi):
    write_phantom("pairs", tmp_path / "p", cases=4, size=64, seed=0, odd_cases=False)
    (tmp_path / "p" / "images").rename(tmp_path / "p" / "scans")
    assert run("doctor", "pairs", tmp_path / "p")[0] == 1
    status, output = run("doctor", "pairs", tmp_path / "p", "--option", "images=scans")
    assert status == 0, output
    assert "images 4" in output
    status, output = run("doctor", "pairs", tmp_path / "p", "--option", "images")
    assert status == 1
    assert "key=value" in output
    curation = tmp_path / "curation.yaml"
    curation.write_text("exclude: [{case: benign (1), reason: twice}]")
    status, output = run("doctor", "busi", busi, "--curation", curation)
    assert status == 0
    assert "excluded busi__benign_1 twice" in output
    curation.write_text("exclude: [{case: benign (100), reason: twice}]")
    status, output = run("doctor", "busi", busi, "--curation", curation)
    assert status == 1
    assert "no case 'benign (100)'" in output


def test_phantoms_are_drawn_and_nothing_is_overwritten(tmp_path):
    status, _ = run("phantom", tmp_path / "new", "--layout", "stu", "-n", "4")
    assert status == 0
    assert len(list((tmp_path / "new").rglob("mask_*.png"))) == 4
    status, output = run("phantom", tmp_path / "new", "--layout", "stu", "-n", "4")
    assert status == 1
    assert "exists" in output


@pytest.mark.parametrize("name", ["[old] data", "x[/b]", ":smile:", "[red]"])
def test_names_are_said_as_they_are(tmp_path, name):
    folder = tmp_path / name
    status, output = run("phantom", folder, "--layout", "stu", "-n", "2")
    assert (status, folder.is_dir()) == (0, True)
    assert str(folder) in output
    status, output = run("phantom", folder, "--layout", "stu", "-n", "2")
    assert status == 1
    assert f"{folder} exists" in output
    status, output = run("doctor", "stu", folder / "absent")
    assert status == 1
    assert str(folder / "absent") in output
    status, output = run("summary", "--run", name, "--results", tmp_path)
    assert status == 1
    assert f"{folder}/report/summary.csv" in output


def test_a_folder_that_cannot_be_made_is_an_error_and_no_traceback(tmp_path):
    (tmp_path / "file").touch()
    for folder in ("/proc/x", tmp_path / "file" / "x"):
        status, output = run("phantom", folder, "-n", "2")
        assert status == 1
        assert output.startswith("error: ")
        assert str(folder) in output
        assert "Traceback" not in output


def test_fetch_without_names_tells_what_there_is_and_what_it_asks_for(tmp_path):
    (tmp_path / "mobile_sam.pt").write_bytes(b"cut off")
    status, output = run("fetch", "--folder", tmp_path)
    assert status == 0
    for part in ("sam_vit_b", "375 MB", "CC-BY-NC-SA-4.0", "another size", "No commercial use"):
        assert part in output


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["sam_vitb"], "Did you mean 'sam_vit_b'"),
        (["sam_vit_b", "ultrasam"], "--accept ultrasam"),
        (["ultrasam", "--accept", "ultrasma"], "Did you mean 'ultrasam'"),
        (["sam_vit_b"], "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"),
    ],
)
def test_fetch_says_why_it_cannot(tmp_path, monkeypatch, names, says):
    # No test asks the internet: this proxy does not answer.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    status, output = run("fetch", *names, "--folder", tmp_path)
    assert status == 1
    assert says in output
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_told():
    assert run("--version") == (0, f"ultrarefiner {__version__}")


def test_a_run_that_is_not_there_is_named(tmp_path):
    status, output = run("summary", "--run", "ghost", "--results", tmp_path)
    assert status == 1
    assert "ghost" in output


def test_the_summary_prints_each_evaluation_with_the_numbers_of_its_rows(report_study, tmp_path):
    folder = tmp_path / "all" / "report"
    folder.mkdir(parents=True)
    for name in ("summary", "comparisons"):
        shutil.copy(report_study[name], folder / f"{name}.csv")
    result = CliRunner().invoke(app, ["summary", "--run", "all", "--results", str(tmp_path)])
    assert result.exit_code == 0
    parts = re.split("(cross-validation|hold-out|trained elsewhere): mean", result.output)
    printed = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(printed) == ["cross-validation", "hold-out", "trained elsewhere"]
    rows = [
        row
        for row in read_rows(folder / "summary.csv")
        if (row["metric"], row["fold"], row["subgroup"]) == ("dice", "all", "all")
        and row["dataset"] != "macro"
    ]
    signs = {"yes": " †", "unknown": " ‡", "no": ""}
    for evaluation, title in EVALUATIONS.items():
        member, who = ("single", "each its own fold")
        if evaluation != "folds":
            member, who = ("mean", "ensemble: mean")
        wanted = [
            [
                row["dataset"],
                row["method"] + signs[row["seen"]] + " (oracle)" * (row["oracle"] == "true"),
                who,
                row["n"],
                f"{float(row['mean']):.3f}",
            ]
            for row in rows
            if (row["evaluation"], row["member"]) == (evaluation, member)
        ]
        lines = [line.split("│") for line in printed[title].splitlines() if line.startswith("│")]
        shown = [[*(cell.strip() for cell in line[1:5]), line[5].split()[0]] for line in lines]
        assert sorted(shown) == sorted(wanted)
        datasets = [line[0] for line in shown]
        assert datasets == sorted(datasets, key=lambda name: (name == "pooled", name))
    assert "† weights trained on this dataset: not zero-shot." in result.output


def test_info_lists_the_registries():
    status, output = run("info")
    assert status == 0
    for word in ("busi", "transunet", "grabcut", "mask+point", "sam_vit_b", "torch"):
        assert word in output
