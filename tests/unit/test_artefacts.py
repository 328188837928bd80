"""Guards that no job reads what is not what was written, and that a rerun makes it good."""

import hashlib
import json
import shutil
import subprocess
import threading

import pytest
from small_jobs import CASES, NPZ, RUN, SCORES, fails, prepare, quiet, score, stand_in

from ultrarefiner import damage
from ultrarefiner.artefacts import (
    card_path,
    digest_of,
    find_card,
    read_card,
    run_folder,
    unfinished_outputs,
)
from ultrarefiner.damage import check_inputs
from ultrarefiner.errors import OutputError, UltraRefinerError
from ultrarefiner.io import write_text

CARD = RUN / "provenance/busi/prepared/npz.json"


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(damage, "_SETTLES_S", 0.01)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "one.png").write_bytes(b"raw")
    prepare()
    return tmp_path


def spoil(how, name="busi__2.npz"):
    path = NPZ / name
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_the_card_of_a_folder_lists_its_files_as_sha256sum_does(study):
    card = json.loads(CARD.read_text())
    listing = CARD.with_suffix(".sha256").read_bytes()
    assert card["artefact"] == str(NPZ)
    assert (card["files"], card["bytes"]) == (2, 6000)
    assert card["sha256"] == hashlib.sha256(listing).hexdigest() == digest_of(NPZ).sha256
    assert listing.splitlines()[0].endswith(b"  busi__1.npz")
    assert card["job"]["rule"] == "prepare_dataset"
    if shutil.which("sha256sum"):
        check = ["sha256sum", "--check", "--quiet", study / CARD.with_suffix(".sha256")]
        assert subprocess.run(check, cwd=NPZ).returncode == 0


@pytest.mark.parametrize(
    ("how", "says"), [("cut short", "changed"), ("one bit", "changed"), ("missing", "missing")]
)
def test_a_damaged_file_of_a_folder_is_named_moved_aside_and_made_anew(how, says, capsys):
    score()
    before = SCORES.read_bytes()
    spoil(how)
    assert fails(score)
    said = capsys.readouterr().err
    assert f"{NPZ} is not what prepare_dataset wrote: busi__2.npz ({says})" in said
    assert "busi__1" not in said
    assert f"moved to {NPZ}.damaged" in said
    assert "Run the same command again" in said
    assert "Traceback" not in said
    assert not NPZ.exists() and not CARD.exists()
    assert (NPZ.with_name("npz.damaged") / "busi__1.npz").is_file()
    prepare()
    score()
    assert SCORES.read_bytes() == before


def test_a_damaged_file_is_moved_aside_alone(capsys):
    CASES.write_text("case\nbusi__1\n")
    assert fails(score)
    assert f"{CASES} is not what prepare_dataset wrote: cases.csv (changed)" in (
        capsys.readouterr().err
    )
    assert not CASES.exists()
    assert CASES.with_name("cases.csv.damaged").read_text() == "case\nbusi__1\n"
    assert NPZ.is_dir()


def test_all_damage_is_told_at_once(capsys):
    spoil("missing")
    CASES.write_text("")
    assert fails(score)
    said = capsys.readouterr().err
    assert f"{CASES} is not" in said and f"{NPZ} is not" in said


def test_an_older_damaged_copy_gives_way():
    for text in ("first", "second"):
        CASES.write_text(text)
        assert fails(score)
        prepare()
    assert CASES.with_name("cases.csv.damaged").read_text() == "second"
    for _ in range(2):
        spoil("missing")
        assert fails(score)
        prepare()
    names = {path.name for path in NPZ.parent.iterdir()}
    assert names == {"cases.csv", "cases.csv.damaged", "npz", "npz.damaged"}


def test_files_that_nobody_wrote_and_files_without_a_card_are_no_damage():
    known = digest_of(NPZ)
    (NPZ / "stray.npz").touch()
    (NPZ / ".snakemake_timestamp").touch()
    write_text("mine.csv", "mine")
    found = check_inputs(RUN, [str(NPZ), "mine.csv"])
    assert found[str(NPZ)] == known, "a stray file changes what the job is said to have read"
    assert found["mine.csv"] == digest_of("mine.csv")
    score()


def test_an_input_that_is_part_of_a_folder_is_compared_with_its_line():
    one = NPZ / "busi__1.npz"
    spoil("one bit")
    assert check_inputs(RUN, [str(one)]) == {str(one): digest_of(one)}
    with pytest.raises(UltraRefinerError, match=r"npz is not .*: busi__2\.npz \(changed\)"):
        check_inputs(RUN, [str(NPZ / "busi__2.npz")])
    assert not NPZ.exists(), "the rule that makes it makes the whole folder"


