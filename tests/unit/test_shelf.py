"""The shelf of embeddings keeps its limit by least recent use and never gives a wrong embedding."""

import logging
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from ultrarefiner.errors import OutputError, UltraRefinerError
from ultrarefiner.refine.embeddings import (
    IndexRow,
    SamEmbedding,
    embedding_key,
    image_sha256,
    read_index,
    write_index,
)
from ultrarefiner.refine.shelf import Shelf

WEIGHTS = "ab" * 32
HOUR = 3600
FILE = 2 * 256 * 16 * 16 + 1024  # what the shelf reckons for one of these embeddings


def embedding(number, weights=WEIGHTS):
    features = np.random.default_rng(number).normal(size=(256, 16, 16)).astype(np.float32)
    recipe = {"precision": "float32"}
    image = f"{number:064x}"
    return SamEmbedding(features, (90, 120), (192, 256), image, weights, "sam", recipe)


def key(number, weights=WEIGHTS):
    return embedding_key(f"{number:064x}", weights, "sam", {"precision": "float32"})


def fill(shelf, numbers, hours_ago=()):
    """Store embeddings; those with an age were used so long ago."""
    for number in numbers:
        assert shelf.put(embedding(number))
    for number, hours in zip(numbers, hours_ago, strict=False):
        used = time.time() - hours * HOUR
        os.utime(shelf.path(key(number), WEIGHTS), (used, used))


def there(shelf, numbers):
    return [number for number in numbers if shelf.path(key(number), WEIGHTS).exists()]


def test_what_is_put_comes_back_rounded_to_float16_and_is_one_file(tmp_path):
    shelf = Shelf(tmp_path / "new" / "shelf", 10 * FILE)
    assert shelf.get(key(1), WEIGHTS) is None
    assert shelf.put(embedding(1))
    found = shelf.get(key(1), WEIGHTS)
    assert found.features.dtype == np.float32
    assert np.array_equal(found.features, embedding(1).rounded().features)
    assert not np.array_equal(found.features, embedding(1).features)
    assert (found.image_size, found.input_size) == ((90, 120), (192, 256))
    path = tmp_path / "new" / "shelf" / WEIGHTS[:16] / key(1)[:2] / f"{key(1)}.safetensors"
    assert [p for p in (tmp_path / "new").rglob("*") if p.is_file()] == [path]
    assert path.stat().st_size <= FILE


def test_the_longest_unused_files_go_first(tmp_path):
    fill(Shelf(tmp_path, 100 * FILE), range(10), hours_ago=[5, 9, 3, 8, 1, 7, 2, 6, 4, 10])
    shelf = Shelf(tmp_path, 10 * FILE)
    fill(shelf, [20])
    # One had to go; one more makes the room below 90 % that saves scans.
    assert there(shelf, range(21)) == [0, 2, 3, 4, 5, 6, 7, 8, 20]


def test_reading_counts_as_use(tmp_path):
    fill(Shelf(tmp_path, 100 * FILE), range(4), hours_ago=[4, 3, 2, 1])
    shelf = Shelf(tmp_path, 4 * FILE)
    assert shelf.get(key(0), WEIGHTS) is not None
    fill(shelf, [20])
    assert there(shelf, range(21)) == [0, 3, 20]


def test_files_in_use_are_never_removed_and_one_warning_says_what_is_missing(tmp_path, caplog):
    fill(Shelf(tmp_path, 100 * FILE), range(2), hours_ago=[2, 1])
    shelf = Shelf(tmp_path, 3 * FILE, images=5)
    stored = [shelf.put(embedding(number)) for number in range(10, 15)]
    assert stored == [True, True, True, False, False]
    assert there(shelf, range(20)) == [10, 11, 12]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "embeddings.limit_gb" in warnings[0]
    assert f"needs {5 * FILE / 1e9:.3g} GB" in warnings[0]


