"""Guards: every mask of every part counts once in the zero-shot table, whatever came in a batch."""

import random

import numpy as np
import pytest
import torch
from score_tables import group_bootstrap, pick
from zero_shot_tables import case_table, score, summarise

from tests.sam_fixture import write_tiny_sam
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.evaluation.metrics import dice, hd95
from ultrarefiner.evaluation.scores import score_masks
from ultrarefiner.evaluation.statistics import holm, paired_wilcoxon
from ultrarefiner.evaluation.summary import summarise_scores
from ultrarefiner.evaluation.zero_shot import summarise_zero_shot
from ultrarefiner.images import write_mask
from ultrarefiner.io import read_rows, write_rows
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine import load_refiner
from ultrarefiner.study import entries, load_study

# Two images: one with three masks, one with a single one.
DICE = {"ct__a1": 0.9, "ct__a2": 0.8, "ct__a3": 0.1, "ct__b1": 0.4}
IMAGES = {"ct__a1": "a.png", "ct__a2": "a.png", "ct__a3": "a.png", "ct__b1": "b.png"}
PATIENT = {"ct__b1": "b"}


def several(method="ct-box@busi", shift=0.0, **others):
    """Return the rows of four masks of two images."""
    return [
        score(case, value + shift, method, PATIENT.get(case, "a"), **others)
        for case, value in DICE.items()
    ]


def singles(dataset, values, method="ct-box@busi", **others):
    return [score(f"{dataset}__{i}", value, method, **others) for i, value in enumerate(values)]


def images_of(*rows):
    """Return an image for each case."""
    return {row["case"]: f"{row['case']}.png" for row in rows}


def test_a_mask_counts_once_or_an_image_does(tmp_path):
    rows = summarise(tmp_path, several(), IMAGES)
    assert [row["unit"] for row in rows] == ["mask", "image"]
    masks, images = rows
    # (0.9 + 0.8 + 0.1 + 0.4) / 4, and ((0.9 + 0.8 + 0.1) / 3 + 0.4) / 2.
    assert float(masks["dice_mean"]) == pytest.approx(0.55)
    assert float(images["dice_mean"]) == pytest.approx(0.5)
    assert float(masks["iou_mean"]) == pytest.approx(0.275)
    assert float(images["iou_mean"]) == pytest.approx(0.25)
    assert float(masks["hd95_px_mean"]) == pytest.approx(4.5)
    assert float(images["hd95_px_mean"]) == pytest.approx(5.0)
    assert (masks["n"], masks["images"], masks["groups"]) == ("4", "2", "2")
    assert (images["n"], images["images"], images["groups"]) == ("2", "2", "2")
    facts = {"modality": "ultrasound", "dataset": "ct", "datasets": "ct", "member": "mean"}
    facts |= {"family": "sam_unet-box", "method": "ct-box@busi", "trained_on": "busi"}
    facts |= {"fold": "all", "prompt_source": "coarse", "oracle": "false", "seen": "no"}
    assert facts.items() <= masks.items() and facts.items() <= images.items()


def test_intervals_resample_groups(tmp_path):
    values = [0.9, 0.8, 0.3, 0.5, 0.7, 0.2]
    rows = [score(f"ct__{i}", value, group=f"p{i // 2}") for i, value in enumerate(values)]
    line = summarise(tmp_path, rows, images_of(*rows), bootstrap=4000)[0]
    wanted = group_bootstrap(values, [row["group"] for row in rows], n=4000)
    found = float(line["dice_low"]), float(line["dice_high"])
    assert found == pytest.approx(wanted, abs=0.02)
    two = {case: f"{i // 2}.png" for i, case in enumerate(sorted(images_of(*rows)))}
    masks, images = summarise(tmp_path / "two", rows, two)
    # As many masks in each image, each image a group: masks and images say the same.
    ends = ("dice_mean", "dice_low", "dice_high")
    assert [float(masks[end]) for end in ends] == pytest.approx([float(images[e]) for e in ends])


