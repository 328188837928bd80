"""Guards that an artefact can be traced to the raw images, and that a change since is seen."""

import json
import re
import shutil

import pytest
from small_jobs import CASES, NPZ, RUN, SCORES, prepare, quiet, score, stand_in
from typer.testing import CliRunner

from ultrarefiner import provenance
from ultrarefiner.cli import app
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.io import file_sha256, write_json, write_text
from ultrarefiner.study.explain import ABSENT, AGAIN, CARDLESS, CHANGED, HOLDS, explain


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "one.png").write_bytes(b"raw")
    prepare()
    score()
    return tmp_path


def told(*arguments, status=0):
    result = CliRunner().invoke(app, ["explain", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def states(path):
    return {link.path: link.state for link in explain(path).links if link.state != HOLDS}


def test_a_chain_goes_from_the_raw_images_to_the_file():
    chain = explain(SCORES)
    assert [step.record["rule"] for step in chain.steps.values()] == [
        "score_masks",
        "prepare_dataset",
    ]
    first, last = chain.steps.values()
    assert {link.path: link.files for link in first.inputs} == {str(NPZ): 2, str(CASES): None}
    assert (last.raw.path, last.raw.state) == ("raw", HOLDS)
    assert last.raw.detail == "raw images, 2 images used"
    assert chain.target.sha256 == file_sha256(SCORES)
    assert not chain.changes


def test_the_tree_shows_each_step_with_what_made_it():
    tree = told(SCORES)
    assert file_sha256(SCORES) in tree
    for text in ("score_masks", "bootstrap=200", "prepare_dataset dataset=busi", "raw images"):
        assert text in tree
    assert re.search(rf"→ {NPZ}  [0-9a-f]{{12}}, 2 files", tree)
    assert re.search(r"prepare_dataset dataset=busi  [\d.e-]+ s, \d+ MB\n", tree)
    assert "2 jobs, 4 files and folders; all are as they were" in tree
    assert "\x1b" not in tree


def test_versions_are_told_where_they_differ(monkeypatch):
    real = provenance.package_versions()
    monkeypatch.setattr("ultrarefiner.jobs.package_versions", lambda: real | {"numpy": "99.9"})
    score()
    tree = told(SCORES)
    assert "numpy 99.9" in tree.splitlines()[2]
    assert f"numpy {real['numpy']}" in next(line for line in tree.splitlines() if "prepare" in line)
    assert "scipy" not in tree


def test_one_file_of_a_folder_is_traced_by_its_own_checksum():
    one = NPZ / "busi__1.npz"
    assert explain(one).target.sha256 == file_sha256(one)
    (NPZ / "busi__2.npz").write_bytes(b"?")
    assert explain(one).target.state == HOLDS
    assert explain(NPZ / "busi__2.npz").target.state == CHANGED
    (NPZ / "late.npz").touch()
    with pytest.raises(UltraRefinerError, match=r"late\.npz is not what prepare_dataset wrote"):
        explain(NPZ / "late.npz")


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda: CASES.write_text("case\n"), {str(CASES): CHANGED}),
        (lambda: shutil.rmtree(NPZ), {str(NPZ): ABSENT}),
        (lambda: (NPZ / "busi__1.npz").unlink(), {str(NPZ): CHANGED}),
        (lambda: open("raw/two.png", "wb").close(), {"raw": CHANGED}),
        (lambda: shutil.rmtree("raw"), {"raw": ABSENT}),
        (lambda: SCORES.write_text("better"), {str(SCORES): CHANGED}),
        (lambda: SCORES.unlink(), {str(SCORES): ABSENT}),
    ],
    ids=["edited", "folder gone", "file gone", "raw added", "raw gone", "itself", "itself gone"],
)
def test_what_changed_since_is_marked_and_ends_with_status_1(change, state):
    change()
    assert states(SCORES) == state
    tree = told(SCORES, status=1)
    for path, word in state.items():
        assert re.search(rf"{re.escape(path)}  .*\[{word}|^{re.escape(path)}  \[{word}", tree, re.M)
        assert f"{word}: {path}" in tree
    assert f"{len(state)} changed" in tree


