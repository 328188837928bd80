"""Guards which finetuned model refines what: never what it has seen, and no image twice."""

from copy import deepcopy
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_leaks import images_of, make_tables, studies

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed
from ultrarefiner.config import FinetuneConfig
from ultrarefiner.datasets.fits import read_fit
from ultrarefiner.datasets.parts import parse_part, read_part
from ultrarefiner.errors import ConfigError, DatasetError, SplitError
from ultrarefiner.models.weights import weights_name
from ultrarefiner.report.plots import draw_curves
from ultrarefiner.study import load_study, require_files

PHANTOM = {"phantom": {"cases": 14, "size": 64}}
DATASETS = {"busi": PHANTOM, "busbra": PHANTOM, "stu": {**PHANTOM, "role": "unseen"}}
LORA = {"lora": {"rank": 2}}
CROP = {"kind": "box", "crop": {"expand": 0.3, "min_size": 16}}
ORACLE = {"kind": "box", "expand": 0.2, "source": "ground_truth"}
PARENT = weights_name("tiny_sam.pth")
FULL = load_study(TINY).full_view


def refiner(family="sam", weights="tiny_sam.pth", **finetune):
    return {"family": family, "finetune": finetune} | ({"weights": weights} if weights else {})


def study(refiners=None, prompts=("box_loose",), **changes):
    """Return a study of refiners that are all compared with the same prompts."""
    refiners = refiners or {"tuned": refiner()}
    return load_study(
        changed(
            TINY,
            **{
                "datasets": deepcopy(DATASETS),
                "refiners": refiners,
                "prompts__box_crop": CROP,
                "prompts__oracle": ORACLE,
                "compare__refine": {name: list(prompts) for name in refiners},
                **changes,
            },
        )
    )


def parts(some, dataset, method):
    return [
        one.part.name for one in some.shelf if (one.dataset, one.method.name) == (dataset, method)
    ]


def fits(some, name):
    return {(one.trainset, one.fit) for one in some.models if one.name == name}


def test_a_refiner_of_each_fold_refines_what_single_models_segment():
    some = study(splits__holdout=0.2)
    folds, held = ["fold0", "fold1"], ["holdout-fold0", "holdout-fold1"]
    assert parts(some, "busi", "tuned-box_loose") == [*folds, *held, "holdout-mean"]
    unseen = ["unseen-fold0", "unseen-fold1", "unseen-mean"]
    for at in ("@busi", "@busbra"):
        assert parts(some, "stu", f"tuned-box_loose{at}") == unseen
    assert fits(some, "tuned") == {(name, fold) for name in ("busi", "busbra") for fold in folds}
    for one in some.shelf:
        if one.method.refiner and one.part.member == "mean":
            with pytest.raises(ConfigError, match="no single model of it refines"):
                some.finetuning.fit("tuned", one.dataset, "busi", one.part)
        elif one.method.refiner:
            file = some.finetuning.model(
                "tuned", one.dataset, one.method.at, one.part, "model.safetensors"
            )
            trainset = one.method.trainset(one.dataset)
            assert file == (
                f"results/tiny/{trainset}/models/tuned/fold{one.part.fold}/model.safetensors"
            )


def test_a_refiner_of_all_folds_refines_other_datasets_only():
    some = study(
        {"joint": refiner(on="all")}, trainsets={"both": ["busi", "busbra"]}, splits__holdout=0.2
    )
    for at in ("@busi", "@busbra", "@both"):
        assert parts(some, "stu", f"joint-box_loose{at}") == ["unseen-mean"]
    assert {one.dataset for one in some.shelf if one.method.refiner} == {"stu"}
    assert fits(some, "joint") == {("busi", "all"), ("busbra", "all"), ("both", "all")}
    some = study({"joint": refiner(on="all")}, compare__ensembles=[])
    assert parts(some, "stu", "joint-box_loose@busi") == ["unseen-fold0", "unseen-fold1"]
    assert fits(some, "joint") == {("busi", "all"), ("busbra", "all")}


def test_coarse_models_come_first_and_are_not_finetuned():
    some = study()
    assert [one.name for one in some.models] == ["transunet"] * 4 + ["tuned"] * 4
    assert some.models[-1].fold == 1 and study({"j": refiner(on="all")}).models[-1].fold is None


