"""Guards what the report says of finetuned refiners: how they were trained, and beside whom they stand."""

import base64
import re

import cv2
import numpy as np
import pandas as pd
import pytest
from page_reader import Page
from report_finetuned import REFINERS, dump, make_finetuned
from report_page import change, tables_of, write_page

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.images import write_png
from ultrarefiner.io import read_json
from ultrarefiner.report.book import make_book, read_data
from ultrarefiner.report.cautions import caution
from ultrarefiner.report.findings import find
from ultrarefiner.report.finetuning import finetuning_statements, not_improved, untrained_prompts
from ultrarefiner.report.making import statements
from ultrarefiner.report.model_cards import sorted_cards, source_tables
from ultrarefiner.report.pictures import embed_sheets
from ultrarefiner.report.tables import read_scores
from ultrarefiner.report.terminal import summary_tables


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_finetuned(tmp_path_factory.mktemp("finetuned"))


@pytest.fixture(scope="module")
def html(study, tmp_path_factory):
    return write_page(study, tmp_path_factory.mktemp("page"), failures=study["failures"])


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def book(study):
    return make_book(read_data(**tables_of(study), reference="transunet"))


@pytest.fixture(scope="module")
def folds(study):
    """Return Dice of coarse and finetuned single models on stu: a row a case, a column a fold."""
    scores = read_scores(study["scores"], "transunet")
    rows = scores[scores["evaluation"].eq("unseen") & scores["member"].eq("single")]
    rows = rows.pivot(index=["method", "case"], columns="fold", values="dice")
    return rows.loc["transunet@busi"], rows.loc["tuned-box@busi"]


def cards_of(study):
    return [{**read_json(path), "threshold": None} for path in study["cards"]]


def with_finetune(**finetune):
    """Return a configuration whose only refiner is finetuned so."""
    row = {"family": "sam", **({} if "scratch" in finetune else {"weights": "own/some.pth"})}
    compare = {"coarse": ["transunet"], "refine": {"tuned": ["box", "mask"]}}
    return dump(refiners={"tuned": {**row, "finetune": finetune}}, compare=compare)


def test_a_sheet_of_failures_is_part_of_the_file_folded_and_told(html, page):
    parts = re.findall(r"<details><summary>(Simulated failures.*?)</details>", html, re.S)
    assert len(parts) == 2
    wanted = {
        "joint": "joint: preset severe; 5 % perfect (Dice 0.99 or more), 30 % mild (0.80 to 0.99), "
        "65 % heavy (below 0.80); 80 % of the masks are soft.",
        "tuned": "tuned: preset default; 10 % perfect (Dice 0.99 or more), 55 % mild (0.80 to 0.99),"
        " 35 % heavy (below 0.80); 80 % of the masks are soft.",
    }
    for part, (name, words) in zip(parts, wanted.items(), strict=True):
        assert part.startswith(f"Simulated failures that {name} learns from</summary>")
        picture = re.search(r'<img loading="lazy" src="data:image/jpeg;base64,([^"]*)"', part)[1]
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
        size = re.search(r'width="(\d+)" height="(\d+)" alt="([^"]{30,})"', part)
        assert pixels.shape[:2] == (int(size[2]), int(size[1]))
        assert abs(pixels.shape[0] / pixels.shape[1] - 900 / 700) < 0.01
        caption = re.search("<figcaption>(.*?)</figcaption>", part, re.S)[1]
        assert words in caption and "drawn from the truth" in caption
        # Noise of this size is more than its share of the file.
        assert f"failures-{name}.png beside this file is as drawn" in caption
    assert len(html) < 8_000_000
    assert all(target.startswith(("#", "data:image/", "data:text/")) for target in page.loads)


def test_equal_sheets_are_there_once_and_a_small_one_is_as_drawn(tmp_path):
    paths = [tmp_path / f"failures-{name}.png" for name in ("one", "other", "third")]
    for path, value in zip(paths, (80, 80, 90), strict=True):
        write_png(path, np.full((60, 40, 3), value, np.uint8))
    sheets = embed_sheets(paths)
    assert [sheet["names"] for sheet in sheets] == [["one", "other"], ["third"]]
    assert {(s["width"], s["height"], s["reduced"]) for s in sheets} == {(40, 60, "")}
    assert embed_sheets([]) == []
    with pytest.raises(UltraRefinerError, match=r"failures-gone\.png is missing"):
        embed_sheets([tmp_path / "failures-gone.png"])


