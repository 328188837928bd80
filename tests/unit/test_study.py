"""Guards that a wrong configuration is one error that names every key and the nearest right one."""

from pathlib import Path

import pytest
import yaml

from tests.sam_fixture import write_tiny_sam
from tests.workflow.study import TINY, changed
from ultrarefiner.config import CoarseConfig, SplitsConfig, load_config
from ultrarefiner.errors import ConfigError
from ultrarefiner.study import folder_listing, load_study, own_weights, require_files

TRANSUNET = {"coarse__transunet__model": "transunet", "coarse__transunet__init": "imagenet21k"}
WRONG = [
    ({"coarse__transunet__epoch": 3}, ("coarse.transunet.epoch", "Did you mean 'epochs'")),
    (
        {"coarse__transunet__loss": {"dise": 1}},
        ("coarse.transunet.loss.dise", "Did you mean 'dice'"),
    ),
    ({"datasets__busi__phantom__case": 3}, ("datasets.busi.phantom.case", "Did you mean 'cases'")),
    ({"splits__fold": 3}, ("splits.fold", "Did you mean 'folds'")),
    ({"splits__run": [2]}, ("splits", "[2]", "0 to 1")),
    ({"splits__protocol": "nestd"}, ("splits.protocol", "Did you mean 'nested'")),
    ({"compare__refine": {"grabcut": ["msk"]}}, ("msk", "Did you mean 'mask'")),
    ({"compare__refine": {"grabcat": ["mask"]}}, ("grabcat", "Did you mean 'grabcut'")),
    ({"compare__coarse": ["transnet"]}, ("transnet", "Did you mean 'transunet'")),
    ({"compare": None}, ("compare", "missing")),
    ({"datasets": {"bsui": {"root": "raw"}}}, ("bsui", "Did you mean 'busi'")),
    ({"datasets": {"clinic": {"root": "raw", "layout": "bussi"}}}, ("clinic.layout", "busi")),
    ({"datasets": {"busi": {}}}, ("datasets.busi", "root", "phantom")),
    (
        {"datasets": {"busi": {"root": "a", "folds": "published"}}},
        ("datasets.busi.folds", "has none"),
    ),
    ({"datasets": {"busbra": {"root": "a", "folds": "published"}}}, ("5 and 10",)),
    ({"datasets": {"Busi": {"root": "a", "layout": "busi"}}}, ("'Busi'", "lower-case")),
    ({"prompts__mask__kind": "mask+pont"}, ("mask+pont", "Did you mean 'mask+point'")),
    ({"prompts__mask__expand": 0.2}, ("prompts.mask", "expand", "no box")),
    ({"prompts__mask__on_empty": "full_image"}, ("prompts.mask", "on_empty", "no effect")),
    ({"coarse__transunet__model": "transunett"}, ("transunett", "Did you mean 'transunet'")),
    ({"coarse__transunet__image_size": 100}, ("image_size", "16", "96")),
    ({"coarse__transunet__init": "imagenet21k"}, ("coarse.transunet.init", "init: random")),
    ({"coarse__transunet__lr": -1}, ("coarse.transunet.lr", "-1")),
    ({"refiners__grabcut__median_": 3}, ("median_", "Did you mean 'median'")),
    ({"refiners__grabcut__weights": "x.pth"}, ("refiners.grabcut.weights", "takes none")),
    ({"refiners__tiny_sam__weights": None}, ("refiners.tiny_sam.weights", "missing")),
    ({"refiners__tiny_sam__family": "san"}, ("refiners.tiny_sam", "Did you mean 'sam'")),
    ({"compare__refine": {"grabcut": ["box_loose"]}}, ("box_loose", "rectangle")),
    ({"run": "../elsewhere"}, ("run", "folder name")),
    ({"datasets": {"report": {"root": "a", "layout": "busi"}}}, ("'report'", "another name")),
    ({"datasets": {"busi": {"root": ""}}}, ("datasets.busi.root",)),
    ({"coarse__transunet__lr": float("inf")}, ("coarse.transunet.lr", "finite")),
    ({"compare__refine": {"grabcut": []}}, ("compare.refine.grabcut", "no prompt mode")),
    ({"weights": {"accept": ["ultrasma"]}}, ("weights.accept", "Did you mean 'ultrasam'")),
    ({"weights": {"mirrors": ["mirror.org"]}}, ("weights.mirrors", "mirror.org", "https://")),
    (
        {"refiners__tiny_sam": {"family": "ultrasam", "weights": "ultrasam"}},
        ("refiners.tiny_sam.weights", "No commercial use", "weights: {accept: [ultrasam]}"),
    ),
    (
        {"refiners__tiny_sam__weights": "ultrasam", "weights": {"accept": ["ultrasam"]}},
        ("refiners.tiny_sam", "family 'ultrasam'"),
    ),
    (
        {"refiners__tiny_sam__weights": "medsam_vitb"},
        ("refiners.tiny_sam.weights", "Did you mean 'medsam_vit_b'"),
    ),
    ({"refiners__tiny_sam__weights": ""}, ("refiners.tiny_sam.weights", "at least 1")),
    ({"refiners__tiny_sam__weights": "/"}, ("refiners.tiny_sam.weights", "is a folder")),
    ({"refiners__tiny_sam__weights": "r50_vit_b_16"}, ("'r50_vit_b_16' are a coarse model's",)),
    ({"prompts__mask__kind": "point+box"}, ("Did you mean 'box+point'",)),
    ({"refiners__tiny_sam__jitter": {"copy": 3}}, ("jitter.copy", "Did you mean 'copies'")),
    ({"refiners__tiny_sam__jitter": {"box": 0, "point": 0}}, ("jitter", "both 0")),
    ({**TRANSUNET, "coarse__transunet__pretrained": "r50_vit_b16"}, ("mean 'r50_vit_b_16'",)),
    (
        {**TRANSUNET, "coarse__transunet__pretrained": "sam_vit_b"},
        ("coarse.transunet.pretrained", "family 'sam'", "starts from 'r50_vit_b_16'"),
    ),
    (
        {**TRANSUNET, "coarse__transunet__pretrained": "ultrasam"},
        ("coarse.transunet.pretrained", "No commercial use"),
    ),
    (
        {
            "datasets": {"busbra": {"root": "a", "folds": "published"}},
            "splits": {"folds": 5, "protocol": "seed"},
        },
        ("datasets.busbra.folds", "protocol: seed"),
    ),
]


