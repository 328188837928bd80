"""Guards: a weights name leads to one file, and an absent or wrong file to what to do about it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from ultrarefiner.errors import WeightsError
from ultrarefiner.models.sam import SAM_FAMILIES
from ultrarefiner.models.weights import (
    FOLDER,
    WEIGHTS,
    absent_files,
    locate_weights,
    planned_file,
    registered,
    to_be_fetched,
    unaccepted_terms,
    weights_name,
)
from ultrarefiner.models.weights_record import checked_sha256, checksum_problem
from ultrarefiner.study import load_study

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "weights.md"
SLUG = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


def test_every_row_is_complete():
    assert {"r50_vit_b_16", "sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b"} <= set(WEIGHTS)
    for name, row in WEIGHTS.items():
        assert SLUG.fullmatch(name)
        assert row.urls
        for url in row.urls:
            assert url.startswith("https://")
            assert unquote(url).endswith(f"/{row.file}")
        assert row.family in {"transunet", "resnet", *SAM_FAMILIES}
        assert all((row.licence, row.terms, row.citation, row.trained_on))
        assert row.bytes > 1e7
        assert all(SLUG.fullmatch(dataset) for dataset in row.seen)
        digits = {"sha256": 64, "md5": 32}
        if row.checksum is not None:
            algorithm, _, digest = row.checksum.partition(":")
            assert re.fullmatch(rf"[0-9a-f]{{{digits[algorithm]}}}", digest)
    files = [row.file for row in WEIGHTS.values()]
    assert len(files) == len(set(files))


def test_what_forbids_a_use_has_to_be_accepted():
    for row in WEIGHTS.values():
        assert row.accept == ("NC" in row.licence or "For research" in row.terms)
    assert WEIGHTS["ultrasam"].accept
    assert WEIGHTS["medsam2"].accept
    assert {"busi", "busbra", "stu"} <= set(WEIGHTS["ultrasam"].seen)


def test_the_page_tells_of_every_row():
    lines = {
        cells[1].strip("` "): line
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `") and len(cells := line.split("|")) > 5
    }
    assert set(lines) == set(WEIGHTS)
    for name, row in WEIGHTS.items():
        for part in (row.file, row.size, row.licence, row.urls[0]):
            assert part in lines[name], f"{name}: {part}"
        assert ("first use" in lines[name]) == (row.checksum is None)
        assert ("accept" in lines[name]) == row.accept
        assert row.trained_on in PAGE.read_text(), name


def test_the_study_on_the_page_is_one():
    (text,) = re.findall(r"```yaml\n(run:.*?)```", PAGE.read_text(), re.S)
    study = load_study(yaml.safe_load(text))
    assert [m for m in study.methods if m.startswith("ultrasam-")] == [
        f"ultrasam-{prompt}" for prompt in ("box", "point", "both", "box_crop", "oracle_box")
    ]
    fetched = {registered(row.weights) for row in study.config.refiners.values()}
    command = re.search(r"ultrarefiner fetch (r50.*) --accept ultrasam", PAGE.read_text())
    assert set(command[1].split()) == fetched | {"r50_vit_b_16"}


def size_of(path, name):
    """Make a file of the published size that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, WEIGHTS[name].bytes)
    return path


def test_a_name_leads_into_the_weights_folder(tmp_path):
    path = size_of(tmp_path / "medsam_vit_b.pth", "medsam_vit_b")
    assert locate_weights("medsam_vit_b", tmp_path) == path


def test_a_file_of_another_size_than_the_published_one_is_refused(tmp_path):
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match=r"7 bytes, the published file 375042383.*Delete it"):
        locate_weights("sam_vit_b", tmp_path)


def test_where_nobody_vouches_for_the_bytes_the_size_has_to_be_right(tmp_path):
    (tmp_path / "UltraSam.pth").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match=r"7 bytes, the published file 381156023.*own"):
        locate_weights("ultrasam", tmp_path)


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_an_absent_name_gives_address_target_and_command(name, tmp_path):
    with pytest.raises(WeightsError) as caught:
        locate_weights(name, tmp_path / "weights")
    text, row = str(caught.value), WEIGHTS[name]
    for part in (*row.urls, row.size, row.licence, str(tmp_path / "weights" / row.file)):
        assert part in text
    accept = f" --accept {name}" if row.accept else ""
    assert f"`ultrarefiner fetch {name}{accept} --folder {tmp_path / 'weights'}`" in text


def test_the_default_folder_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as caught:
        locate_weights("sam_vit_h")
    target = tmp_path / "resources" / "weights" / "sam_vit_h_4b8939.pth"
    assert f"as {target};" in str(caught.value)
    assert "`ultrarefiner fetch sam_vit_h` where" in str(caught.value)