def test_order_and_tables_change_no_byte(tmp_path):
    rows = several() + several("us-box@busi", -0.05) + singles("stu", [0.7, 0.6])
    rows += singles("stu", [0.5, 0.9], "us-box@busi")
    images = IMAGES | images_of(*rows[8:])
    made = set()
    for number in range(4):
        order = random.Random(number).sample(rows, len(rows))
        folder = tmp_path / str(number)
        summarise(folder, rows, images, tables=[order[:3], order[3:4], order[4:]])
        made.add((folder / "zero.csv").read_bytes())
    assert len(made) == 1


def test_masks_scored_from_files_all_count_not_the_last_alone(tmp_path):
    truth = np.zeros((30, 40), dtype=bool)
    truth[5:15, 5:15] = True
    found = {"toy__a": np.roll(truth, 5, axis=1), "toy__b": truth & False, "toy__c": truth}
    for case, mask in found.items():
        write_mask(tmp_path / "masks" / f"{case}.png", mask)
        write_mask(tmp_path / "truth" / f"{case}.png", truth)
    cases = case_table(tmp_path, "toy", {case: f"{case}.png" for case in found})
    rows = [{"case": case, "group": case, "fold": "", "role": "unseen"} for case in found]
    write_rows(tmp_path / "unseen.csv", ["case", "group", "fold", "role"], rows)
    score_masks(
        *("ct-box@busi", "toy", "unseen-mean", tmp_path / "masks", tmp_path / "truth", cases),
        tmp_path / "unseen.csv",
        *("busi", "coarse", False, "validation", "no"),
        tmp_path / "table.csv",
    )
    summarise_scores([tmp_path / "table.csv"], tmp_path / "scores.csv", tmp_path / "summary.csv")
    summarise_zero_shot(
        tmp_path / "scores.csv",
        [{"dataset": "toy", "modality": "ct", "cases": str(cases)}],
        {"ct-box": "sam_unet-box"},
        tmp_path / "zero.csv",
    )
    (line,) = read_rows(tmp_path / "zero.csv")
    shifted = found["toy__a"]
    # The mask that is missed counts, with Dice 0 and the diagonal of 30 x 40 pixels.
    assert float(line["dice_mean"]) == pytest.approx((dice(shifted, truth) + 0.0 + 1.0) / 3)
    assert float(line["hd95_px_mean"]) == pytest.approx((hd95(shifted, truth) + 50.0 + 0.0) / 3)
    assert (line["n"], line["misses"], line["false_positives"]) == ("3", "1", "0")


def test_all_positive_logits_are_all_lesion(tmp_path, monkeypatch):
    weights = write_tiny_sam(tmp_path / "tiny.pth", side=256)
    refiner = load_refiner("sam", weights=str(weights), device="cpu")
    embedding = refiner.embed(np.full((60, 80, 3), 90, dtype=np.uint8))
    for logit in (0.3, -0.3):

        def answer(logit=logit, **given):
            one = len(given["sparse_prompt_embeddings"])
            return torch.full((one, 3, 64, 64), logit), torch.ones(one, 3)

        monkeypatch.setattr(refiner.sam.mask_decoder, "forward", answer)
        # sigmoid(0.3) is 0.57: lesion. 0.3 itself is below one half.
        found = refiner.refine(embedding, Prompt(box=(10, 10, 50, 40))).mask
        assert found.shape == (60, 80) and (found == (logit > 0)).all()


def test_where_each_image_has_one_mask_there_is_one_row(tmp_path):
    rows = singles("stu", [0.7, 0.5])
    (line,) = summarise(tmp_path, rows, images_of(*rows))
    assert (line["unit"], line["n"], line["images"]) == ("mask", "2", "2")


def test_masks_without_a_lesion_are_in_no_mean(tmp_path):
    blank = {"empty_truth": True, "area_share": 0.0}
    rows = several()
    rows[1] |= score("ct__a2", 0.0, group="a", **blank)
    rows[3] |= score("ct__b1", 0.0, group="b", empty_prediction=True, **blank)
    masks, images = summarise(tmp_path, rows, IMAGES)
    assert float(masks["dice_mean"]) == float(images["dice_mean"]) == pytest.approx(0.5)
    assert (masks["n"], images["n"], images["images"]) == ("2", "1", "1")
    assert {row["false_positives"] for row in (masks, images)} == {"1"}
    only = tmp_path / "only"
    (line,) = summarise(only, [score("ct__a1", 0.0, **blank)], {"ct__a1": "a.png"})
    assert (line["n"], line["dice_mean"], line["false_positives"]) == ("0", "", "1")


