"""Every case of a prompts file becomes a mask of its image's size, or no folder appears at all."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.sam_fixture import write_tiny_sam
from ultrarefiner.errors import ConfigError, PromptError, UltraRefinerError, WeightsError
from ultrarefiner.images import read_gray, read_rgb, write_mask, write_png, write_probability
from ultrarefiner.io import write_json, write_rows
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import prompt_from_mask
from ultrarefiner.refine import load_refiner
from ultrarefiner.refine.embeddings import SamEmbedding
from ultrarefiner.refine.jobs import _progress, embed_images, refine_masks

SIZES = {"demo__a": (90, 120), "demo__b": (121, 80), "demo__empty": (60, 64)}


def lesion(case):
    height, width = SIZES[case]
    if case == "demo__empty":
        return np.zeros((height, width), bool)
    rows, columns = np.mgrid[:height, :width]
    return np.hypot((rows / height - 0.5) / 0.25, (columns / width - 0.45) / 0.2) <= 1


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Write images, soft masks, cases and the embeddings of a tiny SAM; return the folder."""
    folder = tmp_path_factory.mktemp("study")
    for case, size in SIZES.items():
        noise = np.random.default_rng(len(case)).normal(0, 15, (*size, 3))
        gray = np.where(lesion(case), 60, 150)[..., None] + noise
        write_png(folder / f"images/{case}.png", np.clip(gray, 0, 255).astype(np.uint8))
        write_probability(folder / f"soft/{case}.png", lesion(case) * 0.9)
    write_png(folder / "images/stale.png", np.zeros((8, 8, 3), np.uint8))
    write_rows(folder / "cases.csv", ["case", "image"], [{"case": case} for case in SIZES])
    write_tiny_sam(folder / "tiny.pth", side=256)
    embed_images(
        family="sam",
        weights=str(folder / "tiny.pth"),
        images=folder / "images",
        cases=folder / "cases.csv",
        output=folder / "embeddings",
        device="cpu",
    )
    return folder


def write_prompts(path, kind, cases=tuple(SIZES)):
    """Write a prompts file as make_prompts does."""
    records = {}
    for case in cases:
        mask = lesion(case)
        box = points = name = None
        if mask.any():
            made = prompt_from_mask(mask, kind)
            for one in made if isinstance(made, list) else [made]:
                box = box if one.box is None else one.box.tolist()
                points = points if one.points is None else one.points.tolist()
            name = f"{case}.png" if "mask" in kind else None
        records[case] = {
            "box": box,
            "points": points,
            "labels": points and [1],
            "mask": name,
            "source": "coarse",
            "empty": not mask.any(),
            "image_size": list(mask.shape),
        }
    head = {"prompt": kind, "kind": kind, "source": "coarse", "oracle": False, "fold": 0}
    write_json(path, {**head, "on_empty": "empty", "cases": records})
    return path


def refine(study, output, kind="box", **changes):
    arguments = {
        "family": "sam",
        "weights": str(study / "tiny.pth"),
        "options": {},
        "prompts": write_prompts(output.parent / f"{kind}.json", kind),
        "images": study / "images",
        "soft_masks": study / "soft",
        "embeddings": study / "embeddings",
        "output": output,
        "device": "cpu",
    }
    refine_masks(**{**arguments, **changes})
    return output


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_each_case_of_the_table_is_embedded_and_nothing_else(study):
    found = sorted(path.name for path in (study / "embeddings").iterdir())
    assert found == sorted(f"{case}.safetensors" for case in SIZES)
    refiner = load_refiner("sam", weights=str(study / "tiny.pth"))
    stored = SamEmbedding.load(study / "embeddings" / "demo__b.safetensors")
    direct = refiner.embed(read_rgb(study / "images" / "demo__b.png"))
    assert np.array_equal(stored.features, direct.features)
    assert stored.image_hw == SIZES["demo__b"] and stored.features.shape == (256, 16, 16)


@pytest.mark.parametrize("kind", ["box", "both", "mask+point"])
def test_masks_are_the_refiners_and_the_shelf_changes_nothing(study, tmp_path, kind):
    shelved = refine(study, tmp_path / "shelved", kind)
    direct = refine(study, tmp_path / "direct", kind, embeddings=None)
    assert contents(shelved) == contents(direct)
    assert sorted(contents(shelved)) == sorted(f"{case}.png" for case in SIZES)
    refiner = load_refiner("sam", weights=str(study / "tiny.pth"))
    for case, size in SIZES.items():
        pixels = read_gray(shelved / f"{case}.png")
        assert pixels.shape == size
        if case == "demo__empty":
            assert not pixels.any()
            continue
        assert set(np.unique(pixels)) == {0, 255}
        soft = (lesion(case) * np.float32(230 / 255)).astype(np.float32)  # 0.9, as a PNG keeps it
        prompt = prompt_from_mask(soft, kind)
        wanted = refiner.refine(refiner.embed(read_rgb(study / "images" / f"{case}.png")), prompt)
        assert np.array_equal(pixels == 255, wanted.mask)


