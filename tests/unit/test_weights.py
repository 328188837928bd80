"""Guards: a weights name leads to one file, and an absent file to its address and its place."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from ultrarefiner.errors import WeightsError
from ultrarefiner.models.weights import WEIGHTS, locate_weights, weights_name

SLUG = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


def test_every_row_is_complete():
    assert {"r50_vit_b_16", "sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b"} <= set(WEIGHTS)
    for name, row in WEIGHTS.items():
        assert SLUG.fullmatch(name)
        assert row.url.startswith("https://")
        assert row.url.replace("%2B", "+").endswith(row.file)
        assert row.family in {"transunet", "sam"}
        assert all((row.licence, row.terms, row.citation, row.trained_on))
        assert row.bytes is None or row.bytes > 1e8
    files = [row.file for row in WEIGHTS.values()]
    assert len(files) == len(set(files))


def test_a_name_leads_into_the_weights_folder(tmp_path):
    (tmp_path / "medsam_vit_b.pth").write_bytes(b"weights")
    assert locate_weights("medsam_vit_b", tmp_path) == tmp_path / "medsam_vit_b.pth"


def test_a_file_of_another_size_than_the_published_one_is_reported(tmp_path, caplog):
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"cut off")
    with caplog.at_level(logging.WARNING):
        locate_weights("sam_vit_b", tmp_path)
    assert "7 bytes, the published file 375042383" in caplog.text


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_an_absent_name_gives_address_and_target(name, tmp_path):
    with pytest.raises(WeightsError) as caught:
        locate_weights(name, tmp_path / "weights")
    text = str(caught.value)
    assert WEIGHTS[name].url in text
    assert str(tmp_path / "weights" / WEIGHTS[name].file) in text


def test_the_default_folder_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as caught:
        locate_weights("sam_vit_h")
    target = tmp_path / "resources" / "weights" / "sam_vit_h_4b8939.pth"
    assert f"as {target};" in str(caught.value)


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
    assert WEIGHTS["medsam_vit_b"].url in str(caught.value)


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