@pytest.mark.parametrize(
    ("finetune", "own"),
    [
        ({}, False),
        ({"train": "head"}, False),
        ({"lora": {"parts": ["decoder"]}, "freeze": ["encoder", "decoder"]}, False),
        ({"train": "full"}, True),
        ({"freeze": []}, True),
        ({"unfreeze_last": 1}, True),
        (LORA, True),
    ],
)
def test_embeddings_are_those_of_the_parent_where_the_encoder_stays(finetune, own):
    row = {**refiner(**finetune), "precision": "bfloat16"}
    parent = {"family": "sam", "weights": "tiny_sam.pth", "precision": "bfloat16"}
    some = study({"tuned": row, "parent": parent}, ["box_loose", "box_crop", "oracle"])
    crop = some.views["crop-0.3-16-free"]
    name = some.embeddings_of("tuned")
    assert (name == "tuned") == own == (name != some.embeddings_of("parent"))
    assert set(some.embedders) == ({"tuned", some.embeddings_of("parent")} if own else {name})
    base = f"results/tiny/stu/embeddings/{name}"
    part = parse_part("unseen-fold1")
    ending = "@busi/unseen-fold1.csv" if own else "/unseen.csv"
    assert some.index("tuned", FULL, "stu", "@busi", part) == f"{base}/full{ending}"
    cropped = some.index("tuned", crop, "stu", "@busi", part)
    assert cropped == f"{base}/{crop.name}@busi/unseen-fold1.csv"


def test_a_model_from_random_weights_has_embeddings_of_its_own():
    some = study({"small": refiner(weights=None, scratch="tiny", train="full")})
    assert some.embeddings_of("small") == "small" and some.weights_file("small") is None
    assert {some.scored_on(one)["seen"] for one in some.shelf} == {"no"}


def test_an_encoding_waits_for_those_with_which_it_shares_files():
    crop = study(prompts=["box_loose", "box_crop"]).views["crop-0.3-16-free"]

    def waits(some, name, view, dataset, at, part):
        found = some.shared_indices(name, view, dataset, at, parse_part(part))
        return [path.removeprefix(f"results/tiny/{dataset}/embeddings/{name}/") for path in found]

    some = study({"own": refiner(**LORA)}, ["box_loose", "box_crop"])
    assert waits(some, "own", crop, "stu", "@busi", "unseen-fold1") == [
        "full@busi/unseen-fold1.csv"
    ]
    assert waits(some, "own", FULL, "stu", "@busi", "unseen-fold1") == []
    some = study(prompts=["box_loose", "box_crop"], compare__cross=True, splits__holdout=0.2)
    assert waits(some, PARENT, crop, "busi", "", "holdout-fold1") == ["full/holdout.csv"]
    assert waits(some, PARENT, FULL, "busi", "@busbra", "unseen-fold0") == [
        *("full/fold0.csv", "full/fold1.csv", "full/holdout.csv")
    ]
    # Where its training takes whole images, they are encoded in folds; else there is no such job.
    for data, files in (("truth", ["full/fold0.csv", "full/fold1.csv"]), ("crops", [])):
        some = study({"joint": refiner(on="all", data=data)}, compare__cross=True)
        assert waits(some, PARENT, FULL, "busi", "@busbra", "unseen-mean") == files
    # One model encodes the same images for each of the coarse models' parts.
    some = study({"own": refiner(on="all", **LORA)}, compare__ensembles=[])
    assert waits(some, "own", FULL, "stu", "@busi", "unseen-fold0") == []
    assert waits(some, "own", FULL, "stu", "@busi", "unseen-fold1") == [
        "full@busi/unseen-fold0.csv"
    ]


@pytest.mark.parametrize(
    ("finetune", "waits"),
    [
        ({}, True),
        ({"data": "truth"}, True),
        ({"on": "all"}, True),
        ({"data": "crops"}, False),
        ({"crop": {}, "copies": 2}, False),
        ({"cache": "float32"}, False),
        ({"cache": "none"}, False),
        (LORA, False),
    ],
)
def test_a_training_waits_for_the_embeddings_of_the_images_it_trains_on(finetune, waits):
    base = "results/tiny/{}/embeddings/" + PARENT + "/full/fold{}.csv"
    on_all = "on" in finetune
    for prompt, run in (("box_loose", "all"), ("box_crop", [0])):
        some = study(
            {"tuned": refiner(**finetune)},
            [prompt],
            trainsets={"both": ["busi", "busbra"]},
            splits__folds=3,
            splits__run=run,
        )
        folds = (0, 1, 2) if on_all else (1, 2)
        wanted = [base.format(name, fold) for name in ("busbra", "busi") for fold in folds]
        found = some.training_indices("both", "tuned", "all" if on_all else "fold0")
        assert found == (wanted if waits else [])
        assert ("full" in some.views) == (waits or prompt == "box_loose")


def test_under_protocol_seed_a_training_validates_on_what_it_reports():
    some = study(splits__protocol="seed")
    assert len(some.training_indices("busi", "tuned", "fold1")) == 2
    assert len(study().training_indices("busi", "tuned", "fold1")) == 1


