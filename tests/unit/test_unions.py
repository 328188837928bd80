"""Guards training on unions: cases are found in their own datasets, cards name all they have seen."""

import shutil

import pytest

from tests.training_fixture import make_study, outputs, tiny_config, write_splits
from ultrarefiner.errors import DatasetError, LeakError
from ultrarefiner.io import file_sha256, read_json
from ultrarefiner.training.checkpoint import read_card
from ultrarefiner.training.coarse import train_coarse
from ultrarefiner.training.data import CoarseData, PreparedCases
from ultrarefiner.training.prediction import choose_threshold, predict_coarse

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def union(tmp_path_factory):
    """Make two datasets and the splits of their union; return (folder, prepared, roles)."""
    folder = tmp_path_factory.mktemp("union")
    studies = [make_study(folder / name, dataset=name) for name in ("bus", "busi")]
    roles = {
        role: [case for study in studies for case in study[2][role]]
        for role in ("train", "validation", "test")
    }
    write_splits(folder / "splits.csv", roles)
    return folder, [study[0] for study in studies], roles


def train_union(union, folder, prepared=None):
    train_coarse(
        tiny_config(epochs=1),
        name="tiny",
        trainset="all",
        prepared=union[1] if prepared is None else prepared,
        splits=union[0] / "splits.csv",
        fold=0,
        protocol="nested",
        device="cpu",
        **outputs(folder),
    )
    return folder


@pytest.fixture(scope="module")
def trained(union, tmp_path_factory):
    return train_union(union, tmp_path_factory.mktemp("model"))


def test_the_card_names_the_trainset_and_the_cases_of_every_member(union, trained):
    card = read_card(trained / "card.json")
    roles = union[2]
    assert card["dataset"] == "all"
    assert card["trained_on"] == roles["train"]
    assert card["selected_on"] == roles["validation"]
    assert {case.split("__")[0] for case in card["trained_on"]} == {"bus", "busi"}
    assert card["licence"] == "dataset bus: see its terms; dataset busi: see its terms"


def test_where_the_cases_lie_does_not_change_the_numbers(union, trained, tmp_path):
    together = tmp_path / "all" / "prepared"
    for folder in union[1]:
        shutil.copytree(folder, together, dirs_exist_ok=True)
    for prepared in (union[1][::-1], together, [str(together)]):
        again = train_union(union, tmp_path / str(len(list(tmp_path.iterdir()))), prepared)
        name = "model.safetensors"
        assert file_sha256(again / name) == file_sha256(trained / name)


def test_a_union_is_scored_on_each_member_and_on_no_case_that_it_trained_on(
    union, trained, tmp_path
):
    folder, prepared, roles = union
    files = {"model": trained / "model.safetensors", "card": trained / "card.json"}
    choose_threshold(
        **files,
        prepared=prepared,
        splits=folder / "splits.csv",
        fold=0,
        flips=False,
        output=tmp_path / "t.json",
        device="cpu",
    )
    assert read_json(tmp_path / "t.json")["cases"] == len(roles["validation"])

    def predict(splits, member):
        predict_coarse(
            **files,
            threshold=tmp_path / "t.json",
            prepared=prepared[member],
            splits=splits,
            part="fold0",
            protocol="nested",
            flips=False,
            masks=tmp_path / "masks",
            tuned=tmp_path / "tuned",
            probabilities=tmp_path / "soft",
            device="cpu",
        )

    for member, name in enumerate(("bus", "busi")):
        own = [case for case in roles["test"] if case.startswith(f"{name}__")]
        predict(folder / name / "splits.csv", member)
        assert sorted(path.stem for path in (tmp_path / "masks").iterdir()) == own
    # A fold that is not consistent with the union's: one of its test cases trains there.
    leaky = {"train": ["bus__9"], "test": ["bus__1"]}
    write_splits(tmp_path / "splits.csv", leaky)
    with pytest.raises(LeakError, match=r"all/tiny of fold 0 was trained on 1 of the 1.*bus__1"):
        predict(tmp_path / "splits.csv", 0)


def test_a_case_of_another_dataset_is_named(union):
    source = PreparedCases(union[1])
    with pytest.raises(DatasetError, match=r"busbra__1 is of dataset 'busbra'.*bus, busi"):
        source.read("busbra__1")
    # A dataset's name may begin with another's.
    assert source.folder("busi__0") == union[1][1]
    assert source.folder("bus__0") == union[1][0]
    with pytest.raises(DatasetError, match=r"two folders .* are of one dataset"):
        PreparedCases([union[1][0], str(union[1][0])])


def test_sizes_are_of_the_images(union):
    source = PreparedCases(union[1])
    cases = union[2]["train"]
    data = CoarseData.read(union[1], cases, 32)
    assert source.sizes(cases) == [truth.shape for truth in data.truths]
    assert len({tuple(size) for size in source.sizes(cases)}) > 1
