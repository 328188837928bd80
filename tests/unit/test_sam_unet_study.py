"""Guards which SAM-UNet rows a study takes: never a random encoder that nobody asked for."""

import pytest

from tests.workflow.study import TINY, changed
from ultrarefiner.config import CoarseConfig
from ultrarefiner.errors import ConfigError
from ultrarefiner.models import MODELS, starting_weights, unusable_keys
from ultrarefiner.study import load_study, require_files

TRAINED = {"data": "truth"}
ROW = {"family": "sam_unet", "weights": "sam_vit_b", "finetune": TRAINED}


def study(row=ROW, **changes):
    """Return a study with one SAM-UNet refiner."""
    return load_study(
        changed(
            TINY,
            **{
                "refiners": {"samunet": {**row}},
                "compare__refine": {"samunet": ["box_loose"]},
                **changes,
            },
        )
    )


def test_its_training_reads_a_sam_and_a_resnet():
    for resnet, file in (
        (None, "resnet50-0676ba61.pth"),
        (50, "resnet50-0676ba61.pth"),
        (34, "resnet34-b627a593.pth"),
    ):
        row = {**ROW, "resnet": resnet}
        assert study(row).finetuning.branch_files("samunet") == [f"resources/weights/{file}"]
    assert study({**ROW, "branch": "random"}).finetuning.branch_files("samunet") == []
    assert study({**ROW, "branch": "my.pth", "resnet": 10}).finetuning.branch_files("samunet") == []


def test_its_embeddings_are_those_of_each_fold():
    one = study()
    assert one.finetuning.changes_encoder("samunet") and not one.finetuning.embeds("samunet")
    assert one.embeddings_of("samunet") == "samunet"
    assert one.training_indices("busi", "samunet", "fold0") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": None}, "its frozen encoder would stay random: say `init: random`"),
        ({"init": "random"}, r"refiners\.samunet\.init: random begins with random weights"),
        ({"finetune": None}, "'sam_vit_b' is a SAM, which a SAM-UNet can begin as; add a section"),
        (
            {"finetune": None, "weights": "my.pth", "branch": "resnet50"},
            r"branch: has no effect without a section `finetune`",
        ),
        ({"branch": "resnet34"}, "'resnet34' does not fit a ResNet-50"),
        ({"branch": "resnet35"}, "unknown weights 'resnet35'"),
        ({"image_size": 250}, "image_size 250 is not divisible by 32; try 256"),
        ({"resnet": 18}, "resnet: '18' is not one of|resnet: "),
        ({"weights": "ultrasam"}, "ultrasam"),
        ({"finetune": {**TRAINED, "train": "full"}}, r"train: sam_unet trains all but its encoder"),
        ({"finetune": {**TRAINED, "freeze": ["encoder", "decoder"]}}, r"finetune\.freeze: "),
        ({"finetune": {**TRAINED, "unfreeze_last": 1}}, r"unfreeze_last: the encoder of sam_unet"),
        ({"finetune": {**TRAINED, "lora": {}}}, r"lora: the encoder of sam_unet rests"),
        ({"finetune": {**TRAINED, "loss": {"iou": 0.5}}}, "sam_unet predicts no IoU"),
        ({"finetune": {"data": "predictions", "masks_per_image": 5}}, "masks_per_image: several"),
        ({"finetune": {**TRAINED, "box_shift": 5, "box_noise": {}}}, "box_shift and box_noise"),
        ({"finetune": {**TRAINED, "box_shift": 5, "prompts": ["point"]}}, "box_shift: has no"),
        ({"mask_choice": "best"}, "mask_choice"),
    ],
)
def test_what_cannot_work_is_refused_by_name(change, words):
    with pytest.raises(ConfigError, match=words):
        study({key: value for key, value in {**ROW, **change}.items() if value is not None})


def test_random_weights_are_taken_where_they_are_asked_for():
    row = {"family": "sam_unet", "finetune": TRAINED}
    for init in ("random", "tiny"):
        assert study({**row, "init": init}).weights_file("samunet") is None


def test_it_is_no_part_of_an_end_to_end_model():
    joint = {"coarse": "transunet", "refiner": "samunet", "train": {"decoder": {}}}
    with pytest.raises(ConfigError, match="family sam_unet cannot be trained end to end"):
        study(end_to_end={"joint": joint}, compare__end_to_end=["joint"])


def test_files_of_ones_own_are_looked_for_before_any_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sam.pth").write_bytes(b"cut off")
    for row, words in (
        ({**ROW, "branch": "my_resnet.pth"}, r"samunet\.branch: there is no file my_resnet\.pth"),
        ({**ROW, "weights": "sam.pth", "branch": "random"}, r"samunet\.weights: sam\.pth"),
    ):
        with pytest.raises(ConfigError, match=words):
            require_files(study(row))


def config(**values):
    return CoarseConfig.model_validate({"model": "sam_unet", "image_size": 256, **values})


def test_the_coarse_model_starts_from_both_files():
    assert starting_weights(config(init="sam")) == ["sam_vit_b", "resnet50"]
    assert starting_weights(config(init="sam", resnet=34)) == ["sam_vit_b", "resnet34"]
    mine = config(init="sam", pretrained="sam_vit_l", branch="random")
    assert starting_weights(mine) == ["sam_vit_l"]
    assert starting_weights(config(init="random")) == []
    assert MODELS["sam_unet"].pretrained == "sam_vit_b"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "init: sam_unet has no ImageNet weights; use `init: sam`, or `init: random`"),
        ({"model": "unet", "init": "sam"}, "init: unet has no SAM inside; use `init: random`"),
        ({"init": "sam", "image_size": 240}, "image_size: sam_unet takes multiples of 32; try 256"),
        ({"model": "unet", "init": "random", "resnet": 34}, "resnet: unet has no ResNet"),
        ({"init": "random", "branch": "resnet50"}, "branch: has no effect on init: random"),
    ],
)
def test_what_the_coarse_model_cannot_be_is_told(values, words):
    assert any(words in line for line in unusable_keys(config(**values))), values