def test_an_embedding_larger_than_the_limit_is_not_stored(tmp_path):
    fill(Shelf(tmp_path, 100 * FILE), [1], hours_ago=[1])
    assert not Shelf(tmp_path, FILE // 2).put(embedding(2))
    assert there(Shelf(tmp_path, FILE), [2]) == []


def test_other_files_in_the_folder_are_neither_counted_nor_removed(tmp_path):
    others = [
        tmp_path / "model.safetensors",
        tmp_path / WEIGHTS[:16] / key(1)[:2] / "mine.safetensors",
        tmp_path / WEIGHTS[:16] / "notes" / f"{key(1)}.safetensors",
        tmp_path / "weights" / "00" / f"{key(1)}.safetensors",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(5 * FILE))
        os.utime(path, (0, 0))
    shelf = Shelf(tmp_path, 2 * FILE)
    fill(shelf, [1, 2])
    assert not shelf.put(embedding(3))
    assert all(path.exists() for path in others)


def test_what_a_killed_job_left_half_written_is_removed_in_its_turn(tmp_path):
    shelf = Shelf(tmp_path, 4 * FILE)
    fill(shelf, [1])
    left = shelf.path(key(1), WEIGHTS).with_name(f".partial-host-1-ab-{key(9)}.safetensors")
    left.write_bytes(bytes(2 * FILE))
    os.utime(left, (0, 0))
    fill(Shelf(tmp_path, 4 * FILE), [2, 3, 4])
    assert not left.exists()


@pytest.mark.parametrize("how", ["truncated", "changed", "empty", "text"])
def test_a_damaged_file_is_logged_and_counts_as_absent(tmp_path, caplog, how):
    shelf = Shelf(tmp_path, 10 * FILE)
    fill(shelf, [1])
    path = shelf.path(key(1), WEIGHTS)
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(
        {
            "truncated": path.read_bytes()[:-100],
            "changed": bytes(data),
            "empty": b"",
            "text": b"<html>not found</html>",
        }[how]
    )
    assert shelf.get(key(1), WEIGHTS) is None
    assert str(path) in caplog.text
    fill(shelf, [1])
    assert shelf.get(key(1), WEIGHTS) is not None


def test_no_flipped_bit_of_a_header_gives_another_embedding_or_another_error(tmp_path, caplog):
    shelf = Shelf(tmp_path, 10 * FILE)
    whole = replace(embedding(1), features=np.ones((2, 2, 2), np.float32))
    shelf.put(whole)
    path = shelf.path(key(1), WEIGHTS)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for position in range(header):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            found = shelf.get(key(1), WEIGHTS)
            # A space for a space, or the like, may change nothing.
            assert found is None or (found.image_size, found.key) == (whole.image_size, whole.key)
    assert "counts as absent" in caplog.text


def test_a_file_under_another_ones_name_counts_as_absent(tmp_path, caplog):
    shelf = Shelf(tmp_path, 10 * FILE)
    fill(shelf, [1, 2])
    shelf.path(key(1), WEIGHTS).write_bytes(shelf.path(key(2), WEIGHTS).read_bytes())
    assert shelf.get(key(1), WEIGHTS) is None
    assert "another embedding than its name says" in caplog.text
    assert shelf.get(key(2), WEIGHTS).key == key(2)


def test_room_is_not_made_by_removing_what_another_job_is_writing(tmp_path):
    shelf = Shelf(tmp_path, 4 * FILE)
    fill(shelf, [1])
    written = shelf.path(key(1), WEIGHTS).with_name(f".partial-host-1-ab-{key(9)}.safetensors")
    written.write_bytes(bytes(2 * FILE))
    time.sleep(0.02)
    fill(Shelf(tmp_path, 4 * FILE), [2])
    Shelf(tmp_path, 4 * FILE).put(embedding(3))
    assert written.exists()


def test_a_folder_where_a_file_belongs_is_named(tmp_path):
    shelf = Shelf(tmp_path, 10 * FILE)
    shelf.path(key(1), WEIGHTS).mkdir(parents=True)
    with pytest.raises(OutputError, match=r"shelf of embeddings .*directory"):
        shelf.put(embedding(1))


def test_a_shelf_that_vanishes_is_made_again(tmp_path):
    shelf = Shelf(tmp_path / "shelf", 10 * FILE)
    fill(shelf, [1, 2])
    for path in sorted((tmp_path / "shelf").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "shelf").rmdir()
    assert shelf.get(key(1), WEIGHTS) is None
    fill(shelf, [1])
    assert shelf.get(key(1), WEIGHTS) is not None


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"shelf of embeddings .*set embeddings\.folder"):
        Shelf(tmp_path / "file" / "shelf", FILE)