@pytest.mark.parametrize(("change", "parts"), WRONG)
def test_the_error_names_the_key_and_the_cure(change, parts):
    with pytest.raises(ConfigError) as error:
        load_study(changed(TINY, **change))
    for part in parts:
        assert part in str(error.value)


def test_all_errors_are_listed_at_once():
    wrong = changed(TINY, coarse__transunet__epoch=3, splits__fold=2)
    with pytest.raises(ConfigError, match=r"(?s)splits\.fold.*coarse\.transunet\.epoch"):
        load_study(wrong)


def test_methods_are_coarse_models_and_refiner_prompt_pairs():
    study = load_study(TINY)
    assert list(study.methods) == [
        "transunet",
        "transunet-tuned",
        "grabcut-mask",
        "grabcut-oracle_mask",
        "tiny_sam-box_loose",
    ]
    assert [m.oracle for m in study.methods.values()] == [False, False, False, True, False]
    assert study.reference == "transunet"
    assert study.folds == [0, 1]


def test_the_protocol_says_what_models_are_selected_on():
    assert load_study(TINY).selection == "validation"
    assert load_study(changed(TINY, splits__protocol="seed")).selection == "reported fold"


def test_missing_files_are_listed_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_study(
        changed(
            TINY,
            datasets={"busi": {"root": "nowhere"}},
            coarse__transunet__model="transunet",
            coarse__transunet__init="imagenet21k",
            coarse__transunet__pretrained="own.npz",
        )
    )
    with pytest.raises(ConfigError) as error:
        require_files(study)
    for part in (
        "nowhere",
        "own.npz",
        "`pretrained: r50_vit_b_16`",
        "init: random",
        "tiny_sam.pth",
    ):
        assert part in str(error.value)


def test_published_weights_that_are_absent_are_no_error_but_damaged_ones_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change = {
        "coarse__transunet__model": "transunet",
        "coarse__transunet__init": "imagenet21k",
        "refiners__tiny_sam__weights": "sam_vit_b",
    }
    study = load_study(changed(TINY, **change))
    require_files(study)
    (start,) = study.pretrained_files("transunet")
    assert start == "resources/weights/R50+ViT-B_16.npz"
    assert study.weights_file("tiny_sam") == "resources/weights/sam_vit_b_01ec64.pth"
    assert study.weights_file("grabcut") is None
    for file in (start, study.weights_file("tiny_sam")):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(b"cut off")
    with pytest.raises(ConfigError) as error:
        require_files(study)
    for part in ("R50+ViT-B_16.npz is damaged", "sam_vit_b_01ec64.pth has 7 bytes"):
        assert part in str(error.value)