def test_the_page_says_how_each_refiner_was_finetuned(page):
    text = re.sub(r"\s+", " ", page.text)
    assert "Refiners finetunedjoint, tuned. The epoch kept has the highest validation Dice" in text
    assert "No model was trained or selected on a case that it refines." in text
    assert (
        "Finetuned: tunedLearns from predictions of transunet by models of 3 inner folds that had "
        "not seen the case (40 %), and failures simulated from the truth (preset default), 2 of "
        "each case. Prompts in training: box, mask. Trains the prompt encoder, the decoder, the "
        "heads and LoRA additions of rank 4 to the image encoder (qkv, mlp); frozen: image encoder. "
        "Begins from medsam_vit_b; 12 epochs. One model for each fold."
    ) in text
    assert "Begins from random numbers (scratch: tiny); 1 epoch. One model, trained on all" in text


@pytest.mark.parametrize(
    ("finetune", "words"),
    [
        ({}, ("(preset default), new ones in every epoch.", "box, mask.", "from some.pth")),
        ({"data": "predictions", "cross_fit": {"folds": 4}}, ("of 4 inner folds that had not",)),
        (
            {"data": "truth", "prompts": ["box", "point"], "box_noise": {}},
            ("Learns from the truth.", "box, point, boxes moved by chance."),
        ),
        (
            {"data": "crops", "copies": 3},
            ("crops around the truth, 3 of each case, moved as boxes of transunet err",),
        ),
        ({"unfreeze_last": 2}, ("and the last 2 blocks of the image encoder and its neck;",)),
        ({"train": "head"}, ("Trains the heads; frozen: image encoder, prompt encoder, decoder.",)),
        (
            {"freeze": ["encoder", "prompt_encoder", "decoder", "head"], "lora": {"last": 1}},
            ("Trains LoRA additions of rank 4 to the image encoder (qkv, last 1 block);",),
        ),
        ({"copies": 2, "curriculum": True, "crop": {}}, ("in crops around the mask; good masks",)),
        ({"scratch": "tiny", "train": "full"}, ("random numbers", "frozen: nothing")),
    ],
)
def test_words_follow_the_configuration(finetune, words):
    terms = dict(finetuning_statements(with_finetune(**finetune)))
    assert list(terms) == ["Refiners finetuned", "Finetuned: tuned"]
    for some in words:
        assert some in terms["Finetuned: tuned"]


def test_under_the_seed_protocol_no_model_is_called_unseeing():
    splits = {"folds": 5, "protocol": "seed"}
    text = dict(finetuning_statements(dump(splits=splits, refiners=sampled("tuned"))))
    assert "chosen on the cases that the model refines" in text["Refiners finetuned"]
    assert "No model" not in text["Refiners finetuned"]
    # A model of all folds refines other datasets: it was selected on none of their cases.
    config = dump(splits=splits, compare={"coarse": ["transunet"], "refine": {"joint": ["mask"]}})
    assert (
        "No model was trained or selected"
        in dict(finetuning_statements(config))["Refiners finetuned"]
    )


def sampled(name):
    """Return the refiners with one that learns from simulated failures alone."""
    return REFINERS | {name: {"family": "sam", "weights": "medsam_vit_b", "finetune": {}}}


def test_cards_have_columns_for_what_only_refiners_have(study, page):
    titles, *rows = [
        [cell[1].strip() for cell in row] for row in page.tables[None] if len(row) == 18
    ]
    rows = [dict(zip(titles, row, strict=True)) for row in rows]
    shown = [
        [row[key] for key in ("Model", "Fold", "Val. Dice", "Val. Dice before", "Coarse")]
        for row in rows
    ]
    assert shown == [
        ["joint", "all", "0.770", "0.020", "0.650"],
        ["transunet", "0", "0.831", "–", "–"],
        ["transunet", "1", "0.831", "–", "–"],
        ["tuned", "0", "0.890", "0.810", "0.801"],
        ["tuned", "1", "0.830", "0.840", "0.801"],
    ]
    assert [row["Behind it"] for row in rows] == ["–"] * 3 + ["3 inner models"] * 2
    assert rows[0]["Parents"] == "random numbers"
    coarse = [card for card in cards_of(study) if card["phase"] == "coarse"]
    plain = sorted_cards(coarse)
    assert len(plain) == 2 and "Coarse" not in plain[0] and "Behind it" not in plain[0]