def test_several_processes_share_a_shelf(tmp_path, checkout):
    program = (
        "import sys\n"
        "from tests.unit.test_shelf import *\n"
        "first, shelf = int(sys.argv[1]), Shelf(sys.argv[2], 30 * FILE)\n"
        "for number in range(first, first + 60):\n"
        "    shelf.put(embedding(number % 90))\n"
        "    found = shelf.get(key(number % 90), WEIGHTS)\n"
        "    assert found is None or found.key == key(number % 90)\n"
    )
    fill(Shelf(tmp_path, 100 * FILE), range(100, 120), hours_ago=range(20, 0, -1))
    jobs = [
        subprocess.Popen([sys.executable, "-c", program, str(first), str(tmp_path)], cwd=checkout)
        for first in (0, 45)
    ]
    assert [job.wait(timeout=60) for job in jobs] == [0, 0]
    files = list(tmp_path.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) <= 1.1 * 30 * FILE
    assert not [path for path in files if path.name.startswith(".partial-")]


def test_scans_are_rare(tmp_path, monkeypatch):
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scandir(path))
    fill(Shelf(tmp_path, 1000 * FILE), range(100), hours_ago=[1] * 100)
    assert scanned.count(tmp_path) <= 3
    scanned.clear()
    shelf = Shelf(tmp_path, 100 * FILE)
    fill(shelf, range(100, 180))
    assert scanned.count(tmp_path) <= 80 / 4 and len(there(shelf, range(100, 180))) == 80


def test_keys_tell_apart_whatever_changes_an_embedding():
    image = np.zeros((4, 6, 3), np.uint8)
    base = {"pixels_sha256": image_sha256(image), "weights_sha256": WEIGHTS, "family": "sam"}
    recipe = {"precision": "float32"}
    keys = [
        embedding_key(**base, recipe=recipe),
        embedding_key(**base, recipe={"precision": "bfloat16"}),
        embedding_key(**{**base, "family": "other"}, recipe=recipe),
        embedding_key(**{**base, "weights_sha256": "cd" * 32}, recipe=recipe),
        embedding_key(**{**base, "pixels_sha256": image_sha256(image + 1)}, recipe=recipe),
        embedding_key(
            **{**base, "pixels_sha256": image_sha256(image.transpose(1, 0, 2))}, recipe=recipe
        ),
    ]
    assert len(set(keys)) == len(keys) and all(len(k) == 64 for k in keys)
    assert keys[0] == embedding_key(**base, recipe=dict(recipe))


def test_an_index_comes_back_as_written_and_anything_else_is_refused(tmp_path):
    rows = {"b__1": IndexRow(key(1), (-3, 0, 61, 64)), "a__2": IndexRow(key(2), None)}
    path = tmp_path / "fold0.csv"
    write_index(path, rows)
    assert read_index(path) == rows
    assert path.read_text() == (
        f"case,key,x0,y0,x1,y1\nb__1,{key(1)},-3,0,61,64\na__2,{key(2)},,,,\n"
    )
    path.write_text("case,score\nb__1,0.5\n")
    with pytest.raises(UltraRefinerError, match=r"fold0\.csv is not an index of embeddings"):
        read_index(path)
    with pytest.raises(
        UltraRefinerError, match=r"absent\.csv is not an index .*embed_images again"
    ):
        read_index(tmp_path / "absent.csv")