def test_the_recipe_leaves_out_what_changes_no_number():
    config = load_config(TINY).coarse["transunet"]
    assert not {"threads", "workers", "tensorboard"} & set(config.recipe())
    assert config.recipe()["epochs"] == 2
    assert not {"momentum", "pretrained"} & set(config.recipe())
    assert "rotate_degrees" not in config.recipe()["augment"]
    plain = CoarseConfig(augment={"rotate": 0.5})
    assert {"momentum", "pretrained"} <= set(plain.recipe())
    assert plain.recipe()["augment"]["rotate_degrees"] == 20
    assert "validation" not in SplitsConfig(protocol="seed").recipe()
    assert "validation" in SplitsConfig().recipe()


def test_a_folder_listing_sees_data_but_neither_times_nor_notes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"12")
    first = folder_listing(str(tmp_path))
    (tmp_path / "a.png").touch()
    (tmp_path / "notes.txt").write_text("a note")
    (tmp_path / ".DS_Store").write_text("x")
    assert folder_listing(str(tmp_path)) == first
    (tmp_path / "a.png").write_bytes(b"21")
    assert folder_listing(str(tmp_path)) != first
    (tmp_path / "a.png").write_bytes(b"123")
    second = folder_listing(str(tmp_path))
    (tmp_path / "b.png").write_bytes(b"")
    assert len({first, second, folder_listing(str(tmp_path)), folder_listing(None)}) == 4


@pytest.mark.parametrize("name", ["a.dcm", "a.dicom", "a.IMA", "IM_0001", "1.2.840.113619.2.1"])
def test_a_folder_listing_sees_dicom_however_it_is_named(tmp_path, name):
    empty = folder_listing(str(tmp_path))
    (tmp_path / name).write_bytes(b"12")
    assert folder_listing(str(tmp_path)) != empty


def test_defaults_that_are_written_out_and_other_spellings_change_nothing():
    plain = load_study(changed(TINY))
    spelt = changed(TINY, refiners__tiny_sam__passes=1, prompts__box_loose__expand=0.2)
    spelt["refiners"]["tiny_sam"]["weights"] = "./" + spelt["refiners"]["tiny_sam"]["weights"]
    same = load_study(spelt)
    assert plain.refiner_options("tiny_sam") == same.refiner_options("tiny_sam") == {}
    assert plain.config.refiners["tiny_sam"].weights == same.config.refiners["tiny_sam"].weights
    assert (
        load_study(changed(TINY, prompts__box_loose__expand=0)).config.prompts["box_loose"]
        == load_study(changed(TINY, prompts__box_loose={"kind": "box"})).config.prompts["box_loose"]
    )


def test_a_preset_and_its_keys_are_the_same_options():
    row = {"family": "ultrasam", "weights": "own.pth", "compat": "reference"}
    study = load_study(changed(TINY, refiners__tiny_sam=row))
    options = study.refiner_options("tiny_sam")
    again = load_study(changed(TINY, refiners__tiny_sam={**row, **options}))
    assert again.refiner_options("tiny_sam") == options != {}


def test_another_file_in_the_place_of_weights_has_another_digest(tmp_path):
    path = tmp_path / "own.safetensors"
    write_tiny_sam(path, seed=1, side=256)
    first = own_weights(str(path))
    assert first == own_weights(str(path)) != "absent" == own_weights(str(tmp_path / "no.pth"))
    write_tiny_sam(path, seed=2, side=256)
    assert own_weights(str(path)) != first
    pth = tmp_path / "own.pth"
    digests = {own_weights(str(write_tiny_sam(pth, seed=seed, side=256))) for seed in (1, 2)}
    assert len(digests) == 2
    assert own_weights("sam_vit_b") is None is own_weights(None)


@pytest.mark.parametrize("name", ["config.yaml", "demo.yaml", "public_datasets.yaml"])
def test_a_configuration_with_its_defaults_written_out_is_the_same_study(name):
    """The report prints it so, to be run again."""
    values = yaml.safe_load((Path(__file__).parents[2] / "config" / name).read_text())
    study = load_study(values)
    dumped = yaml.safe_load(yaml.safe_dump(study.config.model_dump(mode="json")))
    assert load_study(dumped).config == study.config
