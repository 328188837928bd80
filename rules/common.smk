"""The study, the paths that several rules share, and the constraints of the wildcards."""

import json
import re

from snakemake.exceptions import WorkflowError

from ultrarefiner.errors import ConfigError
from ultrarefiner.models.weights import absent_files, name_of_file
from ultrarefiner.study import folder_listing, load_study, own_weights

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
COARSE = [name for name in STUDY.methods if STUDY.methods[name].refiner is None]
GPU = 0 if CFG.device == "cpu" else 1
SHELF_MB = max(1, round(CFG.embeddings.limit_gb * 1000))
LISTINGS = {name: folder_listing(row.root) for name, row in CFG.datasets.items()}
# Digests, so that another file in the place of one's own weights reruns their jobs.
OWN_WEIGHTS = {name: own_weights(row.weights) for name, row in CFG.refiners.items()}
OWN_STARTS = {
    name: None if row.init == "random" else own_weights(row.pretrained)
    for name, row in CFG.coarse.items()
}


def any_of(names):
    """Return a wildcard constraint that matches these names and nothing else."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


wildcard_constraints:
    run=any_of([RUN]),
    dataset=any_of(CFG.datasets),
    fold=any_of(range(CFG.splits.folds)),
    coarse=any_of(CFG.coarse),
    prompt=any_of(CFG.prompts),
    refiner=any_of(CFG.refiners),
    method=any_of(STUDY.methods),
    weights=any_of(STUDY.embedders),
    view=any_of(STUDY.views),


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
    return LISTINGS[wildcards.dataset]


def study_dump():
    """Return the whole configuration, defaults included, in an order that edits do not change."""
    return json.loads(json.dumps(CFG.model_dump(mode="json"), sort_keys=True))


def training_params(wildcards):
    """Return what a trained model depends on; threads and the like leave the numbers alone."""
    return CFG.coarse[wildcards.coarse].recipe()


def pretrained_weights(wildcards):
    """Return the file that a model's training starts from, if it has one."""
    return STUDY.pretrained_file(wildcards.coarse) or []


def refiner_weights(wildcards):
    """Return a refiner's weights file, if it has one."""
    return STUDY.weights_file(wildcards.refiner) or []


def embedder_weights(wildcards):
    """Return the weights file that makes an embedding."""
    return STUDY.weights_file(STUDY.embedders[wildcards.weights]) or []


def full_index(wildcards):
    """Return the index of full images that a view of crops waits for, as it may share files."""
    if wildcards.view == "full" or not STUDY.embeds_full_images(wildcards.weights):
        return []
    base = f"results/{wildcards.run}/{wildcards.dataset}/embeddings"
    return ancient(f"{base}/{wildcards.weights}/full/fold{wildcards.fold}.csv")


def study_weights(wildcards):
    """Return every weights file of the study."""
    files = [STUDY.weights_file(name) for name in CFG.compare.refine]
    files += [STUDY.pretrained_file(name) for name in COARSE]
    return sorted({name for name in files if name})


def prompt_masks(wildcards):
    """Return the masks that a prompt mode is made from: the coarse shelf, or the truth."""
    base = f"results/{wildcards.run}/{wildcards.dataset}"
    if CFG.prompts[wildcards.prompt].oracle:
        return f"{base}/prepared/masks"
    return f"{base}/masks/{wildcards.coarse}/fold{wildcards.fold}"


def soft_masks(wildcards):
    """Return the probabilities behind a refiner's mask prompts, or the truth for an oracle."""
    base = f"results/{wildcards.run}/{wildcards.dataset}"
    if CFG.prompts[wildcards.prompt].oracle:
        return f"{base}/prepared/masks"
    return f"{base}/probabilities/{STUDY.reference}/fold{wildcards.fold}"


def view_masks(wildcards):
    """Return the masks around which a view is cut: the coarse shelf, the truth, or none."""
    base = f"results/{wildcards.run}/{wildcards.dataset}"
    view = STUDY.views[wildcards.view]
    if view.window is None:
        return []
    if view.oracle:
        return f"{base}/prepared/masks"
    return f"{base}/masks/{STUDY.reference}/fold{wildcards.fold}"


def view_window(wildcards):
    """Return what the windows of a view depend on beside the masks; None for full images."""
    window = STUDY.views[wildcards.view].window
    return None if window is None else window.model_dump()


def embeddings_index(wildcards):
    """Return the index of the embeddings that a refiner uses in a prompt mode, if it has any."""
    name = STUDY.embeddings_of(wildcards.refiner)
    if name is None:
        return []
    base = f"results/{wildcards.run}/{wildcards.dataset}/embeddings"
    view = STUDY.view_of(wildcards.prompt).name
    return f"{base}/{name}/{view}/fold{wildcards.fold}.csv"


def run_files(pattern, methods):
    """Return one path for each dataset, method and fold of the study."""
    return expand(
        pattern,
        run=RUN,
        dataset=list(CFG.datasets),
        method=methods,
        coarse=methods,
        fold=STUDY.folds,
    )


def score_tables(wildcards):
    """Return every score table of the study."""
    return run_files(
        "results/{run}/{dataset}/scores/{method}/fold{fold}.csv", list(STUDY.methods)
    )


def overlay_entries(wildcards):
    """Return where the pictures of each dataset, method and fold lie."""
    entries = []
    for dataset in CFG.datasets:
        base = f"results/{wildcards.run}/{dataset}"
        for method in STUDY.methods.values():
            for fold in STUDY.folds:
                prompts = (
                    f"{base}/prompts/{method.coarse}/{method.prompt}/fold{fold}.json"
                )
                entries.append(
                    {
                        "dataset": dataset,
                        "method": method.name,
                        "fold": fold,
                        "images": f"{base}/prepared/images",
                        "truth": f"{base}/prepared/masks",
                        "coarse": f"{base}/masks/{STUDY.reference}/fold{fold}",
                        "masks": f"{base}/masks/{method.name}/fold{fold}",
                        "prompts": prompts if method.prompt else None,
                        "oracle": method.oracle,
                    }
                )
    return entries


def overlay_inputs(wildcards):
    """Return every folder and file that the overlays read."""
    keys = ("images", "truth", "coarse", "masks", "prompts")
    paths = {entry[key] for entry in overlay_entries(wildcards) for key in keys}
    return sorted(paths - {None})


def model_files(name):
    """Return a function that lists one file of every trained model."""
    pattern = f"results/{{run}}/{{dataset}}/models/{{coarse}}/fold{{fold}}/{name}"
    return lambda wildcards: run_files(pattern, COARSE)


def history_entries(wildcards):
    """Return the training curves with what they belong to."""
    return [
        {
            "dataset": dataset,
            "model": coarse,
            "fold": fold,
            "path": f"results/{wildcards.run}/{dataset}/models/{coarse}/fold{fold}/history.csv",
        }
        for dataset in CFG.datasets
        for coarse in COARSE
        for fold in STUDY.folds
    ]