def test_provenance_lists_the_models_behind_with_their_cases(study, page):
    assert "Models behind others (6)" in page.text
    (_, columns, rows) = source_tables(cards_of(study))[0]
    assert columns[:4] == ["Model", "How", "Model behind it", "Fold"]
    assert len(rows) == 6 and len({row[-1] for row in rows}) == 6
    assert rows[4][:7] == [
        *("busi/tuned, fold 1", "learned from its predictions", "busi/transunet", "1"),
        *("20", "6", "1"),
    ]
    lines = [[cell[1].strip() for cell in row] for row in page.tables[None]]
    assert all(row in lines for row in [columns, *rows])


def test_curves_have_the_coarse_masks_as_a_dashed_line(study, page):
    svg = (study["figures"] / "curves_busi.svg").read_text()
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    titles = [text for text in labels if "validation Dice" in text]
    assert titles == [
        f"{name}: validation Dice (star: epoch kept)"
        for name in ("transunet (coarse)", "joint (refiner)", "tuned (refiner)")
    ]
    assert labels.count("coarse masks") == 2 and labels.count("all folds") == 1
    # A line for each model of a refiner, and one in each of the two legends.
    assert (
        len(
            re.findall(
                "stroke-dasharray: [^;]*;[^>]*stroke-width: 1.2|"
                "stroke-width: 1.2[^>]*stroke-dasharray",
                svg,
            )
        )
        == 3 + 2
    )
    caption = next(caption for caption in page.captions if "Training on busi." in caption)
    assert "Dashed: the Dice of the coarse masks that a refiner is validated on." in caption
    reliability = (study["figures"] / "reliability_busi.svg").read_text()
    assert "math" not in reliability and ">10³<" in reliability


def test_cautions_name_refiners_that_training_did_not_make_fit(study, page):
    for line in (
        "Weights that began as random numbers: joint.",
        "Finetuning did not raise the validation Dice of tuned on busi, fold 1 (0.840 before, 0.830 "
        "after).",
        "Refiners compared with prompts that they never trained with: joint-box (trained with mask "
        "prompts only); tuned-both (trained with box and mask prompts only).",
    ):
        assert page.text.count(line) == 1
    data = read_data(**tables_of(study), reference="transunet")
    cards = [card for card in cards_of(study) if card["fold"] != 1]
    compare = {"coarse": ["transunet"], "refine": {"tuned": ["box", "mask"]}}
    quiet = {"config": dump(compare=compare)}
    lines = [
        one.text for one in caution(data.scores, data.summary, data.overlaps, [], cards, quiet)
    ]
    for words in ("random numbers", "did not raise", "never trained with"):
        assert not [line for line in lines if words in line]


def test_a_dice_that_stays_is_not_above_that_before(study):
    card = next(card for card in cards_of(study) if card["name"] == "joint")
    card["metrics"] |= {"dice": 0.5, "dice_before": 0.5}
    assert not_improved([card]) == ["joint on busi, all folds (0.500 before, 0.500 after)"]


@pytest.mark.parametrize(
    ("finetune", "prompts", "told"),
    [
        ({"prompts": ["box", "point"]}, {"a": {"kind": "both"}}, []),
        (
            {"prompts": ["box", "point"]},
            {"a": {"kind": "box+point"}},
            ["with box and point prompts"],
        ),
        ({"prompts": ["mask+box"]}, {"a": {"kind": "mask+box"}}, []),
        ({}, {"a": {"kind": "point", "source": "ground_truth"}}, ["with box and mask prompts"]),
        ({}, {"a": {"kind": "box", "crop": {}}}, ["on whole images"]),
        ({"data": "crops"}, {"a": {"kind": "box", "crop": {}}}, []),
        (
            {"crop": {}, "copies": 1},
            {"a": {"kind": "point"}},
            ["with box and mask prompts", "crops"],
        ),
    ],
)
def test_prompts_are_compared_with_those_of_training(finetune, prompts, told):
    refiners = {"tuned": {"family": "sam", "weights": "medsam_vit_b", "finetune": finetune}}
    compare = {"coarse": ["transunet"], "refine": {"tuned": list(prompts)}}
    lines = untrained_prompts(dump(refiners=refiners, prompts=prompts, compare=compare))
    assert len(lines) == bool(told)
    for line in lines:
        assert line.startswith("tuned-a (trained ") and all(words in line for words in told)


