"""The study, the paths that several rules share, and the constraints of the wildcards."""

import json
import re
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from ultrarefiner.artefacts import unfinished_outputs
from ultrarefiner.code import ALL, made_by_other_code, write_fingerprints
from ultrarefiner.code import FOLDER as CODE
from ultrarefiner.errors import ConfigError, UltraRefinerError
from ultrarefiner.models.weights import absent_files, name_of_file
from ultrarefiner.datasets.parts import parse_part
from ultrarefiner.study import (
    entries,
    folder_listing,
    load_study,
    own_weights,
    propagation,
    require_files,
    volumes,
)

try:
    STUDY = load_study(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

if STUDY.blocked_result():
    raise WorkflowError(
        f"{STUDY.blocked_result()} is a file, and a folder of results has to stand there; move the "
        "file away"
    )

CFG = STUDY.config
RUN = CFG.run
COARSE = STUDY.coarse
SHELF = {(one.dataset, one.method.name, one.part.name): one for one in STUDY.shelf}
PARTS = sorted({part for *_, part in SHELF} | {"holdout", "unseen"})
GPU = 0 if CFG.device == "cpu" else 1
SHELF_MB = max(1, round(CFG.embeddings.limit_gb * 1000))
# Walked once, and only where a job asks: the processes of other jobs open no raw file.
LISTING = cache(folder_listing)
# Digests, so that another file in the place of one's own weights reruns their jobs.
OWN_WEIGHTS = {name: own_weights(row.weights) for name, row in CFG.refiners.items()}
OWN_REFINER_STARTS = {
    name: entries.own_refiner_starts(STUDY, name) for name in CFG.refiners
}
OWN_STARTS = {name: entries.own_starts(STUDY, name) for name in CFG.coarse}

# The processes of jobs parse this file too; their code was looked at when they were planned.
if workflow.is_main_process:
    try:
        write_fingerprints(
            Path(workflow.current_basedir.path).parent / "workflow/scripts"
        )
    except UltraRefinerError as error:
        raise WorkflowError(str(error)) from None


def any_of(names):
    """Return a wildcard constraint that matches these names and nothing else."""
    # Snakemake takes an empty constraint for none, and the group (?:) for the empty name.
    return "|".join(re.escape(str(name)) or "(?:)" for name in names) or "(?!)"


wildcard_constraints:
    run=any_of([RUN]),
    dataset=any_of(CFG.datasets),
    trainset=any_of(STUDY.trainsets),
    fold=any_of(range(CFG.splits.folds)),
    inner=any_of(range(STUDY.finetuning.inner_folds)),
    fit=any_of(["all", *(f"fold{fold}" for fold in range(CFG.splits.folds))]),
    part=any_of(PARTS),
    # A model that was trained end to end predicts as a coarse one does.
    coarse=any_of([*CFG.coarse, *STUDY.end_to_end.names]),
    # Nothing, or @ and the training set whose models are applied to another dataset.
    at=any_of(sorted({one.method.at for one in STUDY.shelf} | {""})),
    prompt=any_of(CFG.prompts),
    refiner=any_of(CFG.refiners),
    method=any_of(STUDY.applied),
    weights=any_of(STUDY.embedders),
    view=any_of(STUDY.views),


def code_of(rule):
    """Return the file with the fingerprint of the code that a rule runs; old enough, if asked."""
    path = str(CODE / rule)
    # The same input in every mode, so that going from one to another reruns nothing.
    return path if CFG.rerun_on_code_change is True else ancient(path)


def code_of_all():
    """Return the file that changes with the code of any rule, so that the report tells of it."""
    path = str(CODE / ALL)
    return ancient(path) if CFG.rerun_on_code_change is False else path


def tell_of_other_code():
    """Say how many finished results other code made, if the study does not say what to do."""
    if CFG.rerun_on_code_change != "warn":
        return
    counts = made_by_other_code(Path("results") / RUN).changed
    if counts:
        named = ", ".join(f"{rule} {count}" for rule, count in counts.items())
        logger.warning(
            f"Finished results that older code made: {named}. Set rerun_on_code_change: true to "
            "make them again."
        )


def raw_input(wildcards):
    """Return the phantom folder of a synthetic dataset; a real one is no file of the workflow."""
    if CFG.datasets[wildcards.dataset].phantom is None:
        return []
    return f"results/{wildcards.run}/{wildcards.dataset}/phantom"


def raw_root(wildcards):
    """Return the folder that holds a dataset's raw files."""
    return CFG.datasets[wildcards.dataset].root or raw_input(wildcards)


def raw_listing(wildcards):
    """Return a digest of a real dataset's files, so that changed files rerun its jobs."""
    return LISTING(CFG.datasets[wildcards.dataset].root)


def study_dump():
    """Return the whole configuration, defaults included, in an order that edits do not change."""
    return json.loads(json.dumps(CFG.model_dump(mode="json"), sort_keys=True))


def predicting(wildcards):
    """Return the row of the model that predicts, a coarse or an end-to-end one."""
    return STUDY.predicting(wildcards.coarse)


def training_params(wildcards):
    """Return what a trained model depends on; threads and the like leave the numbers alone."""
    return CFG.coarse[wildcards.coarse].recipe()


def pretrained_weights(wildcards):
    """Return the file that a model's training starts from, if it has one."""
    return STUDY.pretrained_files(wildcards.coarse)


def finetuned_file(wildcards, refiner, name):
    """Return a file of the finetuned model that refines a part; None: it is not finetuned."""
    at, part = wildcards.get("at", ""), parse_part(wildcards.part)
    try:
        return STUDY.finetuning.model(refiner, wildcards.dataset, at, part, name)
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


def refiner_model(wildcards):
    """Return the weights that refine a part: those of the study, or the row's, by name or path."""
    own = finetuned_file(wildcards, wildcards.refiner, "model.safetensors")
    return own or CFG.refiners[wildcards.refiner].weights


def refiner_weights(wildcards):
    """Return the weights file that refines a part, if there is one."""
    own = finetuned_file(wildcards, wildcards.refiner, "model.safetensors")
    return own or STUDY.weights_file(wildcards.refiner) or []


def refiner_card(wildcards):
    """Return the card of the finetuned model that refines a part, if it is one."""
    return finetuned_file(wildcards, wildcards.refiner, "card.json") or []


def embedder_model(wildcards):
    """Return the weights that make an embedding: those of the study, or a row's."""
    refiner = STUDY.embedders[wildcards.weights]
    if not STUDY.finetuning.changes_encoder(refiner):
        return CFG.refiners[refiner].weights
    return finetuned_file(wildcards, refiner, "model.safetensors")


def embedder_weights(wildcards):
    """Return the weights file that makes an embedding."""
    refiner = STUDY.embedders[wildcards.weights]
    if not STUDY.finetuning.changes_encoder(refiner):
        return STUDY.weights_file(refiner) or []
    return finetuned_file(wildcards, refiner, "model.safetensors")


def full_index(wildcards):
    """Return the indices of full images that an embedding job waits for, as it may share files."""
    view, part = STUDY.views[wildcards.view], parse_part(wildcards.part)
    at, name = wildcards.at, wildcards.weights
    return STUDY.shared_indices(name, view, wildcards.dataset, at, part)


def study_weights(wildcards):
    """Return every weights file of the study."""
    files = [STUDY.weights_file(name) for name in CFG.compare.refine]
    files += [path for name in COARSE for path in STUDY.pretrained_files(name)]
    files += [
        path
        for name in CFG.compare.refine
        for path in STUDY.finetuning.branch_files(name)
    ]
    return sorted({name for name in files if name})


def part_table(wildcards):
    """Return the table that tells the cases of a part, or of an ensemble."""
    part = wildcards.get("part") or wildcards.cases
    return f"results/{wildcards.run}/{wildcards.dataset}/{entries.table_name(part)}.csv"


def trainset_of(wildcards):
    """Return what the models were trained on that a path's `at` stands for."""
    return wildcards.at[1:] or wildcards.dataset


def model_file(name):
    """Return a function that gives a file of the model which predicts a part."""
    return lambda wildcards: (
        f"results/{wildcards.run}/{trainset_of(wildcards)}/models/{wildcards.coarse}/"
        f"fold{parse_part(wildcards.part).fold}/{name}"
    )


def member_files(name):
    """Return a function that lists one file of each model of an ensemble."""
    return lambda wildcards: [
        f"results/{wildcards.run}/{trainset_of(wildcards)}/models/{wildcards.coarse}/"
        f"fold{fold}/{name}"
        for fold in STUDY.folds
    ]


def member_folders(shelf):
    """Return a function that lists the folders that the models of an ensemble filled."""
    return lambda wildcards: [
        f"results/{wildcards.run}/{wildcards.dataset}/{shelf}/{wildcards.coarse}{wildcards.at}/"
        f"{wildcards.cases}-fold{fold}"
        for fold in STUDY.folds
    ]


def trained_files(name):
    """Return a function that lists one prepared file or folder of each dataset of a union."""
    return lambda wildcards: [
        f"results/{wildcards.run}/{dataset}/prepared/{name}"
        for dataset in STUDY.trainsets[wildcards.trainset]
    ]


def inner_files(name):
    """Return a function that lists a file or folder of each model that predicts for a training."""
    return lambda wildcards: STUDY.finetuning.inner(
        wildcards.trainset, wildcards.refiner, wildcards.fit, name
    )


def coarse_masks(wildcards, shelf="masks"):
    """Return the folder of the reference's masks or probabilities on a part."""
    return (
        f"results/{wildcards.run}/{wildcards.dataset}/{shelf}/"
        f"{STUDY.reference}{wildcards.at}/{wildcards.part}"
    )


def prompt_masks(wildcards):
    """Return the masks that a prompt mode is made from: the coarse shelf, or the truth."""
    base = f"results/{wildcards.run}/{wildcards.dataset}"
    if CFG.prompts[wildcards.prompt].oracle:
        return f"{base}/prepared/masks"
    return f"{base}/masks/{wildcards.coarse}{wildcards.at}/{wildcards.part}"


def soft_masks(wildcards):
    """Return the masks that a mask prompt carries: probabilities, or the truth."""
    if CFG.prompts[wildcards.prompt].oracle:
        return f"results/{wildcards.run}/{wildcards.dataset}/prepared/masks"
    return coarse_masks(wildcards, "probabilities")


def view_masks(wildcards):
    """Return the masks around which a view is cut: the coarse shelf, the truth, or none."""
    view = STUDY.views[wildcards.view]
    if view.window is None:
        return []
    if view.oracle:
        return f"results/{wildcards.run}/{wildcards.dataset}/prepared/masks"
    return coarse_masks(wildcards)


def view_window(wildcards):
    """Return what the windows of a view depend on beside the masks; None for full images."""
    window = STUDY.views[wildcards.view].window
    return None if window is None else window.model_dump()


def index_of(wildcards, view):
    """Return the index of the embeddings of a view on a part, if the refiner has any."""
    at, part = wildcards.get("at", ""), parse_part(wildcards.part)
    return STUDY.index(wildcards.refiner, view, wildcards.dataset, at, part) or []


def embeddings_index(wildcards):
    """Return the index of the embeddings that a refiner uses in a prompt mode, if it has any."""
    return index_of(wildcards, STUDY.view_of(wildcards.prompt))


def shelf_files(wildcards, pattern):
    """Return one path for each folder of masks of the study."""
    return [
        pattern.format(run=wildcards.run, dataset=dataset, method=method, part=part)
        for dataset, method, part in SHELF
    ]


def score_tables(wildcards):
    """Return every score table of the study."""
    return shelf_files(wildcards, "results/{run}/{dataset}/scores/{method}/{part}.csv")


def shelved(wildcards):
    """Return the folder of masks that a path's dataset, method and part stand for."""
    return SHELF[wildcards.dataset, wildcards.method, wildcards.part]


def calibrated_parts(wildcards):
    """Return the parts on which the probabilities of a model are judged, and their files."""
    name = f"{wildcards.coarse}{wildcards.at}"
    return entries.calibrated_parts(STUDY, wildcards.dataset, name)


def calibration_inputs(wildcards):
    """Return the folders and tables that the calibration of a model is measured on."""
    rows = calibrated_parts(wildcards)
    return sorted({row[key] for row in rows for key in ("table", "probabilities")})


def full_embeddings(wildcards):
    """Return the index of the full images' embeddings of a part, if the refiner has any."""
    return index_of(wildcards, STUDY.full_view)


def point_analysis(wildcards):
    """Return what the analysis of points depends on beside the refiner."""
    keys = CFG.points.model_dump(include={"sigmas", "draws", "seed"})
    method = next(
        one for one in STUDY.methods.values() if one.refiner == wildcards.refiner
    )
    return keys | {"seen": STUDY.seen(method, wildcards.dataset)}


def point_tables(wildcards):
    """Return every table of the analysis of points."""
    return [
        f"results/{wildcards.run}/{dataset}/points/{refiner}/fold{fold}.csv"
        for dataset, row in CFG.datasets.items()
        for refiner in (CFG.points.refiners if CFG.points else [])
        for fold in STUDY.folds
        if row.role == "train"
    ]


def points_summary(wildcards):
    """Return the summary of the analysis of points, if the study asks for it."""
    return f"results/{wildcards.run}/report/points.csv" if CFG.points else []


def curation_input(wildcards):
    """Return a dataset's curation file, if it has one; `require_files` tells of an absent one."""
    path = CFG.datasets[wildcards.dataset].curation
    return path if path and Path(path).is_file() else []


def each_dataset(pattern):
    """Return one path for each dataset of the study; {run} stays a wildcard."""
    return expand(pattern, dataset=list(CFG.datasets), allow_missing=True)


def unfinished(wildcards):
    """Return what jobs began to make and did not finish; Snakemake may not miss it."""
    paths = unfinished_outputs(f"results/{RUN}")
    return [
        path for path in paths if any(one.is_producer(path) for one in workflow.rules)
    ]
