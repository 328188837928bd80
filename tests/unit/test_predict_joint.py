"""Guards that end-to-end and guarded methods give new images the masks of the study, too."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.deploy_fixture import CASES, FOLDS, GUARDS, image_of, make_run, shelved
from ultrarefiner.cli import app
from ultrarefiner.deploy import predicted as words
from ultrarefiner.deploy.bundle import bundle_of_run, read_bundle, write_bundle
from ultrarefiner.deploy.pipeline import open_method
from ultrarefiner.errors import ConfigError, UltraRefinerError, WeightsError
from ultrarefiner.images import read_mask, write_png
from ultrarefiner.io import read_json, read_rows
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.refine.guard import guard_mask, joint_rule
from ultrarefiner.refine.guard_jobs import read_rule

JOINT = ["joint", "joint-tuned", "joint-coarse", "joint-guarded", "tuned-box-guarded"]


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """Return the folder of a finished study."""
    return make_run(tmp_path_factory.getbasetemp())


def opened(run, method, fold=None, **options):
    return open_method(bundle_of_run(run / "results", "tiny", method), "cpu", fold, **options)


def rules(run, method):
    folder = run / "results" / "tiny" / "toy" / "guards" / method
    return [read_rule(folder / f"fold{fold}.json").rule for fold in FOLDS]


def with_rule(folder, method, **limits):
    """Write the limits into the rules of a method, in a copy of a run."""
    for path in (folder / "results/tiny/toy/guards" / method).glob("*.json"):
        content = json.loads(path.read_text())
        content["rule"] |= limits
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("method", JOINT)
def test_a_prepared_case_gets_the_mask_of_the_study(run, method, fold):
    folder, predictor = shelved(run, method, fold), opened(run, method, fold)
    for case in FOLDS[fold]["test"]:
        said = predictor.predict(image_of(run, case), case)
        wanted = read_mask(folder / f"{case}.png")
        assert wanted.any()
        assert np.array_equal(said.mask, wanted)
        if method == "joint-coarse":
            assert said.coarse is None and said.score is None
        else:
            last = "tiny" if method.endswith("guarded") else "joint-coarse"
            coarse = read_mask(shelved(run, last, fold) / f"{case}.png")
            assert np.array_equal(said.coarse, coarse)
        if method.endswith("guarded"):
            table = {row["case"]: row for row in read_rows(folder.with_suffix(".csv"))}
            rejected = table[case]["verdict"].startswith("rejected")
            assert (words.REJECTED in said.warnings) == rejected
            assert (said.score is None) == rejected


def test_the_folds_of_an_end_to_end_model_decide_together(run):
    image = image_of(run, CASES[0])
    members = [opened(run, "joint", fold).predict(image) for fold in FOLDS]
    said = opened(run, "joint").predict(image)
    mean = np.mean([one.probability for one in members], axis=0, dtype=np.float64)
    assert np.array_equal(said.probability, mean.astype(np.float32))
    assert np.array_equal(said.mask, said.probability >= 0.5)
    assert said.score == pytest.approx(np.mean([one.score for one in members]))
    inner = opened(run, "joint-coarse").predict(image)
    assert np.array_equal(said.coarse, inner.mask)
    assert inner.warnings == words.find_warnings(inner.mask, None, inner.agreement)


def test_its_refiner_can_be_prompted_by_hand(run):
    image = image_of(run, CASES[0])
    refiner = opened(run, "joint").interactive()
    mask = refiner.refine(refiner.embed(image), Prompt(box=(5, 5, 40, 30))).mask
    assert mask.shape == image.shape[:2]


@pytest.mark.parametrize("method", GUARDS)
def test_folds_together_are_guarded_by_their_joint_rule(run, method):
    image = image_of(run, CASES[0])
    refined, coarse = opened(run, method).predict(image), opened(run, "tiny").predict(image)
    wanted = guard_mask(coarse.mask, refined.mask, joint_rule(rules(run, method)))
    said = opened(run, f"{method}-guarded").predict(image)
    assert np.array_equal(said.mask, wanted.mask)
    assert np.array_equal(said.coarse, coarse.mask)
    assert said.agreement == refined.agreement


@pytest.mark.parametrize("method", GUARDS)
def test_what_a_guard_rejects_is_the_coarse_model_s(run, tmp_path, method):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("resume", "shelf"))
    image = image_of(run, CASES[0])
    coarse, refined = opened(run, "tiny").predict(image), opened(run, method).predict(image)
    assert not np.array_equal(coarse.mask, refined.mask)
    with_rule(tmp_path / "run", method, min_iou=1.0, band=None)
    said = opened(tmp_path / "run", f"{method}-guarded").predict(image)
    assert np.array_equal(said.mask, coarse.mask) and said.score is None
    assert np.array_equal(said.probability, coarse.probability)
    assert words.REJECTED in said.warnings and words.CHANGED not in said.warnings
    with_rule(tmp_path / "run", method, min_iou=None, band=None)
    said = opened(tmp_path / "run", f"{method}-guarded").predict(image)
    assert np.array_equal(said.mask, refined.mask) and said.score == refined.score
    assert np.array_equal(said.probability, refined.probability)
    assert words.REJECTED not in said.warnings
    with_rule(tmp_path / "run", method, min_iou=None, band=0.02)
    fused = opened(tmp_path / "run", f"{method}-guarded").predict(image)
    assert not np.array_equal(fused.mask, refined.mask)
    changed = fused.mask != refined.mask
    assert np.array_equal(fused.probability[changed], coarse.probability[changed])
    assert np.array_equal(fused.probability[~changed], refined.probability[~changed])
    assert fused.score == refined.score


@pytest.mark.parametrize(
    "method", ["joint-tuned", "joint-coarse", "joint-guarded", "tuned-box-guarded"]
)
def test_a_packed_method_is_the_one_of_the_run(run, tmp_path, method):
    write_png(tmp_path / "images" / "a.png", image_of(run, CASES[0]))
    bundle = bundle_of_run(run / "results", "tiny", method)
    packed = write_bundle(bundle, tmp_path / "packed")
    assert read_bundle(tmp_path / "packed") == packed
    assert packed.fingerprint() == bundle.fingerprint()
    of_run = ["--results", run / "results", "--run", "tiny", "--method", method]
    for name, source in (("run", of_run), ("folder", ["--model", tmp_path / "packed"])):
        command = [
            "predict",
            tmp_path / "images",
            "-o",
            tmp_path / name,
            "--device",
            "cpu",
            *source,
        ]
        result = CliRunner().invoke(app, [str(part) for part in command])
        assert result.exit_code == 0, result.output
    for one in ("masks", "probabilities", "overlays"):
        first, second = (tmp_path / name / one / "a.png" for name in ("run", "folder"))
        assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "run/predictions.csv").read_bytes() == (
        tmp_path / "folder/predictions.csv"
    ).read_bytes()
    files = {one["sha256"] for one in read_json(tmp_path / "run/predict.json")["models"]}
    assert {file.sha256 for _, file in packed.files()} == files
    readme = (tmp_path / "packed" / "README.md").read_text()
    assert ("guard" in readme) == method.endswith("guarded")
    assert "end to end" in readme or "trained as one" in readme or method.startswith("tuned")


def test_a_threshold_has_no_meaning_for_a_guard(run):
    with pytest.raises(
        ConfigError, match=r"guard of joint-guarded was chosen for masks cut at 0\.5"
    ):
        opened(run, "joint-guarded", threshold=0.4)
    image = image_of(run, CASES[0])
    said = opened(run, "joint", threshold=0.3).predict(image)
    assert np.array_equal(said.mask, said.probability >= np.float32(0.3))


def test_files_that_are_absent_or_another_one_s_are_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("resume", "shelf"))
    toy = tmp_path / "run" / "results" / "tiny" / "toy"
    (toy / "guards/joint/fold1.json").unlink()
    with pytest.raises(UltraRefinerError, match=r"guards/joint/fold1\.json"):
        bundle_of_run(tmp_path / "run" / "results", "tiny", "joint-guarded")
    sam = toy / "models/joint/fold1/refiner.safetensors"
    sam.write_bytes(sam.read_bytes() + b"x")
    with pytest.raises(WeightsError, match=r"fold1/refiner\.safetensors is not the file"):
        bundle_of_run(tmp_path / "run" / "results", "tiny", "joint")
    shutil.rmtree(toy / "models" / "tiny")
    with pytest.raises(WeightsError, match=r"2 of 4 models .*tiny/fold0"):
        bundle_of_run(tmp_path / "run" / "results", "tiny", "joint-guarded")


def test_fingerprints_tell_apart_what_differs_in_one_file(run):
    methods = ["joint", *JOINT, "tuned-box", "tiny"]
    prints = {name: bundle_of_run(run / "results", "tiny", name).fingerprint() for name in methods}
    assert len(set(prints.values())) == len(prints)
