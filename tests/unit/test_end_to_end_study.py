"""End-to-end methods and guards in a study's configuration: what they need, and what is refused."""

from types import SimpleNamespace

import pytest

from tests.workflow.study import TINY, changed
from ultrarefiner.config import EndToEndConfig, GuardConfig
from ultrarefiner.datasets.parts import parse_part
from ultrarefiner.errors import ConfigError
from ultrarefiner.study import load_study

JOINT = {"coarse": "transunet", "refiner": "tiny_sam", "prompts": ["mask"]}
FINETUNED = {"family": "sam", "weights": "tiny_sam.pth", "finetune": {"prompts": ["box"]}}


def study(**changes):
    values = {
        "end_to_end": {"joint": JOINT},
        "compare__end_to_end": ["joint"],
        "compare__guarded": ["joint", "tiny_sam-box_loose"],
        **changes,
    }
    return load_study(changed(TINY, **values))


def test_one_model_is_several_methods():
    some = study(splits__holdout=0.2)
    mine = {}
    for one in some.shelf:
        mine.setdefault(one.method.name, []).append(one.part.name)
    folds, held = ["fold0", "fold1"], ["holdout-fold0", "holdout-fold1"]
    assert mine["joint"] == [*folds, *held, "holdout-mean", "holdout-vote"]
    assert mine["joint-guarded"] == [*folds, *held, "holdout-mean"]
    assert mine["joint-tuned"] == [*folds, "holdout-mean"]
    assert mine["joint-coarse"] == folds
    assert mine["tiny_sam-box_loose-guarded"] == [*folds, *held, "holdout-mean"]
    assert {one.name for one in some.models} == {"transunet", "joint"}
    sources = {name: method.source for name, method in some.methods.items()}
    assert sources["joint"] == sources["joint-guarded"] == "coarse"
    assert sources["joint-coarse"] == "none"


def test_phases_chain_by_the_files_of_a_fold():
    some = study(refiners__tiny_sam=FINETUNED).end_to_end
    base = "results/tiny/busi/models"
    assert some.coarse_file("busi", "joint", 1, "card.json") == f"{base}/transunet/fold1/card.json"
    assert some.weights("busi", "joint", 1) == f"{base}/tiny_sam/fold1/model.safetensors"
    assert some.start("busi", "joint", 1)["weights"] == f"{base}/tiny_sam/fold1/model.safetensors"
    plain = study().end_to_end
    assert plain.refiner_file("busi", "joint", 1, "card.json") is None
    assert plain.start("busi", "joint", 1)["weights"] == "tiny_sam.pth"


def test_images_are_encoded_for_training_only_where_it_needs_them():
    assert study().joint_indices("busi", "joint", "fold0") == [
        "results/tiny/busi/embeddings/" + study().embeddings_of("tiny_sam") + "/full/fold1.csv"
    ]
    for change in (
        {"roi": {}},
        {"cache": "none"},
        {"train": {"coarse": {}, "image_encoder": {}}},
    ):
        assert (
            study(end_to_end__joint={**JOINT, **change}).joint_indices("busi", "joint", "fold0")
            == []
        )


def test_the_guard_of_an_ensemble_is_chosen_by_all_folds():
    some = study().end_to_end
    folder = "results/tiny/busi/guards/joint"
    assert some.guards("stu", "joint", "@busi", parse_part("unseen-fold1")) == [
        f"{folder}/fold1.json"
    ]
    assert some.guards("busi", "joint", "", parse_part("holdout-mean")) == [
        f"{folder}/fold0.json",
        f"{folder}/fold1.json",
    ]


def test_a_study_with_defaults_written_out_is_the_same_study():
    for fusion in (
        None,
        {"gate": "uncertainty"},
        {"gate": "learned"},
        {"gate": "hybrid", "gamma": 2},
    ):
        train = {
            "coarse": {},
            **({"gate": {}} if (fusion or {}).get("gate") in ("learned", "hybrid") else {}),
        }
        config = EndToEndConfig.model_validate({**JOINT, "fusion": fusion, "train": train})
        assert EndToEndConfig.model_validate(config.model_dump(mode="json")) == config
        job = SimpleNamespace(processes=1, nodes=1, tensorboard=0)
        again = EndToEndConfig.from_recipe(config.recipe(), config.threads, job)
        assert again == config
    assert GuardConfig.model_validate(GuardConfig().model_dump(mode="json")) == GuardConfig()


