"""Every case of a prompts file becomes a mask of its image's size, or no folder appears at all."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.sam_fixture import write_tiny_sam
from ultrarefiner.config import PromptConfig
from ultrarefiner.errors import ConfigError, PromptError, UltraRefinerError
from ultrarefiner.images import read_gray, read_rgb, write_mask, write_png, write_probability
from ultrarefiner.io import write_json, write_rows
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import prompt_from_mask
from ultrarefiner.prompts.records import make_prompts
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.jobs import embed_images, refine_masks
from ultrarefiner.refine.seeing import progress

SIZES = {"demo__a": (90, 120), "demo__b": (121, 80), "demo__empty": (60, 64)}
CROP = {"expand": 0.25, "min_size": 16}


def lesion(case):
    height, width = SIZES[case]
    if case == "demo__empty":
        return np.zeros((height, width), bool)
    rows, columns = np.mgrid[:height, :width]
    return np.hypot((rows / height - 0.5) / 0.25, (columns / width - 0.45) / 0.2) <= 1


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Write images, masks, splits and the embeddings of a tiny SAM; return the folder."""
    folder = tmp_path_factory.mktemp("study")
    for case, size in SIZES.items():
        noise = np.random.default_rng(len(case)).normal(0, 15, (*size, 3))
        gray = np.where(lesion(case), 60, 150)[..., None] + noise
        write_png(folder / f"images/{case}.png", np.clip(gray, 0, 255).astype(np.uint8))
        write_mask(folder / f"masks/{case}.png", lesion(case))
        write_probability(folder / f"soft/{case}.png", lesion(case) * 0.9)
    write_png(folder / "images/stale.png", np.zeros((8, 8, 3), np.uint8))
    rows = [{"case": case, "group": case, "fold": 0, "role": "test"} for case in SIZES]
    rows += [{"case": "stale", "group": "stale", "fold": 0, "role": "train"}]
    write_rows(folder / "splits.csv", ["case", "group", "fold", "role"], rows)
    write_tiny_sam(folder / "tiny.pth", side=256)
    embed(folder, folder / "full.csv")
    return folder


def embed(study, output, crop=None, **changes):
    arguments = {
        "family": "sam",
        "weights": str(study / "tiny.pth"),
        "options": {},
        "images": study / "images",
        "splits": study / "splits.csv",
        "part": "fold0",
        "masks": study / "masks" if crop else None,
        "window": crop and PromptConfig(kind="box", crop=crop).window.model_dump(),
        "shelf": study / "shelf",
        "limit_gb": 1.0,
        "output": output,
        "device": "cpu",
    }
    embed_images(**{**arguments, **changes})
    return output


def write_prompts(study, path, kind="box", **prompt):
    config = PromptConfig(kind=kind, **prompt)
    make_prompts(config, path.stem, study / "splits.csv", "fold0", study / "masks", path)
    return path


def refine(study, output, kind="box", prompt=None, **changes):
    arguments = {
        "family": "sam",
        "weights": str(study / "tiny.pth"),
        "options": {},
        "images": study / "images",
        "soft_masks": study / "soft",
        "embeddings": study / "full.csv",
        "shelf": study / "shelf",
        "limit_gb": 1.0,
        "output": output,
        "table": output.with_suffix(".csv"),
        "device": "cpu",
    }
    if "prompts" not in changes:
        path = output.parent / f"{kind}.json"
        arguments["prompts"] = write_prompts(study, path, kind, **(prompt or {}))
    refine_masks(**{**arguments, **changes})
    return output


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def table(output):
    with open(output.with_suffix(".csv"), newline="") as handle:
        return {row["case"]: row for row in csv.DictReader(handle)}


def shelved(study, folder="shelf"):
    return sorted((study / folder).rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["box", "both", "mask+point"])