def test_weights_that_saw_the_dataset_are_not_in_the_table(tmp_path):
    rows = several(seen="yes") + several("us-box@busi", seen="unknown") + several("unet@busi")
    found = summarise(tmp_path, rows, IMAGES)
    seen = {(row["method"], row["seen"]) for row in found}
    assert seen == {("us-box@busi", "unknown"), ("unet@busi", "no")}
    nobody = tmp_path / "nobody"
    assert summarise(nobody, several(seen="yes"), IMAGES) == []


def test_folds_and_the_datasets_own_tests_are_not_zero_shot(tmp_path):
    own = [
        score(f"ct__{i}", 1.0, "unet", evaluation="folds", member="single", fold=0) for i in "xy"
    ]
    found = summarise(tmp_path, several("unet@busi") + own, IMAGES | images_of(*own))
    assert {row["method"] for row in found} == {"unet@busi"}
    assert found[0]["n"] == "4"


def test_the_ensemble_stands_for_its_members_and_without_one_each_member(tmp_path):
    each = [several("unet@busi", -k / 10, member="single", fold=k) for k in (0, 1)]
    rows = [*each[0], *each[1], *several("unet@busi")]
    masks = [row for row in summarise(tmp_path, rows, IMAGES) if row["unit"] == "mask"]
    assert [(row["member"], row["fold"]) for row in masks] == [("mean", "all")]
    assert float(masks[0]["dice_mean"]) == pytest.approx(0.55)
    vote = several("unet@busi", -0.02, member="vote")
    rows = [*each[0], *each[1], *vote]
    masks = [row for row in summarise(tmp_path / "no", rows, IMAGES) if row["unit"] == "mask"]
    found = {(row["member"], row["fold"]): float(row["dice_mean"]) for row in masks}
    assert found == pytest.approx(
        {("single", "0"): 0.55, ("single", "1"): 0.45, ("vote", "all"): 0.53}
    )


def test_datasets_of_a_modality_are_pooled_and_averaged(tmp_path):
    stu, own = singles("stu", [0.7, 0.5, 0.6]), singles("own", [0.2])
    rows = several() + stu + own + singles("busbra", [1.0], "unet@busi")
    images = IMAGES | images_of(*rows[4:])
    modalities = {"ct": "ct", "stu": "ct", "own": "unknown", "busbra": "ct"}
    found = summarise(tmp_path, rows, images, modalities)
    joint = [row for row in found if row["dataset"] in ("pooled", "macro")]
    # Nothing is known of `own`, and the coarse model was tested on one dataset alone.
    assert {row["datasets"] for row in joint} == {"ct;stu"}
    assert {row["modality"] for row in joint} == {"ct"}
    means = {(row["dataset"], row["unit"]): float(row["dice_mean"]) for row in joint}
    wanted = {("pooled", "mask"): (2.2 + 1.8) / 7, ("pooled", "image"): (0.6 + 0.4 + 1.8) / 5}
    wanted |= {("macro", "mask"): (0.55 + 0.6) / 2, ("macro", "image"): (0.5 + 0.6) / 2}
    assert means == pytest.approx(wanted)
    counts = {(row["dataset"], row["unit"]): (row["n"], row["images"]) for row in joint}
    assert counts[("pooled", "mask")] == ("7", "5") and counts[("pooled", "image")] == ("5", "5")
    assert counts[("macro", "image")] == ("2", "5")
    order = list(dict.fromkeys((row["modality"], row["dataset"]) for row in found))
    assert order == [
        *(("ct", name) for name in ("busbra", "ct", "stu", "pooled", "macro")),
        ("unknown", "own"),
    ]