def test_each_kind_of_data_needs_its_files_and_no_others():
    some = study(
        {
            "fly": refiner(),
            "copies": refiner(copies=3),
            "hybrid": refiner(data="hybrid", copies=2, cross_fit={"folds": 2}),
            "crops": refiner(data="crops"),
        },
        trainsets={"both": ["busi", "busbra"]},
    ).finetuning
    base = "results/tiny"
    tables = [f"{base}/{name}/failures/copies.csv" for name in ("busbra", "busi")]
    assert some.failures("both", "copies") == tables
    assert some.failures("both", "fly") == some.failures("both", "crops") == []
    assert some.inner("both", "hybrid", "fold1", "card.json") == [
        f"{base}/both/inner/fold1/transunet/fold{inner}/card.json" for inner in (0, 1)
    ]
    assert some.inner("both", "fly", "fold1", "card.json") == [] and some.inner_folds == 2
    assert some.crops("both", "crops", "fold0") == f"{base}/both/crops/crops/fold0"
    assert some.crops("both", "fly", "fold0") is None
    errors = [f"{base}/both/models/transunet/fold{fold}/box_errors.json" for fold in (0, 1)]
    assert some.box_errors("both", "fold1") == errors[1:]
    assert some.box_errors("both", "all") == errors


def test_no_oracle_gap_is_asked_for_where_nobody_stands_for_the_models():
    some = study(
        {"tuned": refiner(), "joint": refiner(on="all")},
        ["box_loose", "oracle"],
        compare__ensembles=[],
    )
    assert {pair["method"] for pair in some.oracle_pairs} == {"tuned-box_loose"}


def test_what_the_parent_has_seen_the_finetuned_refiner_has_seen():
    some = study({"tuned": refiner(weights="medsam_vit_b")})
    labels = {one.dataset: some.scored_on(one)["seen"] for one in some.shelf if one.method.refiner}
    assert labels == {"busi": "yes", "busbra": "no", "stu": "no"}


def test_a_recipe_gives_back_the_finetuning_and_leaves_speed_out():
    steps = {"optimizer": "adam", "schedule": "multistep", "milestones": [2, 3], "gamma": 0.1}
    turned = {"augment": {"rotate": 5}, "cache": "none"}
    rest = ({"data": "crops", "copies": 2}, {"data": "truth", **steps}, turned)
    for keys in ({}, {"train": "full"}, LORA, *rest):
        config = FinetuneConfig(**keys, threads=3, gpu=2, tensorboard=True, checkpointing=True)
        job = SimpleNamespace(processes=2, nodes=2, tensorboard=0, checkpointing=0)
        again = FinetuneConfig.from_recipe(config.recipe(), 1, job)
        assert (again.recipe(), again.frozen) == (config.recipe(), config.frozen)
        assert (again.threads, again.tensorboard, again.gpu, again.nodes) == (1, False, 2, 2)
        assert not again.checkpointing
        assert config.recipe() == FinetuneConfig(**keys).recipe()