def test_masks_are_the_refiners_and_the_shelf_changes_nothing(study, tmp_path, kind, caplog):
    caplog.set_level(logging.INFO)
    from_shelf = refine(study, tmp_path / "shelved", kind)
    assert "encoded 0 images, 2 were on the shelf" in caplog.text
    again = refine(study, tmp_path / "again", kind, shelf=tmp_path / "new")
    assert "encoded 2 images, 0 were on the shelf" in caplog.text
    assert "demo__a is not on the shelf" in caplog.text
    assert contents(from_shelf) == contents(again)
    assert sorted(contents(from_shelf)) == sorted(f"{case}.png" for case in SIZES)
    refiner = load_refiner("sam", weights=str(study / "tiny.pth"))
    for case, size in SIZES.items():
        pixels = read_gray(from_shelf / f"{case}.png")
        row = table(from_shelf)[case]
        assert pixels.shape == size
        if case == "demo__empty":
            assert not pixels.any()
            assert row == {
                "case": case, "score": "", "agreement": "", "prompts": "0", "window": ""
            }  # fmt: skip
            continue
        assert set(np.unique(pixels)) == {0, 255}
        soft = (lesion(case) * np.float32(230 / 255)).astype(np.float32)  # 0.9, as a PNG keeps it
        prompt = prompt_from_mask(soft, kind)
        embedding = refiner.embed(read_rgb(study / "images" / f"{case}.png")).rounded()
        wanted = refiner.refine(embedding, prompt)
        assert np.array_equal(pixels == 255, wanted.mask)
        assert float(row["score"]) == wanted.score
        assert int(row["prompts"]) == (2 if kind == "both" else 1)
        assert (row["agreement"], row["window"]) == ("", "")


