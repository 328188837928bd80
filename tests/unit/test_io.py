"""Guards that what stands under a final name is whole, whatever happens while it is written."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from ultrarefiner.errors import OutputError, UltraRefinerError
from ultrarefiner.images import read_mask, read_probability, read_rgb, write_mask, write_png
from ultrarefiner.io import (
    atomic_directory,
    atomic_path,
    item_seed,
    json_sha256,
    read_json,
    read_rows,
    write_json,
    write_rows,
    write_text,
)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    with atomic_directory(tmp_path / "masks") as folder:
        (folder / "a").touch()
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "masks") as folder:
        (folder / "b").touch()
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a"]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    for name in ("a", "b"):
        with atomic_directory(tmp_path / "masks") as folder:
            (folder / name).touch()
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["b"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_disk_is_named_with_the_cure(tmp_path, number):
    with pytest.raises(OutputError, match=r"a\.txt.*Free space"), atomic_path(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


def test_another_error_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        (tmp_path / "absent").read_text()


def test_a_real_write_limit_gives_the_same_error(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from ultrarefiner.io import write_text\n"
        "write_text(sys.argv[1], 'x' * 100000)\n"
    )
    target = tmp_path / "big.txt"
    result = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True
    )
    assert "OutputError" in result.stderr
    assert not list(tmp_path.iterdir())


def test_kill_9_leaves_no_final_file_and_the_next_run_cleans_up(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from ultrarefiner.io import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "a.txt"
    result = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not target.exists()
    write_text(target, "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"hd95": float("inf")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UltraRefinerError, match=r"b\.json"):
        read_json(tmp_path / "b.json")


def test_rows_round_trip_and_refuse_unknown_columns(tmp_path):
    write_rows(tmp_path / "a.csv", ["case", "note"], [{"case": "a", "note": 'with, "quotes"'}])
    assert read_rows(tmp_path / "a.csv") == [{"case": "a", "note": 'with, "quotes"'}]
    with pytest.raises(ValueError, match="oops"):
        write_rows(tmp_path / "a.csv", ["case"], [{"case": "a", "oops": 1}])


def test_seeds_and_hashes_do_not_depend_on_the_process():
    code = (
        "from ultrarefiner.io import *; print(item_seed(1, 'a', 2), json_sha256({'b': 1, 'a': 2}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert outputs == {f"{item_seed(1, 'a', 2)} {json_sha256({'a': 2, 'b': 1})}\n"}
    assert item_seed(1, "a") != item_seed("1a")
    assert 0 <= item_seed("x") < 2**63


def test_images_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "i.png", image)
    assert np.array_equal(read_rgb(tmp_path / "i.png"), image)
    mask = rng.random((5, 7)) > 0.5
    write_mask(tmp_path / "m.png", mask)
    assert np.array_equal(read_mask(tmp_path / "m.png"), mask)
    assert set(np.unique(read_probability(tmp_path / "m.png"))) == {0.0, 1.0}
    (tmp_path / "m.png").write_bytes((tmp_path / "m.png").read_bytes()[:30])
    with pytest.raises(UltraRefinerError, match=r"m\.png"):
        read_mask(tmp_path / "m.png")