def test_checkpoints_stand_together_and_are_compared_with_the_first(tmp_path):
    values = np.linspace(0.3, 0.8, 8)
    drop = np.array([0.1, 0.05, 0.02, -0.01, 0.2, 0.15, 0.12, 0.07])
    rows = [*singles("stu", values, "us-box@ct"), *singles("stu", values, "unet@us")]
    rows += singles("stu", values - drop, "ct-box@us") + singles("stu", values, "ct-oracle@us")
    rows += singles("stu", values - drop / 2, "ct-box@ct")
    found = summarise(tmp_path, rows, images_of(*rows))
    order = ["unet@us", "ct-box@ct", "ct-box@us", "us-box@ct", "ct-oracle@us"]
    assert [row["method"] for row in found] == order
    assert [row["reference"] for row in found] == ["", "", "ct-box@ct", "ct-box@ct", ""]
    assert [bool(row["mean_difference"]) for row in found] == [False, False, True, True, False]
    one, other = (pick(found, method=name) for name in ("ct-box@us", "us-box@ct"))
    assert float(one["mean_difference"]) == pytest.approx(-drop.mean() / 2)
    assert float(other["mean_difference"]) == pytest.approx(drop.mean() / 2)
    assert float(one["ci_low"]) < -drop.mean() / 2 < float(one["ci_high"])
    p = paired_wilcoxon(drop)
    assert float(one["wilcoxon_p"]) == pytest.approx(p)
    assert float(one["holm_p"]) == pytest.approx(holm([p, p])[0]) == pytest.approx(2 * p)


def test_a_case_that_is_in_no_table_of_cases_names_both(tmp_path):
    images = {case: image for case, image in IMAGES.items() if case != "ct__a3"}
    with pytest.raises(UltraRefinerError, match=r"1 cases of .*scores\.csv .*cases\.csv.* ct__a3"):
        summarise(tmp_path, several(), images)


def test_masks_of_an_image_belong_to_one_group(tmp_path):
    rows = several()
    rows[2]["group"] = "c"
    with pytest.raises(UltraRefinerError, match=r"a\.png .*ct__a3.* a, c"):
        summarise(tmp_path, rows, IMAGES)


STUDY = {
    "datasets": {
        "busi": {"phantom": {}},
        "stu": {"phantom": {}, "role": "unseen"},
        "mine": {"root": "data", "layout": "manifest", "role": "unseen"},
        "scans": {"root": "more", "layout": "manifest", "role": "unseen", "modality": "ct"},
    },
    "coarse": {"first": {"model": "unet", "init": "random"}},
    "prompts": {"box": {"kind": "box"}},
    "refiners": {
        "sam_a": {"family": "sam", "weights": "a.pth"},
        "sam_b": {"family": "sam", "weights": "b.pth"},
    },
    "compare": {"coarse": ["first"], "refine": {"sam_a": ["box"], "sam_b": ["box"]}},
}


def test_a_study_tells_modalities_and_families():
    study = load_study(STUDY)
    told = {row["dataset"]: row["modality"] for row in entries.zero_shot_datasets(study)}
    assert told == {"stu": "ultrasound", "mine": "unknown", "scans": "ct"}
    assert entries.zero_shot_datasets(study)[0]["cases"] == "results/main/mine/prepared/cases.csv"
    families = entries.checkpoint_families(study)
    assert families["sam_a-box"] == families["sam_b-box"] == "sam-box"
    assert (families["first"], families["first-tuned"]) == ("unet", "unet-tuned")
    assert entries.zero_shot_tables(study) == ["results/main/report/zero_shot.csv"]
    alone = load_study(STUDY | {"datasets": {"busi": {"phantom": {}}}})
    assert entries.zero_shot_tables(alone) == []


@pytest.mark.parametrize("word", ["CT", "mr t2", "", "_pet"])
def test_a_modality_is_a_plain_name(word):
    datasets = {"busi": {"phantom": {}, "modality": word}}
    with pytest.raises(ConfigError, match=r"datasets\.busi\.modality.*plain name"):
        load_study(STUDY | {"datasets": datasets})