def test_speed_and_loudness_are_not_in_the_recipe():
    one, other = (
        EndToEndConfig.model_validate({**JOINT, **values})
        for values in ({}, {"threads": 2, "tensorboard": True, "flips": True})
    )
    assert one.recipe() == other.recipe()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coarse": "unet"}, r"end_to_end\.joint\.coarse: .*'unet'.*compare\.coarse"),
        ({"refiner": "sam"}, r"end_to_end\.joint\.refiner: .*'sam'.*compare\.refine"),
        ({"refiner": "grabcut"}, "family grabcut cannot be trained end to end"),
        ({"train": {}}, "at least 1 item"),
        ({"train": {"coarse": {}, "coarse_decoder": {}}}, "`coarse` has coarse_decoder in it"),
        ({"train": {"coarse": {"from_epoch": 50}}}, "from_epoch: 50 is not before the last of 50"),
        ({"train": {"coarse": {"from_epoch": 2}}}, "nothing trains in epoch 1"),
        ({"train": {"coarse": {"until_epoch": 9}}}, "nothing trains in epoch 10"),
        ({"train": {"decoder": {}}, "anchor": 1.0}, "anchor: has no effect"),
        ({"train": {"decoder": {}}, "gradient_scale": 0.1}, "gradient_scale: has no effect"),
        ({"train": {"coarse": {}, "gate": {}}}, "train.gate: there is no network"),
        ({"fusion": {"gate": "learned"}}, "add `gate: {lr: 0.001}` to `train`"),
        ({"fusion": {"minimum": 0.9}}, "minimum 0.9 is not below maximum 0.8"),
        ({"prompts": ["mask", "negative"]}, "`negative` is a second point"),
        ({"prompts": ["mask", "mask"]}, "a part is named twice"),
        ({"prompts": ["box"], "style": "gaussian"}, "style: gaussian has no effect"),
        ({"formula": "moments"}, "formula: has no effect"),
        ({"loss": {"size": "big"}}, "neither 32 to 2048 pixels nor `original`"),
        ({"los": {}}, "los: unknown key"),
    ],
)
def test_what_cannot_work_is_refused_by_name(change, words):
    with pytest.raises(ConfigError, match=words):
        study(end_to_end__joint={**JOINT, **change}, compare__guarded=[])


def test_names_that_would_share_a_folder_are_refused():
    with pytest.raises(ConfigError, match=r"end_to_end\.transunet: is a name in `coarse` too"):
        study(end_to_end={"joint": JOINT, "transunet": JOINT})
    with pytest.raises(ConfigError, match=r"prompts\.guarded: methods are called so"):
        study(prompts__guarded={"kind": "box"})
    with pytest.raises(ConfigError, match=r"compare\.end_to_end: .*'jiont'.*joint"):
        study(compare__end_to_end=["jiont"], compare__guarded=[])


def test_guards_are_for_refined_methods_without_the_truth():
    with pytest.raises(ConfigError, match=r"compare\.guarded: .*'transunet'"):
        study(compare__guarded=["transunet"])
    with pytest.raises(ConfigError, match="grabcut-oracle_mask prompts from the truth"):
        study(compare__guarded=["grabcut-oracle_mask"])
    with pytest.raises(ConfigError, match="guard: every check is off"):
        study(guard={"min_iou": None, "area_ratio": None, "max_components": None, "band": None})


def test_the_guard_waits_for_the_models_that_it_is_chosen_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_sam.pth").touch()
    base = "results/tiny/busi/models"
    coarse = [f"{base}/transunet/fold1/{name}" for name in ("model.safetensors", "card.json")]
    some = study().end_to_end
    assert some.guard_models("busi", "tiny_sam-box_loose", 1) == [*coarse, "tiny_sam.pth"]
    assert some.guard_models("busi", "joint", 1) == [
        *coarse,
        f"{base}/joint/fold1/model.safetensors",
        f"{base}/joint/fold1/card.json",
    ]
    tuned = study(refiners__tiny_sam=FINETUNED).end_to_end
    assert tuned.guard_models("busi", "tiny_sam-box_loose", 1)[2:] == [
        f"{base}/tiny_sam/fold1/model.safetensors",
        f"{base}/tiny_sam/fold1/card.json",
    ]


def test_a_refiner_that_saw_every_fold_is_refused():
    finetune = {**FINETUNED["finetune"], "on": "all"}
    with pytest.raises(ConfigError, match="no validation case is left to choose a guard on"):
        study(
            refiners__tiny_sam={**FINETUNED, "finetune": finetune},
            datasets__stu={"phantom": {"cases": 6, "size": 64}, "role": "unseen"},
            compare__end_to_end=[],
            compare__guarded=["tiny_sam-box_loose"],
        )
    with pytest.raises(ConfigError, match="tiny_sam is finetuned on all folds"):
        study(
            refiners__tiny_sam={**FINETUNED, "finetune": finetune},
            datasets__stu={"phantom": {"cases": 6, "size": 64}, "role": "unseen"},
            compare__guarded=[],
        )


def test_halves_are_for_models_that_have_them():
    unet = {**TINY["coarse"]["transunet"], "model": "unet"}
    with pytest.raises(ConfigError, match="unet is not divided into encoder and decoder"):
        study(
            coarse__transunet=unet,
            end_to_end__joint={**JOINT, "train": {"coarse_decoder": {}}},
        )
