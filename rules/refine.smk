rule make_prompts:
    input:
        code=code_of("make_prompts"),
        masks=prompt_masks,
        splits=part_table,
    output:
        prompts="results/{run}/{dataset}/prompts/{coarse}{at}/{prompt}/{part}.json",
    log:
        "results/{run}/logs/make_prompts/{dataset}/{coarse}{at}/{prompt}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/make_prompts/{dataset}/{coarse}{at}/{prompt}/{part}.tsv"
    localrule: True
    params:
        prompt=lambda wildcards: CFG.prompts[wildcards.prompt].recipe(),
    message:
        "Turn masks into {wildcards.prompt} prompts: {wildcards.dataset}, {wildcards.part}"
    script:
        "../workflow/scripts/make_prompts.py"


rule embed_images:
    input:
        code=code_of("embed_images"),
        splits=part_table,
        images="results/{run}/{dataset}/prepared/images",
        masks=view_masks,
        weights=embedder_weights,
        full=full_index,
    output:
        index="results/{run}/{dataset}/embeddings/{weights}/{view}{at}/{part}.csv",
    log:
        "results/{run}/logs/embed_images/{dataset}/{weights}/{view}{at}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/embed_images/{dataset}/{weights}/{view}{at}/{part}.tsv"
    wildcard_constraints:
        # The images of folds that are not run are trained on too.
        part=any_of([*PARTS, *(f"fold{fold}" for fold in range(CFG.splits.folds))]),
    threads: 4
    resources:
        gpu=GPU,
        # No params: another place or size of the shelf changes no result.
        shelf=CFG.embeddings.folder,
        shelf_mb=SHELF_MB,
    params:
        family=lambda wildcards: CFG.refiners[STUDY.embedders[wildcards.weights]].family,
        weights=embedder_model,
        content=lambda wildcards: OWN_WEIGHTS[STUDY.embedders[wildcards.weights]],
        options=lambda wildcards: STUDY.embedder_options(wildcards.weights),
        window=view_window,
        device=CFG.device,
    message:
        "Encode {wildcards.dataset}, {wildcards.part} once with {wildcards.weights}: {wildcards.view}"
    script:
        "../workflow/scripts/embed_images.py"


rule refine_masks:
    input:
        code=code_of("refine_masks"),
        prompts=f"results/{{run}}/{{dataset}}/prompts/{STUDY.reference}{{at}}/{{prompt}}/{{part}}.json",
        images="results/{run}/{dataset}/prepared/images",
        soft_masks=soft_masks,
        embeddings=embeddings_index,
        slices=lambda wildcards: propagation.followed_slices(
            CFG, wildcards.run, wildcards.dataset, wildcards.refiner
        ),
        weights=refiner_weights,
        card=refiner_card,
    output:
        masks=directory("results/{run}/{dataset}/masks/{refiner}-{prompt}{at}/{part}"),
        table="results/{run}/{dataset}/masks/{refiner}-{prompt}{at}/{part}.csv",
    log:
        "results/{run}/logs/refine_masks/{dataset}/{refiner}-{prompt}{at}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/refine_masks/{dataset}/{refiner}-{prompt}{at}/{part}.tsv"
    wildcard_constraints:
        # No single model of a refiner that is finetuned on each fold refines what is of no fold.
        refiner=rf"(?!(?:{any_of(STUDY.finetuning.each_fold)})-[^/]+/(?:holdout|unseen)-mean)(?:{any_of(CFG.refiners)})",
    threads: lambda wildcards: 4 if STUDY.embeddings_of(wildcards.refiner) else 1
    resources:
        gpu=lambda wildcards: GPU if STUDY.embeddings_of(wildcards.refiner) else 0,
        shelf=CFG.embeddings.folder,
        shelf_mb=SHELF_MB,
    params:
        family=lambda wildcards: CFG.refiners[wildcards.refiner].family,
        weights=refiner_model,
        content=lambda wildcards: OWN_WEIGHTS[wildcards.refiner],
        options=lambda wildcards: STUDY.refiner_options(wildcards.refiner),
        protocol=CFG.splits.protocol,
        device=CFG.device,
    message:
        "Refine {wildcards.dataset}, {wildcards.part} by {wildcards.refiner}-{wildcards.prompt}{wildcards.at}"
    script:
        "../workflow/scripts/refine_masks.py"


rule ensemble_refined:
    input:
        code=code_of("ensemble_refined"),
        masks=lambda wildcards: expand(
            "results/{{run}}/{{dataset}}/masks/{{refiner}}-{{prompt}}{{at}}/{{cases}}-fold{fold}",
            fold=STUDY.folds,
        ),
        cards=lambda wildcards: [
            STUDY.finetuning.file(one, "card.json")
            for one in STUDY.models
            if (one.trainset, one.name) == (trainset_of(wildcards), wildcards.refiner)
        ],
        splits=part_table,
    output:
        masks=directory(
            "results/{run}/{dataset}/masks/{refiner}-{prompt}{at}/{cases}-mean"
        ),
        table="results/{run}/{dataset}/masks/{refiner}-{prompt}{at}/{cases}-mean.csv",
    log:
        "results/{run}/logs/ensemble_refined/{dataset}/{refiner}-{prompt}{at}/{cases}.log",
    benchmark:
        "results/{run}/benchmarks/ensemble_refined/{dataset}/{refiner}-{prompt}{at}/{cases}.tsv"
    wildcard_constraints:
        refiner=any_of(STUDY.finetuning.each_fold),
        cases="holdout|unseen",
    message:
        "Let the models of all folds of {wildcards.refiner} decide on {wildcards.dataset}: {wildcards.prompt}{wildcards.at}"
    script:
        "../workflow/scripts/ensemble_refined.py"