WRONG = [
    ({"gc": refiner("grabcut", None)}, {"compare__refine": {"gc": ["mask"]}},
     ("refiners.gc.finetune", "nothing to train", "sam")),
    ({"new": refiner(weights=None)}, {}, ("refiners.new.weights", "missing")),
    ({"new": refiner(checkpointing=True)}, {}, ("finetune.checkpointing", "nothing", "trains")),
    ({"new": refiner(scratch="tiny", train="full")}, {}, ("new.finetune.scratch", "tiny_sam.pth")),
    (
        {"new": refiner("ultrasam", None, scratch="tiny", train="full")},
        {},
        ("new.finetune.scratch", "`family: sam`"),
    ),
    (
        {"new": refiner(data="predictions")},
        {"splits__protocol": "seed"},
        ("new.finetune.data", "protocol: nested"),
    ),
    (
        {"new": refiner("mobile_sam", "own.pt", unfreeze_last=2)},
        {},
        ("new.finetune.unfreeze_last", "mobile_sam", "no row of equal blocks"),
    ),
    (
        {"new": refiner("mobile_sam", "own.pt", **LORA)},
        {},
        ("new.finetune.lora.parts", "mobile_sam", "[decoder]"),
    ),
    ({"transunet": refiner()}, {}, ("refiners.transunet", "another name")),
    (
        {"sam_vit_b": refiner(**LORA), "sam": {"family": "sam", "weights": "sam_vit_b"}},
        {},
        ("refiners.sam_vit_b", "refiner 'sam'", "another name"),
    ),
    (
        {"a": refiner(data="predictions"), "b": refiner(data="hybrid", cross_fit={"folds": 4})},
        {},
        ("cross_fit.folds", "3 of a", "4 of b"),
    ),
    ({"new": refiner()}, {"points": {"refiners": ["new"]}}, ("points.refiners", "finetuned")),
    (
        {"new": refiner(on="all")},
        {"datasets": {"busi": PHANTOM}},
        ("refiners.new.finetune.on: all trains on every case of busi", "busi's own folds",
         "compare.cross", "role: unseen", "on: fold"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("refiners", "changes", "words"), WRONG, ids=[w[2][0] for w in WRONG])
def test_what_cannot_work_is_told_with_its_key(refiners, changes, words):
    with pytest.raises(ConfigError) as error:
        study(refiners, **changes)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 2  # and nothing else


def test_what_nobody_compares_needs_no_dataset_to_be_applied_to():
    rows = {"new": refiner(on="all"), "plain": {"family": "sam", "weights": "tiny_sam.pth"}}
    refine = {"plain": ["box_loose"]}
    some = study(rows, datasets={"busi": PHANTOM}, compare__refine=refine)
    assert fits(some, "new") == set() and some.finetuning.names == []
    both = {"datasets": {"busi": PHANTOM, "busbra": PHANTOM}, "compare__cross": True}
    assert fits(study({"new": refiner(on="all")}, **both), "new")


def test_models_that_may_not_be_applied_are_refused_by_name():
    some = study({"tuned": refiner(), "joint": refiner(on="all")}).finetuning
    for part in ("fold0", "holdout-mean", "unseen-fold0"):
        with pytest.raises(ConfigError, match=r"joint.*every case of busi.*busi's own folds"):
            some.model("joint", "busi", "", parse_part(part), "card.json")
    with pytest.raises(ConfigError, match=r"no single model.*unseen-mean.*unseen-fold0"):
        some.model("tuned", "stu", "@busi", parse_part("unseen-mean"), "card.json")
    assert some.model("other", "busi", "", parse_part("fold0"), "card.json") is None
    for name, fit in (("tuned", "all"), ("joint", "fold0")):
        with pytest.raises(ConfigError, match=f"{name}.*no model '{fit}'"):
            some.recipe(name, fit)


def test_parts_that_a_model_does_not_have_are_told_before_any_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_sam(tmp_path / "tiny_sam.pth", side=256)
    require_files(study({"tuned": refiner(unfreeze_last=2)}))
    require_files(study({"small": refiner(weights=None, scratch="tiny", train="full")}))
    with pytest.raises(ConfigError, match=r"refiners\.tuned\.finetune: .*unfreeze_last"):
        require_files(study({"tuned": refiner(unfreeze_last=3)}))
    with pytest.raises(ConfigError, match=r"refiners\.tuned\.weights: .*gone\.pth"):
        require_files(study({"tuned": refiner(weights="gone.pth")}))


def test_the_curve_of_a_model_of_all_folds_says_so():
    table = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.0, 0.5], "val_dice": [0.5, 0.6]})
    rows = [{"model": "m", "fold": fold, "table": table} for fold in (1, None)]
    figure = draw_curves(rows)
    assert {text.get_text() for text in figure.axes[1].get_legend().get_texts()} == {
        *("all folds", "fold 1")
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuned")


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=studies(), alike=st.booleans())
def test_nothing_is_refined_by_a_model_that_saw_it(root, drawn, alike):
    roles = {row["role"] for row in drawn.config["datasets"].values()}
    rows = {"tuned": refiner()}
    if "unseen" in roles or drawn.config["compare__cross"]:
        rows["joint"] = refiner(on="all")
    refine = {name: ["box_loose"] for name in rows}
    drawn.config |= {"refiners": rows, "compare__refine": refine}
    try:
        study, splits, unseen = make_tables(drawn, root, alike)
    except (SplitError, DatasetError):
        assume(False)
    cluster, checked = images_of(drawn), 0
    for one in study.shelf:
        if one.method.refiner is None:
            continue
        trainset = one.method.trainset(one.dataset)
        table = unseen if one.part.evaluation == "unseen" else splits
        try:
            cases = read_part(table[one.dataset], one.part.name)
        except SplitError:
            continue
        if one.part.member == "mean" and one.method.refiner == "tuned":
            fits = [f"fold{fold}" for fold in study.folds]
        else:
            fits = [study.finetuning.fit(one.method.refiner, one.dataset, trainset, one.part)]
        each = [read_fit(splits[trainset], fit) for fit in fits]
        seen = {case for roles in each for case in (*roles["train"], *roles["validation"])}
        assert not seen & set(cases)
        if trainset != one.dataset or one.part.evaluation != "folds":
            others = {cluster[case] for case in cases}
            shown = [case for case in seen if cluster[case] in others]
            assert not [case for case in shown if not case.startswith(f"{one.dataset}__")]
        checked += len(cases)
    assert checked
