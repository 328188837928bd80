"""Guards what the report says of how models were trained end to end, and how masks are guarded."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from page_reader import Page
from report_end_to_end import AS_ONE, COMPARE, FOLDS, STOPPED, dump, history_of, make_joint
from report_page import tables_of, write_page

from ultrarefiner.io import read_json
from ultrarefiner.report.book import make_book, read_data
from ultrarefiner.report.cautions import caution
from ultrarefiner.report.end_to_end import end_to_end_statements, guard_statements
from ultrarefiner.report.making import statements
from ultrarefiner.report.model_cards import sorted_cards
from ultrarefiner.report.plots import draw_curves, save_figure
from ultrarefiner.training.history import write_history


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_joint(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def html(study, tmp_path_factory):
    return write_page(study, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def data(study):
    return read_data(**tables_of(study), reference="transunet")


@pytest.fixture(scope="module")
def book(data):
    return make_book(data)


def cards_of(study):
    return [{**read_json(path), "threshold": None} for path in study["cards"]]


def test_statements_tell_how_it_was_trained_and_guarded(page):
    text = re.sub(r"\s+", " ", page.text)
    assert (
        "Trained end to endas_one. A coarse model and a refiner, where their own trainings ended, "
        "go on as one: coarse mask, prompts, refined mask. The epoch kept has the highest "
        "validation Dice of the refined masks at original size; epoch 0, both as they came, is "
        "one of those to choose from. What ends in -coarse is the coarse model inside. No model "
        "was trained or selected on a case that it segments."
    ) in text
    assert (
        "End to end: as_oneBegins as transunet of the same fold and tuned, as finetuned on the "
        "same fold. Prompt of the refiner: mask (direct) and box (geometry) in one. Refines on "
        "the whole image. The refined mask stands. Trains the coarse model (rate 1e-05), the "
        "prompt encoder (rate 1e-05), the mask decoder (rate 1e-05) and the heads (rate 1e-05); "
        "all else is frozen. Loss: 0.5 of the refined mask, on a grid of 224 × 224, and 0.5 of "
        "the coarse one. 3 epochs; training ends where the coarse model's validation Dice falls "
        "by more than 0.02."
    ) in text
    assert (
        "Guardas_one-guarded, tuned-box-guarded. A refined mask gives way to that of transunet "
        "where its IoU with it is too low, its area is too small or too large beside it or it has "
        "too many components. Otherwise, refined pixels count within a band around the coarse "
        "outline only. Whether what has no number here is checked, and at which limit, is chosen "
        "for each fold by mean Dice over its validation cases, which are not among the reported "
        "ones: the gentlest rule, unless another gains 0.001. To leave masks as they are is one "
        "of the rules. For all folds' models together a check is on where more than half of the "
        "folds have it on, at their median."
    ) in text
    assert (
        "Prompts of grabcut-mask, joint-box, sam-both, tuned-box are made from the masks of "
        "transunet on the same images, without the truth. Prompts of as_one are made from the "
        "masks of the coarse model inside, without the truth."
    ) in text
    assert "Of those trained here: the weights that they began from." in text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompts": ["mask", "box", "point", "negative"], "style": "distance", "sharpen": 10},
            (
                "mask (distance), box (geometry), point (geometry) and negative (geometry) in one, "
                "of probabilities sharpened by 10.",
            ),
        ),
        (
            {"prompts": ["box"], "formula": "moments"},
            ("Prompt of the refiner: box (moments). Refines",),
        ),
        (
            {"roi": {"outside": "coarse"}},
            (
                "in a window around the coarse mask, 20 % larger on each side and at least 64 "
                "pixels of the refiner's frame; outside of it: the coarse mask.",
            ),
        ),
        (
            {"fusion": {"gate": "uncertainty", "maximum": 0.5}},
            (
                "mixed into the coarse one (0 to 0.5 of it): most where the coarse probability is "
                "near one half.",
            ),
        ),
        (
            {"fusion": {"gate": "learned"}, "train": {"decoder": {}, "gate": {"lr": 0.001}}},
            (
                "is mixed into the coarse one: as a small network says.",
                "Trains the mask decoder (rate 1e-05) and the gate (rate 0.001);",
            ),
        ),
        (
            {
                "train": {
                    "decoder": {"until_epoch": 2},
                    "coarse_encoder": {"lr": 1e-6, "from_epoch": 1},
                }
            },
            (
                "Trains the encoder of the coarse model (rate 1e-06, from epoch 2) and the mask "
                "decoder (rate 1e-05, until epoch 2);",
            ),
        ),
        (
            {"gradient_scale": 0.1, "anchor": 0.5},
            (
                "The refined mask's gradient reaches the coarse model times 0.1 and leaving the "
                "coarse model's first weights costs 0.5.",
            ),
        ),
        (
            {"loss": {"size": "original", "coarse": 0.2}, "largest_drop": None, "flips": True},
            (
                "0.5 of the refined mask, at each image's own size, and 0.2 of the coarse one.",
                "however far the coarse model's validation Dice falls, training goes on.",
                "Predicts the mean over the image and its three flips.",
            ),
        ),
        ({"refiner": "sam"}, ("Begins as transunet of the same fold and sam (sam_vit_b).",)),
    ],
)
def test_words_follow_the_configuration(row, words):
    terms = dict(end_to_end_statements(dump(AS_ONE | row)))
    assert list(terms) == ["Trained end to end", "End to end: as_one"]
    for some in words:
        assert some in terms["End to end: as_one"]
    plain = dict(end_to_end_statements(dump()))["End to end: as_one"]
    assert not any(some in plain for some in words)


@pytest.mark.parametrize(
    ("guard", "told", "untold"),
    [
        ({"min_iou": 0.5}, ("below 0.5, its area is too small", "is chosen"), ("To leave",)),
        (
            {"min_iou": 0.5, "area_ratio": None, "max_components": None, "band": None},
            ("gives way to that of transunet where its IoU with it is below 0.5.",),
            ("band", "chosen", "components"),
        ),
        (
            {"min_iou": None, "area_ratio": [0.5, 2], "max_components": 4, "band": 0.25},
            (
                "where its area is not 0.5 to 2 times the coarse one's or it has more than 4 "
                "components. Otherwise, refined pixels count within 0.25 radii",
            ),
            ("IoU", "chosen"),
        ),
        (
            {"min_iou": None, "area_ratio": None, "max_components": None},
            ("guarded. Refined pixels count within a band", "is chosen for each fold"),
            ("gives way", "Otherwise"),
        ),
    ],
)
def test_words_on_guards_follow_their_limits(guard, told, untold):
    ((term, text),) = guard_statements(dump(guard=guard), ensembles=False)
    assert term == "Guard" and "median" not in text
    for some in told:
        assert some in text
    assert not any(some in text for some in untold)


def test_what_is_not_compared_is_not_told(data):
    assert end_to_end_statements({}) == guard_statements({}, True) == []
    plain = dump(compare={**COMPARE, "end_to_end": [], "guarded": []})
    assert end_to_end_statements(plain) == guard_statements(plain, True) == []


def test_under_the_seed_protocol_nothing_is_called_unseen(data):
    splits = {"folds": 5, "protocol": "seed"}
    told = dict(statements(data, {"config": dump(splits=splits)}))
    assert "chosen on the cases that the model segments" in told["Trained end to end"]
    assert "No model was" not in told["Trained end to end"]
    assert "the cases that are reported (protocol: seed)" in told["Guard"]
    assert "validation" not in told["Guard"]


def test_cautions_name_what_was_kept_as_it_was_and_what_was_ended(study, data, page):
    found = {
        item.text: item.details
        for item in caution(data.scores, data.summary, data.overlaps, [], cards_of(study), {})
    }
    kept = next(text for text in found if "better in no epoch" in text)
    assert found[kept] == [
        "as_one on busi, fold 1: validation Dice 0.860, of the coarse model inside 0.830"
    ]
    ended = next(text for text in found if "ended early" in text)
    assert found[ended] == [f"as_one on busi, fold 1: {STOPPED}; epoch 0 was kept"]
    for text in (kept, ended):
        assert text in page.text and found[text][0] in page.text
    cards = [card for card in cards_of(study) if card["fold"] == 0]
    quiet = caution(data.scores, data.summary, data.overlaps, [], cards, {})
    assert not [item for item in quiet if "end to end" in item.text]


def test_cards_have_their_dice_before_and_after_and_their_parents(study, page):
    titles, *rows = [
        [cell[1].strip() for cell in row] for row in page.tables[None] if len(row) == 18
    ]
    rows = [dict(zip(titles, row, strict=True)) for row in rows]
    columns = ("Val. Dice", "Val. Dice before", "Coarse", "Coarse before", "Epoch kept")
    shown = {(row["Model"], row["Fold"]): [row[key] for key in columns] for row in rows}
    assert shown == {
        ("as_one", "0"): ["0.850", "0.810", "0.810", "0.800", "2"],
        ("as_one", "1"): ["0.860", "0.860", "0.830", "0.830", "0"],
        ("transunet", "0"): ["0.831", "–", "–", "–", "11"],
        ("transunet", "1"): ["0.831", "–", "–", "–", "11"],
        ("tuned", "0"): ["0.890", "0.810", "0.800", "–", "9"],
        ("tuned", "1"): ["0.890", "0.810", "0.800", "–", "9"],
    }
    assert rows[0]["Architecture"] == "transunet at 192 × 224 px and sam at 1024 px"
    assert rows[0]["Parents"].startswith("transunet (0ab") and "tuned (0ef" in rows[0]["Parents"]
    lines = [[cell[1].strip() for cell in row] for row in page.tables[None]]
    behind = [row for row in lines if row and row[0] == "busi/as_one, fold 1"]
    assert [row[1:3] for row in behind] == [
        ["began from its weights", "busi/transunet"],
        ["began from its weights", "busi/tuned"],
    ]
    refiners = [card for card in cards_of(study) if card["phase"] != "end_to_end"]
    assert "Coarse before" not in sorted_cards(refiners)[0]


def curve_of(tmp_path, fold):
    path = tmp_path / "history.csv"
    write_history(path, history_of(fold).history)
    return pd.read_csv(path)


@pytest.mark.parametrize("fold", [0, 1])
def test_curves_begin_at_epoch_0_and_star_what_was_kept(tmp_path, fold):
    values, kept, _ = FOLDS[fold]
    item = {"model": "as_one", "fold": fold, "table": curve_of(tmp_path, fold), "kept": kept}
    left, right = draw_curves([item]).axes
    assert left.get_title() == "as_one (end to end): training loss"
    loss, (refined, coarse, _) = left.lines[0], right.lines
    # Nothing is lost before training, and nothing is drawn for it.
    assert list(loss.get_xdata()) == list(range(1, len(values)))
    assert np.isfinite(loss.get_ydata()).all()
    for line, number in ((refined, 0), (coarse, 1)):
        assert list(line.get_xdata()) == list(range(len(values)))
        assert list(line.get_ydata()) == [row[number] for row in values]
    assert coarse.get_linestyle() == "--" and refined.get_linestyle() == "-"
    # In fold 1 the refined Dice is highest in the epoch that was not taken.
    (star,) = right.collections
    assert star.get_offsets().tolist() == [[kept, values[kept][0]]]
    assert left.get_xlim() == right.get_xlim()
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == [f"fold {fold}", "coarse model inside"]


def test_the_figure_has_the_epoch_of_the_card_and_stands_after_the_refiners(study, page, tmp_path):
    svg = (study["figures"] / "curves_busi.svg").read_text()
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    titles = [text.partition(" (")[0] for text in labels if "validation Dice" in text]
    assert titles == ["transunet", "tuned", "as_one"]
    caption = next(caption for caption in page.captions if "Training on busi." in caption)
    assert (
        "Dashed: the Dice of the coarse masks that a refiner is validated on and of the coarse "
        "model inside one that is trained end to end. Epoch 0 is before training end to end."
    ) in caption
    items = [
        {**item, "table": pd.read_csv(item["path"])}
        for item in study["histories"]
        if item["dataset"] == "busi"
    ]
    cards = [read_json(item["path"].with_name("card.json")) for item in items]
    kept = [{**i, "kept": c["metrics"]["epoch"]} for i, c in zip(items, cards, strict=True)]
    for drawn, equal in ((kept, True), (items, False)):
        save_figure(tmp_path / "curves_busi.svg", partial(draw_curves, drawn))
        assert ((tmp_path / "curves_busi.svg").read_text() == svg) == equal


def test_without_a_card_the_best_dice_has_the_star(tmp_path):
    item = {"model": "as_one", "fold": 1, "table": curve_of(tmp_path, 1)}
    (star,) = draw_curves([item]).axes[1].collections
    assert star.get_offsets().tolist() == [[1, 0.88]]