def test_an_input_that_was_made_again_differently_is_not_the_one_that_was_read():
    write_text("raw/one.png", "another")
    with quiet(stand_in("prepare_dataset", {}, {"cases": CASES}, dataset="busi")):
        write_text(CASES, "case\nbusi__3\n")
    assert states(SCORES)[str(CASES)] == AGAIN


def test_what_has_no_card_is_marked_and_is_no_change():
    (RUN / "provenance/busi/prepared/cases.csv.json").unlink()
    write_text("mine.csv", "mine")
    with quiet(stand_in("score_masks", {"cases": CASES, "mine": "mine.csv"}, {"scores": SCORES})):
        pass
    assert states(SCORES) == {str(CASES): CARDLESS}
    assert f"[{CARDLESS}]" in told(SCORES)
    write_text("mine.csv", "yours")
    assert states(SCORES) == {str(CASES): CARDLESS, "mine.csv": CHANGED}


def test_the_run_may_have_moved(study, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(study, elsewhere)
    shutil.rmtree(study / "results")
    assert not explain(elsewhere / SCORES).changes


def test_weights_lead_to_where_they_were_fetched():
    write_text("resources/weights/sam.pth", "weights")
    digest = file_sha256("resources/weights/sam.pth")
    about = {"weights": "sam_vit_b", "sha256": digest, "url": "https://example.org/sam.pth"}
    write_json("resources/weights/sam.pth.json", about)
    tables = {"weights": "resources/weights/sam.pth"}
    with quiet(stand_in("refine_masks", tables, {"scores": SCORES})):
        pass
    for path in (SCORES, "resources/weights/sam.pth"):
        assert "weights sam_vit_b, https://example.org/sam.pth" in told(path)
    write_text("resources/weights/sam.pth", "others")
    for path in (SCORES, "resources/weights/sam.pth"):
        assert CHANGED in told(path, status=1)


def test_jobs_that_are_alike_stand_as_one_and_a_changed_one_on_its_own():
    tables = {}
    for fold in range(6):
        tables[f"fold{fold}"] = RUN / f"scores/fold{fold}.csv"
        one = stand_in("score_masks", {"npz": NPZ}, {"scores": tables[f"fold{fold}"]}, fold=fold)
        one.log = [str(RUN / f"logs/score_masks/fold{fold}.log")]
        with quiet(one):
            write_text(tables[f"fold{fold}"], f"{fold}")
    summary = RUN / "report/summary.csv"
    with quiet(stand_in("summarise_scores", tables, {"summary": summary})):
        write_text(summary, "all")
    tree = told(summary)
    assert tree.count("score_masks fold=0 ") == 1
    assert "and 5 alike: score_masks fold=1|2|3|4|5\n" in tree
    assert tree.count("prepare_dataset") == 1
    whole = told(summary, "--all")
    assert all(f"score_masks fold={fold} " in whole for fold in range(6))
    assert whole.count("prepare_dataset dataset=busi, as above") == 5
    tables["fold3"].write_text("another")
    tree = told(summary, status=1)
    assert "and 4 alike: score_masks fold=1|2|4|5\n" in tree
    assert re.search(rf"→ {tables['fold3']}  \w+  \[{CHANGED}\]", tree)


def test_the_chain_comes_as_data_too():
    data = json.loads(told(SCORES, "--json"))
    assert data["holds"] is True
    assert data["artefact"]["sha256"] == file_sha256(SCORES)
    step = data["steps"][data["artefact"]["step"]]
    assert step["params"] == {"bootstrap": 200}
    below = {link["step"] for link in step["inputs"]}
    assert [data["steps"][key]["raw"]["path"] for key in below] == ["raw"]
    CASES.unlink()
    assert json.loads(told(SCORES, "--json", status=1))["holds"] is False


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nothing.csv", "nothing.csv is not there"),
        ("raw/one.png", "is not an artefact of a run"),
        (RUN / "logs/score_masks/all.log", "has no card"),
        (NPZ.parent, "has no card"),
        (RUN, "is not an artefact of a run"),
    ],
)
def test_what_is_no_artefact_is_refused_with_the_reason(path, says):
    assert says in told(path, status=1).replace("\n", " ")