def test_only_files_of_the_table_in_their_place_are_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = f"{FOLDER}/sam_vit_b_01ec64.pth"
    assert registered("sam_vit_b") == registered(place) == registered(f"./{place}") == "sam_vit_b"
    assert planned_file("sam_vit_b") == planned_file(place) == place
    assert to_be_fetched("sam_vit_b")
    assert to_be_fetched(place)
    for own in ("sam_vit_b_01ec64.pth", f"{FOLDER}/own.pth", "elsewhere/sam_vit_b_01ec64.pth"):
        assert registered(own) is None
        assert not to_be_fetched(own)
        assert planned_file(own) is None
    assert "sam_vit_b_01ec64.pth" in absent_files()
    size_of(Path(place), "sam_vit_b")
    assert not to_be_fetched("sam_vit_b")
    assert planned_file("sam_vit_b") == place
    assert "sam_vit_b_01ec64.pth" not in absent_files()
    Path("own.pth").touch()
    assert planned_file("own.pth") == "own.pth"
    assert planned_file(None) is None


@pytest.mark.parametrize("weights", ["ultrasam", f"{FOLDER}/UltraSam.pth", "my/UltraSam.pth"])
def test_restricted_weights_are_recognised_by_name_and_by_file(weights):
    assert unaccepted_terms(weights, ["ultrasam"]) is None
    terms = unaccepted_terms(weights, ["sam_vit_b"])
    assert "No commercial use" in terms
    assert "accept: [ultrasam]" in terms
    assert unaccepted_terms("sam_vit_b", []) is unaccepted_terms("own.pth", []) is None


def test_a_file_put_there_by_hand_is_recorded_and_then_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(FOLDER) / "UltraSam.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    assert checked_sha256(path) == hashlib.sha256(b"first").hexdigest()
    record = json.loads(Path(f"{path}.json").read_text())
    assert (record["sha256"], record["url"]) == (hashlib.sha256(b"first").hexdigest(), None)
    path.write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"UltraSam.pth has changed.*delete .*UltraSam.pth.json"):
        checked_sha256(path)
    Path(f"{path}.json").unlink()
    assert checked_sha256(path) == hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize("name", ["mobile_sam", "medsam_vit_b"])
def test_a_wrong_file_under_a_published_name_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = size_of(Path(FOLDER) / WEIGHTS[name].file, name)
    with pytest.raises(
        WeightsError, match=rf"not the published file.*{WEIGHTS[name].checksum[7:]}"
    ):
        checked_sha256(path)
    assert not Path(f"{path}.json").exists()


def test_a_file_of_the_users_own_is_hashed_and_nothing_else(tmp_path):
    path = tmp_path / "medsam_vit_b.pth"
    path.write_bytes(b"my finetuned one")
    assert checked_sha256(path) == hashlib.sha256(b"my finetuned one").hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "own.pth").write_bytes(b"weights")
    (tmp_path / "own.pth.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"Delete .*own\.pth\.json"):
        checked_sha256(tmp_path / "own.pth")


def test_checksums_of_both_kinds_are_compared(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert checksum_problem(path, "md5:900150983cd24fb0d6963f7d28e17f72") is None
    assert "900150983cd24fb0" in checksum_problem(path, f"md5:{32 * '0'}")
    assert checksum_problem(path, f"sha256:{hashlib.sha256(b'abc').hexdigest()}") is None


def test_a_misspelt_name_gets_the_nearest(tmp_path):
    with pytest.raises(WeightsError, match="Did you mean 'medsam_vit_b'"):
        locate_weights("medsam_vitb", tmp_path)


def test_a_path_is_itself(tmp_path):
    path = tmp_path / "own weights.pth"
    path.write_bytes(b"weights")
    assert locate_weights(path) == path
    assert locate_weights(str(path)) == path


def test_an_existing_file_without_suffix_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").write_bytes(b"weights")
    assert locate_weights("checkpoint") == Path("checkpoint")


def test_an_absent_path_lists_the_known_names(tmp_path):
    with pytest.raises(WeightsError, match=r"own\.pth: no such weights file.*sam_vit_b"):
        locate_weights(tmp_path / "own.pth")


def test_an_absent_path_to_a_published_file_gives_its_address(tmp_path):
    with pytest.raises(WeightsError) as caught:
        locate_weights(tmp_path / "medsam_vit_b.pth")
    assert WEIGHTS["medsam_vit_b"].urls[0] in str(caught.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="is a folder"):
        locate_weights(tmp_path)


@pytest.mark.parametrize(
    "path", ["own.pth", "Own Weights (2).PTH", "a/b/Ünï.pth", "日本.pth", ".hidden", "a-b.c-d.pt"]
)
def test_the_name_of_a_path_can_name_a_folder(path):
    name = weights_name(path)
    assert SLUG.fullmatch(name)
    assert name == weights_name(path) == weights_name(Path(path))


def test_names_stay_and_paths_never_share_one():
    for name in WEIGHTS:
        assert weights_name(name) == name
    paths = ["a/model.pth", "b/model.pth", "model.pth", "model.pt", "sam_vit_b.pth", "sam_vit_b/"]
    names = [weights_name(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert not set(names) & set(WEIGHTS)