def test_two_jobs_that_find_the_same_damage_both_say_so(monkeypatch):
    spoil("one bit")
    meet = threading.Barrier(2)
    monkeypatch.setattr("time.sleep", lambda _: meet.wait())
    move, said = damage._move, []
    monkeypatch.setattr(damage, "_move", lambda *paths: (meet.wait(), move(*paths)))

    def look():
        try:
            check_inputs(RUN, [str(NPZ)])
        except UltraRefinerError as error:
            said.append(str(error))

    jobs = [threading.Thread(target=look) for _ in range(2)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert len(said) == 2
    assert all("busi__2.npz (changed)" in text for text in said)
    assert [path.name for path in NPZ.parent.iterdir() if path.is_dir()] == ["npz.damaged"]
    assert len(list(NPZ.with_name("npz.damaged").iterdir())) == 2


def test_a_job_that_comes_after_the_move_is_told_where_it_went(capsys):
    spoil("one bit")
    assert fails(score)
    capsys.readouterr()
    assert fails(score)
    assert f"{NPZ} is not there: it was found damaged and moved to {NPZ}.damaged" in (
        capsys.readouterr().err
    )


def test_what_a_slow_file_system_shows_late_is_no_damage(monkeypatch):
    hidden = NPZ.with_name("late")
    (NPZ / "busi__2.npz").rename(hidden)
    monkeypatch.setattr("time.sleep", lambda _: hidden.rename(NPZ / "busi__2.npz"))
    assert check_inputs(RUN, [str(NPZ)])[str(NPZ)].files == 2


def test_a_card_and_a_listing_of_two_attempts_count_as_no_card():
    CARD.with_suffix(".sha256").write_text(f"{'0' * 64}  busi__1.npz\n")
    assert read_card(CARD) is None
    score()


def test_a_card_that_is_none_is_named():
    CARD.write_text("[]")
    with pytest.raises(UltraRefinerError, match=r"npz\.json is not the card"):
        score_inputs = [str(NPZ)]
        check_inputs(RUN, score_inputs)


def test_what_cannot_be_moved_is_named_with_the_cure(monkeypatch):
    spoil("one bit")

    def refuse(*paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(damage, "_move", refuse)
    with pytest.raises(OutputError, match=r"cannot be moved aside: Operation.* Delete it"):
        check_inputs(RUN, [str(NPZ)])


@pytest.mark.parametrize("linked", [True, False])
def test_a_training_does_not_hand_out_the_same_damaged_bytes_again(linked):
    model = RUN / "busi/models/unet/fold0/model.safetensors"
    with quiet(stand_in("train_coarse", {"cases": CASES}, {"model": model})):
        write_text(model, "weights")
        saved = model.parent / "resume/best-00001.safetensors"
        write_text(saved, "weights")
        if linked:
            saved.unlink()
            saved.hardlink_to(model)
    with open(model, "r+b") as handle:
        handle.write(b"W")
    with pytest.raises(UltraRefinerError, match="safetensors is not what train_coarse wrote"):
        check_inputs(RUN, [str(model)])
    assert (model.parent / "resume").is_dir() != linked
    assert (model.parent / "resume.damaged").is_dir() == linked


@pytest.mark.parametrize(
    ("log", "rule", "run"),
    [
        ("results/main/logs/train_coarse/busi/x.log", "train_coarse", "results/main"),
        ("/data/logs/results/logs/logs/check_dataset/logs/logs.log", "check_dataset", None),
        ("results/main/logs/train_coarse/busi/x.log", "base_train_coarse", "results/main"),
        ("somewhere/job.log", "train_coarse", "none"),
    ],
)
def test_the_run_of_a_job_is_told_by_its_log(log, rule, run):
    wanted = {None: "/data/logs/results/logs", "none": None}.get(run, run)
    found = run_folder(log, rule)
    assert (None if found is None else str(found)) == wanted


def test_a_card_lies_where_its_artefact_does(tmp_path):
    assert card_path(RUN, RUN / "a/b.csv") == RUN / "provenance/a/b.csv.json"
    assert card_path(RUN, "resources/weights/x.pth") is None
    assert find_card(RUN, "resources/weights/x.pth") is None
    assert find_card(RUN, NPZ / "busi__1.npz").artefact == str(NPZ)


def test_what_a_job_began_and_did_not_finish_is_known_until_it_succeeds():
    score()
    assert unfinished_outputs(RUN) == []
    spoil("missing")
    SCORES.unlink()  # as Snakemake does before it makes it again
    assert fails(score)
    assert unfinished_outputs(RUN) == [str(SCORES)]
    prepare()
    assert unfinished_outputs(RUN) == [str(SCORES)], "another job has succeeded"
    score()
    SCORES.unlink()
    assert unfinished_outputs(RUN) == [], "somebody else has removed it"