def test_options_reach_the_refiner(study, tmp_path):
    best = refine(study, tmp_path / "best")
    single = refine(study, tmp_path / "single", options={"mask_choice": "single"})
    assert contents(best) != contents(single)


def test_the_order_of_the_cases_does_not_matter(study, tmp_path):
    prompts = write_prompts(tmp_path / "reversed.json", "box", tuple(reversed(SIZES)))
    first = refine(study, tmp_path / "first")
    assert contents(first) == contents(refine(study, tmp_path / "second", prompts=prompts))


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
    (tmp_path / "embeddings").mkdir()
    with pytest.raises(UltraRefinerError, match="no embedding of demo__a, demo__b, demo__empty"):
        refine(study, tmp_path / "masks", embeddings=tmp_path / "embeddings", weights="absent.pth")
    (tmp_path / "images").mkdir()
    with pytest.raises(UltraRefinerError, match="no image of demo__a, demo__b, demo__empty"):
        refine(study, tmp_path / "masks", images=tmp_path / "images", weights="absent.pth")
    with pytest.raises(UltraRefinerError, match="no image of demo__a"):
        embed_images(
            family="sam",
            weights="absent.pth",
            images=tmp_path / "images",
            cases=study / "cases.csv",
            output=tmp_path / "new",
            device="cpu",
        )
    assert not (tmp_path / "masks").exists() and not (tmp_path / "new").exists()


def test_embeddings_of_another_image_or_other_weights_are_refused(study, tmp_path):
    (tmp_path / "images").mkdir()
    for case, size in SIZES.items():
        write_png(tmp_path / "images" / f"{case}.png", np.full((*size, 3), 90, np.uint8))
    with pytest.raises(UltraRefinerError, match="another image than the present one of demo__a"):
        refine(study, tmp_path / "masks", images=tmp_path / "images")
    other = write_tiny_sam(tmp_path / "other.pth", seed=1, side=256)
    with pytest.raises(WeightsError, match="the embedding was made with weights"):
        refine(study, tmp_path / "masks", weights=str(other))
    assert not (tmp_path / "masks").exists()
    assert not list(tmp_path.glob(".partial-*"))


def test_a_prompt_of_another_image_size_is_refused(study, tmp_path):
    path = write_prompts(tmp_path / "prompts.json", "box")
    content = json.loads(path.read_text())
    content["cases"]["demo__b"]["image_size"] = [400, 400]
    write_json(path, content)
    with pytest.raises(PromptError, match=r"demo__b was made for \(400, 400\).*\(121, 80\)"):
        refine(study, tmp_path / "masks", prompts=path)


def test_a_refused_prompt_names_its_case(study, tmp_path):
    with pytest.raises(PromptError, match="demo__a: "):
        refine(study, tmp_path / "masks", family="grabcut", weights=None, embeddings=None)


def test_a_family_without_embeddings_on_file_is_refused(study, tmp_path):
    with pytest.raises(ConfigError, match=r"'grabcut' keeps no embeddings .*\(these do: sam\)"):
        refine(study, tmp_path / "masks", "mask", family="grabcut", weights=None)
    with pytest.raises(ConfigError, match="'grabcut' keeps no embeddings"):
        embed_images(
            family="grabcut",
            weights="x",
            images=study / "images",
            cases=study / "cases.csv",
            output=tmp_path / "embeddings",
            device="cpu",
        )


def test_grabcut_jobs_run_without_torch_and_say_nothing_off_a_terminal(study, tmp_path):
    arguments = {
        "family": "grabcut",
        "weights": None,
        "options": {},
        "prompts": str(write_prompts(tmp_path / "mask.json", "mask")),
        "images": str(study / "images"),
        "soft_masks": str(study / "soft"),
        "embeddings": None,
        "output": str(tmp_path / "masks"),
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
        wanted = refiner.refine(refiner.embed(image), Prompt(mask=soft)).mask
        assert wanted.any()
        assert np.array_equal(read_gray(tmp_path / "masks" / f"{case}.png") == 255, wanted)


def test_progress_is_logged_every_fifty_cases(caplog):
    names = [f"case{index}" for index in range(120)]
    with caplog.at_level(logging.INFO):
        assert list(_progress(names, "embed")) == names
    assert [record.getMessage() for record in caplog.records] == [
        f"embed: {done} of 120 cases done" for done in (0, 50, 100)
    ]
