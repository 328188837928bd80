"""Guards that a method is taken from a run whole, or packed as a folder that needs no run."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.deploy_fixture import CASES, CONFIG, image_of, make_run, write_study
from ultrarefiner.cli import app
from ultrarefiner.deploy.bundle import bundle_of_run, read_bundle, read_study, write_bundle
from ultrarefiner.deploy.papers import licence_text
from ultrarefiner.deploy.pipeline import open_method
from ultrarefiner.errors import ConfigError, SplitError, UltraRefinerError, WeightsError
from ultrarefiner.images import write_png
from ultrarefiner.io import file_sha256, read_json, write_json, write_rows
from ultrarefiner.models.weights import WEIGHTS
from ultrarefiner.refine import load_refiner

METHODS = ["tiny", "tiny-tuned", "grabcut-mask", "small-crop", "tuned-box", "whole-box"]


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study."""
    return make_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def own_run(run, tmp_path):
    """Return a copy of it, to be damaged."""
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("resume", "shelf"))
    return tmp_path / "run"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Return the folder of each method."""
    base = tmp_path_factory.mktemp("exported")
    for method in METHODS:
        write_bundle(bundle_of_run(run / "results", "tiny", method), base / method)
    return base


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def models(run):
    return run / "results" / "tiny" / "toy" / "models"


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_method_predicts_the_same_bytes(run, exported, tmp_path, method):
    for case in CASES[:2]:
        write_png(tmp_path / "images" / f"{case}.png", image_of(run, case))
    common = ["predict", tmp_path / "images", "--device", "cpu"]
    of_run = ["--results", run / "results", "--run", "tiny", "--method", method]
    for name, source in (("run", of_run), ("folder", ["--model", exported / method])):
        result = call(*common, *source, "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
    found = {
        name: {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in sorted((tmp_path / name).rglob("*"))
            if path.is_file() and path.name != "predict.json"
        }
        for name in ("run", "folder")
    }
    assert len(found["run"]) == 1 + 2 * 4
    assert found["run"] == found["folder"]


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_method_is_the_one_of_the_run(run, exported, method):
    bundle, packed = bundle_of_run(run / "results", "tiny", method), read_bundle(exported / method)
    assert packed.fingerprint() == bundle.fingerprint()
    plain = {"root", "members", "refiner", "preprocessing"}
    assert packed.model_dump(exclude=plain) == bundle.model_dump(exclude=plain)
    for (what, file), (same, other) in zip(packed.files(), bundle.files(), strict=True):
        assert (what, file.sha256) == (same, other.sha256)
        assert packed.path(file).read_bytes() == bundle.path(other).read_bytes()
    there = {path for path in (exported / method).rglob("*") if path.is_file()}
    papers = {exported / method / name for name in ("method.json", "README.md", "LICENCE.md")}
    assert there == papers | {packed.path(file) for _, file in packed.files()}


def test_a_packed_folder_needs_neither_the_run_nor_its_place(exported, tmp_path, monkeypatch):
    shutil.copytree(exported / "tuned-box", tmp_path / "moved")
    text = (tmp_path / "moved" / "method.json").read_text()
    assert str(exported.parent) not in text and "/results/" not in text
    monkeypatch.chdir(tmp_path)
    said = open_method(read_bundle("moved"), "cpu").predict(np.full((40, 50, 3), 100, np.uint8))
    assert said.mask.shape == (40, 50)


def test_the_description_tells_other_programs_what_they_need(exported):
    content = json.loads((exported / "small-crop" / "method.json").read_text())
    model = content["preprocessing"]["model"]
    assert model["input_height_width"] == [[32, 32]]
    assert (model["threshold"], model["flips"]) == (0.5, True)
    assert content["refiner"]["prompt"]["kind"] == "both"
    assert content["refiner"]["prompt"]["crop"]["min_size"] == 24
    assert content["refiner"]["options"] == {}, "moved copies of prompts change no mask"
    assert content["preprocessing"]["refiner"]["mean"] == [123.675, 116.28, 103.53]
    assert (
        "refiner"
        not in json.loads((exported / "grabcut-mask/method.json").read_text())["preprocessing"]
    )
    tuned = json.loads((exported / "tiny-tuned" / "method.json").read_text())
    own = [member["threshold"] for member in tuned["members"]]
    assert tuned["preprocessing"]["model"]["threshold"] == pytest.approx(np.mean(own))


def test_the_refiner_of_all_folds_is_not_the_one_it_began_as(run, exported):
    bundle = read_bundle(exported / "whole-box")
    assert bundle.refiner.weights.sha256 == file_sha256(models(run) / "whole/all/model.safetensors")
    assert bundle.refiner.card is not None and not bundle.refines_each
    small = read_bundle(exported / "small-crop")
    assert small.refiner.weights.path == "refiners/small/tiny.safetensors"
    image, predictor = image_of(run, CASES[0]), open_method(bundle, "cpu")
    weights = str(models(run) / "whole/all/model.safetensors")
    embedding = load_refiner("sam", weights).embed(image)
    assert np.array_equal(predictor.interactive().embed(image).features, embedding.features)


def test_a_fold_can_be_packed_alone(run, tmp_path):
    result = call(
        "export", "--results", run / "results", "--run", "tiny", "--method", "tuned-box",
        "--fold", 1, "-o", tmp_path / "one",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "tuned-box, trained on toy, folds 1" in result.stdout and "LICENCE.md" in result.stdout
    bundle = read_bundle(tmp_path / "one")
    assert bundle.folds == [1]
    assert (
        bundle.fingerprint()
        == bundle_of_run(run / "results", "tiny", "tuned-box", fold=1).fingerprint()
    )


@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_folder_is_refused_by_file(exported, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(exported / "tuned-box", folder)
    targets = [
        folder / "models/tiny/fold1/model.safetensors",
        folder / "refiners/tuned/fold0/card.json",
    ]
    for path in targets:
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(UltraRefinerError, match="cannot be used") as error:
        read_bundle(folder)
    for path in targets:
        assert path.relative_to(folder).as_posix() in str(error.value)
    assert ("is not there" if damage == "gone" else "damaged or another file") in str(error.value)


def test_a_damaged_description_is_refused(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported / "tiny", folder)
    path = folder / "method.json"
    sound = path.read_text()
    content = json.loads(sound)
    member = content["members"][0]
    absolute = member | {"model": member["model"] | {"path": str(folder / member["model"]["path"])}}
    outside = member | {"card": member["card"] | {"path": "models/../../x.json"}}
    for text, says in (
        (sound[:100], "cannot be read"),
        ("[]", "not what this version writes"),
        (json.dumps(content | {"format": 2}), "format"),
        (json.dumps(content | {"members": []}), "members"),
        (json.dumps(content | {"surprise": 1}), "surprise"),
        (json.dumps(content | {"members": [absolute]}), "outside of the folder"),
        (json.dumps(content | {"members": [outside]}), "outside of the folder"),
    ):
        path.write_text(text)
        with pytest.raises(UltraRefinerError, match=says):
            read_bundle(folder)
    path.unlink()
    with pytest.raises(UltraRefinerError, match=r"holds no method\.json"):
        read_bundle(folder)


def test_nothing_is_written_over_and_nothing_half_written_stays(own_run, tmp_path):
    bundle = bundle_of_run(own_run / "results", "tiny", "tiny")
    (tmp_path / "there").mkdir()
    with pytest.raises(UltraRefinerError, match="exists; name a folder that does not"):
        write_bundle(bundle, tmp_path / "there")
    path = models(own_run) / "tiny/fold1/model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UltraRefinerError, match="has changed while it was copied"):
        write_bundle(bundle, tmp_path / "new")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "there"]


def test_models_that_are_not_there_are_all_named(own_run):
    for fold in (0, 1):
        (models(own_run) / f"tiny/fold{fold}/model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"2 of 2 .*fold0.*fold1.*Run `snakemake`"):
        bundle_of_run(own_run / "results", "tiny", "small-box")
    shutil.rmtree(models(own_run) / "tuned")
    with pytest.raises(WeightsError, match="models are not there"):
        bundle_of_run(own_run / "results", "tiny", "tuned-box")


def test_files_that_do_not_belong_together_are_refused(own_run):
    folder = models(own_run)
    shutil.copy(folder / "tuned/fold0/model.safetensors", folder / "tuned/fold1/model.safetensors")
    with pytest.raises(WeightsError, match=r"fold1/model\.safetensors is not the file that"):
        bundle_of_run(own_run / "results", "tiny", "tuned-box")
    shutil.copy(folder / "tiny/fold0/card.json", folder / "tiny/fold1/card.json")
    with pytest.raises(SplitError, match="is of fold 0, and fold 1"):
        bundle_of_run(own_run / "results", "tiny", "tiny")
    assert bundle_of_run(own_run / "results", "tiny", "tiny", fold=0).folds == [0]


def test_a_threshold_that_is_not_there_is_missed_only_where_it_counts(own_run):
    (models(own_run) / "tiny/fold1/threshold.json").unlink()
    assert bundle_of_run(own_run / "results", "tiny", "tiny").threshold == 0.5
    with pytest.raises(ConfigError, match="fold 1 has no threshold of its own"):
        bundle_of_run(own_run / "results", "tiny", "tiny-tuned").threshold  # noqa: B018


def test_weights_of_a_study_are_found_beside_its_results(own_run, monkeypatch):
    monkeypatch.chdir(own_run)
    near = bundle_of_run("results", "tiny", "small-box")
    assert near.refiner.weights.path == "own/tiny.safetensors"
    monkeypatch.chdir(own_run.parent)
    far = bundle_of_run(own_run / "results", "tiny", "small-box")
    assert far.fingerprint() == near.fingerprint()
    (own_run / "own/tiny.safetensors").unlink()
    with pytest.raises(WeightsError, match="no such weights file"):
        bundle_of_run(own_run / "results", "tiny", "small-box")


def test_a_run_that_is_not_finished_says_so(tmp_path):
    (tmp_path / "results" / "half").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"study\.json is not there: the run is not finished"):
        read_study(tmp_path / "results", "half")
    write_json(tmp_path / "results" / "half" / "study.json", {"format": 1})
    with pytest.raises(ConfigError, match="holds no study"):
        read_study(tmp_path / "results", "half")


def test_wrong_names_are_answered_without_loading_torch(run):
    code = (
        "import sys\nfrom ultrarefiner.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    status = end.code\n"
        "sys.exit(10 * status + ('torch' in sys.modules))"
    )
    command = ["predict", "x.png", "-o", "out", "--run", "tiny", "--method", "nothing"]
    result = subprocess.run(
        [sys.executable, "-c", code, *command, "--results", str(run / "results")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 10, result.stderr
    assert "unknown method 'nothing'" in result.stderr


def test_the_papers_tell_what_it_is_and_on_whose_terms(run, exported, tmp_path):
    readme = (exported / "tuned-box" / "README.md").read_text()
    for part in (
        "ultrarefiner predict",
        "folds 0, 1",
        "5 cases",
        "2 cases",
        "not a medical device",
    ):
        assert part.casefold() in readme.casefold(), part
    card = read_json(models(run) / "tiny/fold0/card.json")
    assert f"{card['metrics']['dice']:.3f}" in readme and card["weights_sha256"] in readme
    licence = (exported / "tuned-box" / "LICENCE.md").read_text()
    assert card["licence"] in licence and "Restricted" not in licence
    assert "For research" in licence and "BUSI" in licence
    bundle = bundle_of_run(run / "results", "tiny", "small-box")
    assert "weights of the user's own" in licence_text(bundle)
    bound = bundle.model_copy(update={"published": ["ultrasam"]})
    for part in ("**Restricted use**", "CC-BY-NC-SA-4.0", WEIGHTS["ultrasam"].citation):
        assert part in licence_text(bound)


def test_the_papers_have_the_scores_of_the_study(own_run, tmp_path):
    columns = [
        *("dataset", "evaluation", "method", "trained_on", "seen", "selection", "subgroup"),
        *("fold", "metric", "n", "mean", "ci_low", "ci_high"),
    ]
    row = dict.fromkeys(columns, "all") | {
        "dataset": "toy", "evaluation": "folds", "method": "tiny", "trained_on": "toy",
        "metric": "dice", "n": 10, "mean": 0.8125, "ci_low": 0.7, "ci_high": "",
    }  # fmt: skip
    others = [{"method": "tiny-tuned"}, {"fold": "0"}, {"evaluation": "unseen"}]
    others += [{"subgroup": "benign"}, {"trained_on": "x"}]
    rows = [row, *(row | one | {"mean": 0.3} for one in others)]
    write_rows(own_run / "results/tiny/report/summary.csv", columns, rows)
    write_bundle(bundle_of_run(own_run / "results", "tiny", "tiny"), tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| toy | dice | 10 | 0.812 | 0.700 to – | all |" in readme
    assert "0.300" not in readme
    assert [one["mean"] for one in read_bundle(tmp_path / "out").reported] == ["0.8125"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give MODEL, a weights file, or --run and --method"),
        (["x.pth", "--run", "tiny"], "MODEL and --run exclude each other"),
        (["x.pth", "--onnx"], "MODEL and --onnx exclude each other"),
        (["x.pth", "--fold", "0"], "MODEL and --fold exclude each other"),
        (["--run", "tiny", "--method", "tiny", "--layout", "sam"], "--run and --layout exclude"),
        (["--method", "tiny"], "--run is missing"),
        (["--run", "tiny"], "--method is missing"),
        (["--run", "tiny", "--method", "small-oracle_box"], "is an oracle"),
    ],
)
def test_contradictory_exports_are_refused(run, tmp_path, arguments, says):
    result = call("export", *arguments, "--results", run / "results", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert says in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


def test_one_weights_file_still_becomes_a_plain_checkpoint(run, tmp_path):
    weights = run / "own" / "tiny.safetensors"
    result = call("export", weights, "-o", tmp_path / "plain.pth")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path}/plain.pth: layout sam" in result.stdout
    first, second = (load_refiner("sam", str(path)) for path in (weights, tmp_path / "plain.pth"))
    image = image_of(run, CASES[0])
    assert np.array_equal(first.embed(image).features, second.embed(image).features)
    result = call("export", weights, "-o", tmp_path / "plain.pth")
    assert result.exit_code == 1 and "exists" in result.stderr


def test_a_study_of_this_version_is_read_back_with_all_its_keys(tmp_path):
    write_study(tmp_path)
    config = read_study(tmp_path / "results", "tiny")
    write_study(tmp_path / "again", config.model_dump(mode="json"))
    assert read_study(tmp_path / "again" / "results", "tiny") == config
    assert list(config.prompts) == list(CONFIG["prompts"])


def test_onnx_files_can_be_asked_for(run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    # What torch makes of a network takes seconds, and is the matter of test_onnx_folder.py.
    monkeypatch.setattr("ultrarefiner.deploy.onnx.write_onnx", lambda *a: a[-1].write_text("net"))
    result = call(
        "export", "--results", run / "results", "--run", "tiny", "--method", "tiny", "--fold", 0,
        "--onnx", "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "onnx" / "tiny-fold0.onnx").is_file()
    assert "`onnx/`" in (tmp_path / "out" / "README.md").read_text()
    assert read_bundle(tmp_path / "out").folds == [0]
    assert not list(tmp_path.glob(".partial*"))