def test_an_ensemble_stands_for_a_refiner_with_a_model_for_each_fold(study, book, page):
    scores = read_scores(study["scores"], "transunet")
    rows = scores[scores["method"].str.startswith("tuned-box") & scores["member"].eq("mean")]
    means = rows.groupby("evaluation")["dice"].mean()
    compared = pd.read_csv(study["comparisons"])
    compared = compared[compared["metric"].eq("dice")].set_index(["evaluation", "method"])
    row = next(r for r in page.records("leading_stu") if r["Method"][0] == "tuned-box@busi")
    assert float(row["Dice"][0]) == pytest.approx(means["unseen"], abs=1e-12)
    truth = compared.loc[("unseen", "tuned-box@busi")]
    assert float(row["Δ Dice"][0]) == truth["mean_difference"]
    assert float(row["Holm p"][0]) == truth["holm_p"]
    row = next(r for r in page.records("holdout_busi") if r["Method"][0] == "tuned-box")
    assert float(row["Ensemble: mean"][0]) == pytest.approx(means["holdout"], abs=1e-12)
    assert row["Ensemble: vote"][1].strip() == "–" and float(row["Model of fold 1"][0]) > 0
    assert float(row["Δ Dice"][0]) == compared.loc[("holdout", "tuned-box"), "mean_difference"]
    caption = next(t for t in book.tables if t.name == "holdout_busi").caption
    assert "of a refiner with a model for each fold it is what at least half of the" in caption
    assert not [table.name for table in book.tables if table.name.startswith("singles")]
    stu = find(read_data(**tables_of(study), reference="transunet"))[1]
    assert "best of 4 refined methods that start from transunet@busi" in stu.sentence


def test_the_page_says_how_masks_of_finetuned_refiners_are_joined(study, page):
    words = (
        "averaged and cut at 0.5 (of finetuned refiners: a pixel is lesion where at least half of "
        "the folds' masks say so); vote:"
    )
    assert words in page.text
    only = dump(compare={"coarse": ["transunet"], "refine": {"joint": ["box"]}})
    data = read_data(**tables_of(study), reference="transunet")
    told = dict(statements(data, {"config": only}))["Ensembles"]
    assert "averaged and cut at 0.5; vote:" in told and "at least half" not in told


def test_without_a_mean_one_fold_stands_for_all_of_them(study, folds, tmp_path):
    edited = {}
    for name in ("scores", "summary"):
        edited |= change(study, tmp_path, name, lambda table: table[table["member"].ne("mean")])
    data = read_data(**{**tables_of(study), **edited}, reference="transunet")
    stu = next(mine for mine in make_book(data).datasets if mine.dataset == "stu")
    rows = {row.head: row.cells[1].value for row in stu.leading.rows}
    for dice, name in zip(folds, ("transunet@busi", "tuned-box@busi"), strict=True):
        assert rows[name] == pytest.approx(dice[0].mean(), abs=1e-12)


def test_the_matrix_has_the_ensemble_beside_the_single_models(study, book, folds, page):
    matrix = next(matrix for matrix in book.matrices if matrix.method == "tuned-box")
    pair = matrix.pairs["busi", "stu"]
    scores = read_scores(study["scores"], "transunet")
    mine = scores[scores["method"].eq("tuned-box@busi") & scores["member"].eq("mean")]
    assert pair.cell.value == pytest.approx(mine["dice"].mean(), abs=1e-12) and pair.cell.low
    assert pair.single.value == pytest.approx(folds[1].to_numpy().mean(), abs=1e-12)
    assert pair.single.spread == f"{folds[1].mean().std(ddof=1):.3f}"
    words = next(text for text in page.captions if "at least half of the folds' models" in text)
    assert "each refining the masks of its fold's coarse model" in words
    assert "mean probability" not in words and "single: the mean ± standard" in words


def test_the_terminal_has_a_row_for_it_in_each_evaluation(study):
    tables = summary_tables(study["summary"], study["comparisons"])
    assert len(tables) == 3
    for table in tables:
        cells = {
            str(row[1]): dict(zip([c.header for c in table.columns], row, strict=True))
            for row in zip(*(column.cells for column in table.columns), strict=True)
        }
        row = next(row for name, row in cells.items() if name.startswith("tuned-box"))
        apart = not str(table.title).startswith("cross")
        assert row["predicted by"] == ("ensemble: mean" if apart else "each its own fold")
        assert "[" in row["Dice"] and "[" in row["Δ Dice"]