def test_each_test_case_is_encoded_once_and_nothing_else(study, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = embed(study, tmp_path / "first.csv", shelf=tmp_path / "shelf")
    assert "encoded 3 images, 0 were on the shelf" in caplog.text
    assert len(shelved(tmp_path)) == 3
    second = embed(study, tmp_path / "second.csv", shelf=tmp_path / "shelf")
    assert "encoded 0 images, 3 were on the shelf" in caplog.text
    assert first.read_bytes() == second.read_bytes() == (study / "full.csv").read_bytes()
    shelved(tmp_path)[1].write_bytes(b"cut off")
    shelved(tmp_path)[2].unlink()
    embed(study, tmp_path / "third.csv", shelf=tmp_path / "shelf")
    assert "encoded 2 images, 1 were on the shelf" in caplog.text


def test_equal_pixels_are_encoded_once(study, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for case in SIZES:
        shutil.copy(study / "images" / "demo__a.png", tmp_path / f"{case}.png")
    embed(study, tmp_path / "index.csv", images=tmp_path, shelf=tmp_path / "shelf")
    assert len(shelved(tmp_path)) == 1
    assert "encoded 1 images" in caplog.text


def test_crop_prompts_are_refined_in_their_window_and_share_it(study, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    index = embed(study, tmp_path / "crop.csv", CROP)
    # The empty mask leaves the window open: that full image is on the shelf already.
    assert "encoded 2 images, 1 were on the shelf" in caplog.text
    assert "1 of 3 windows are the full image" in caplog.text
    for kind in ("box", "point", "mask"):
        masks = refine(study, tmp_path / kind, kind, {"crop": CROP}, embeddings=index)
        direct = refine(
            study, tmp_path / f"{kind}_new", kind, {"crop": CROP}, embeddings=index,
            shelf=tmp_path / f"shelf_{kind}",
        )  # fmt: skip
        assert contents(masks) == contents(direct)
        for case, row in table(masks).items():
            mask = read_gray(masks / f"{case}.png") == 255
            assert mask.shape == SIZES[case]
            if case == "demo__empty":
                assert (row["prompts"], row["window"]) == ("0", "")
                continue
            x0, y0, x1, y1 = map(int, row["window"].split())
            inside = np.zeros_like(mask)
            inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
            assert mask.any() and not (mask & ~inside).any()
            assert (lesion(case) <= inside).all() and not inside.all()
        full = refine(study, tmp_path / f"{kind}_full", kind)
        assert contents(full) != contents(masks)
    assert caplog.text.count("encoded 0 images, 2 were on the shelf") == 6


def test_a_full_image_prompt_in_a_crop_mode_uses_the_full_image(study, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    index = embed(study, tmp_path / "crop.csv", CROP)
    prompt = {"crop": CROP, "on_empty": "full_image"}
    caplog.clear()
    masks = refine(study, tmp_path / "masks", "box", prompt, embeddings=index)
    assert "encoded 0 images, 3 were on the shelf" in caplog.text
    row = table(masks)["demo__empty"]
    assert (row["prompts"], row["window"]) == ("1", "") and row["score"] != ""


def test_options_reach_the_refiner(study, tmp_path):
    best = refine(study, tmp_path / "best")
    single = refine(study, tmp_path / "single", options={"mask_choice": "single"})
    assert contents(best) != contents(single)


def test_the_order_of_the_cases_does_not_matter(study, tmp_path):
    path = write_prompts(study, tmp_path / "prompts.json")
    first = refine(study, tmp_path / "first", prompts=path)
    content = json.loads(path.read_text())
    content["cases"] = dict(reversed(content["cases"].items()))
    write_json(path, content)
    assert contents(first) == contents(refine(study, tmp_path / "second", prompts=path))


def test_box_prompts_need_no_soft_masks_and_mask_prompts_do(study, tmp_path):
    refine(study, tmp_path / "box", soft_masks=tmp_path / "absent")
    with pytest.raises(UltraRefinerError, match=r"cannot read .*absent/demo__a\.png"):
        refine(study, tmp_path / "mask", "mask", soft_masks=tmp_path / "absent")
    assert not (tmp_path / "mask").exists()


def test_a_finished_folder_is_replaced_as_a_whole(study, tmp_path):
    output = tmp_path / "masks"
    write_mask(output / "of_an_earlier_run.png", np.ones((4, 4), bool))
    refine(study, output)
    assert sorted(contents(output)) == sorted(f"{case}.png" for case in SIZES)


def test_absent_files_are_named_before_any_work(study, tmp_path):
    (tmp_path / "images").mkdir()
    cases = "demo__a, demo__b, demo__empty"
    with pytest.raises(UltraRefinerError, match=f"no image of {cases}"):
        refine(study, tmp_path / "masks", images=tmp_path / "images", weights="absent.pth")
    with pytest.raises(UltraRefinerError, match=f"no image of {cases}"):
        embed(study, tmp_path / "x.csv", images=tmp_path / "images", weights="absent.pth")
    with pytest.raises(UltraRefinerError, match=f"no mask of {cases}"):
        embed(study, tmp_path / "x.csv", CROP, masks=tmp_path / "images", weights="absent.pth")
    with pytest.raises(UltraRefinerError, match=r"absent\.csv is not an index of embeddings"):
        refine(study, tmp_path / "masks", embeddings=tmp_path / "absent.csv")
    assert not (tmp_path / "masks").exists() and not (tmp_path / "x.csv").exists()


def test_an_index_of_other_windows_images_weights_or_options_is_refused(study, tmp_path):
    index = embed(study, tmp_path / "crop.csv", CROP)
    with pytest.raises(UltraRefinerError, match=r"has window None for demo__a, its prompt \("):
        refine(study, tmp_path / "masks", "box", {"crop": CROP})
    with pytest.raises(UltraRefinerError, match=r"for demo__a, its prompt None\. Run embed_images"):
        refine(study, tmp_path / "masks", embeddings=index)
    (tmp_path / "images").mkdir()
    for case, size in SIZES.items():
        write_png(tmp_path / "images" / f"{case}.png", np.full((*size, 3), 90, np.uint8))
    other = write_tiny_sam(tmp_path / "other.pth", seed=1, side=256)
    for changes in (
        {"images": tmp_path / "images"},
        {"weights": str(other)},
        {"options": {"precision": "bfloat16"}},
    ):
        with pytest.raises(UltraRefinerError, match="another image of demo__a, with other weights"):
            refine(study, tmp_path / "masks", **changes)
    assert not (tmp_path / "masks").exists() and not list(tmp_path.glob(".partial-*"))


def test_a_mask_of_another_size_is_refused(study, tmp_path):
    shutil.copytree(study / "masks", tmp_path / "masks")
    write_mask(tmp_path / "masks" / "demo__b.png", np.ones((20, 20), bool))
    with pytest.raises(UltraRefinerError, match=r"mask of demo__b .*\(20, 20\), its image \(121,"):
        embed(study, tmp_path / "index.csv", CROP, masks=tmp_path / "masks")


def test_a_prompt_of_another_image_size_is_refused(study, tmp_path):
    path = write_prompts(study, tmp_path / "prompts.json")
    content = json.loads(path.read_text())
    content["cases"]["demo__b"]["image_size"] = [400, 400]
    write_json(path, content)
    with pytest.raises(PromptError, match=r"demo__b was made for \(400, 400\).*\(121, 80\)"):
        refine(study, tmp_path / "masks", prompts=path)


def test_a_refused_prompt_names_its_case(study, tmp_path):
    with pytest.raises(PromptError, match="demo__a: "):
        refine(study, tmp_path / "masks", family="grabcut", weights=None, embeddings=None)


def test_a_family_without_embeddings_on_file_is_refused(study, tmp_path):
    with pytest.raises(ConfigError, match=r"'grabcut' keeps no embeddings .*\(these do: .*sam"):
        refine(study, tmp_path / "masks", "mask", family="grabcut", weights=None)
    with pytest.raises(ConfigError, match="'grabcut' keeps no embeddings"):
        embed(study, tmp_path / "index.csv", family="grabcut", weights="x")


@pytest.mark.parametrize("crop", [None, CROP], ids=["full", "crop"])
def test_grabcut_jobs_run_without_torch_and_say_nothing_off_a_terminal(study, tmp_path, crop):
    arguments = {
        "family": "grabcut",
        "weights": None,
        "options": {},
        "prompts": str(write_prompts(study, tmp_path / "mask.json", "mask", crop=crop)),
        "images": str(study / "images"),
        "soft_masks": str(study / "soft"),
        "embeddings": None,
        "shelf": None,
        "limit_gb": 1.0,
        "output": str(tmp_path / "masks"),
        "table": str(tmp_path / "masks.csv"),
        "device": "auto",
    }
    program = (
        "import json, sys\n"
        "from ultrarefiner.refine.jobs import refine_masks\n"
        "refine_masks(**json.loads(sys.argv[1]))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    refiner = load_refiner("grabcut")
    for case in ("demo__a", "demo__b"):
        image = read_rgb(study / "images" / f"{case}.png")
        soft = (lesion(case) * np.float32(230 / 255)).astype(np.float32)
        x0, y0, x1, y1 = 0, 0, *image.shape[1::-1]
        if crop:
            x0, y0, x1, y1 = map(int, table(tmp_path / "masks")[case]["window"].split())
            assert x0 >= 0 and y0 >= 0 and x1 - x0 < image.shape[1]
        cut = np.s_[y0:y1, x0:x1]
        wanted = refiner.refine(refiner.embed(image[cut]), Prompt(mask=soft[cut])).mask
        found = read_gray(tmp_path / "masks" / f"{case}.png") == 255
        assert wanted.any() and np.array_equal(found[cut], wanted)
        assert found.sum() == wanted.sum()


def test_progress_is_logged_every_fifty_cases(caplog):
    names = [f"case{index}" for index in range(120)]
    with caplog.at_level(logging.INFO):
        assert list(progress(iter(names), 120, "embed")) == names
    assert [record.getMessage() for record in caplog.records] == [
        f"embed: {done} of 120 cases done" for done in (0, 50, 100)
    ]


def test_progress_is_logged_where_the_end_is_not_known(caplog):
    with caplog.at_level(logging.INFO):
        assert list(progress(iter(range(60)), None, "encode", "picture")) == list(range(60))
    told = ["encode: 0 pictures done", "encode: 50 pictures done"]
    assert [record.getMessage() for record in caplog.records] == told
