rule train_end_to_end:
    input:
        code=code_of("train_end_to_end"),
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/splits.csv",
        coarse_model=lambda wildcards: STUDY.end_to_end.coarse_file(
            wildcards.trainset, wildcards.coarse, wildcards.fold, "model.safetensors"
        ),
        coarse_card=lambda wildcards: STUDY.end_to_end.coarse_file(
            wildcards.trainset, wildcards.coarse, wildcards.fold, "card.json"
        ),
        weights=lambda wildcards: STUDY.end_to_end.weights(
            wildcards.trainset, wildcards.coarse, wildcards.fold
        ),
        card=lambda wildcards: STUDY.end_to_end.refiner_file(
            wildcards.trainset, wildcards.coarse, wildcards.fold, "card.json"
        )
        or [],
        embeddings=lambda wildcards: STUDY.joint_indices(
            wildcards.trainset, wildcards.coarse, f"fold{wildcards.fold}"
        ),
    output:
        model="results/{run}/{trainset}/models/{coarse}/fold{fold}/model.safetensors",
        refiner="results/{run}/{trainset}/models/{coarse}/fold{fold}/refiner.safetensors",
        card="results/{run}/{trainset}/models/{coarse}/fold{fold}/card.json",
        history="results/{run}/{trainset}/models/{coarse}/fold{fold}/history.csv",
    log:
        "results/{run}/logs/train_end_to_end/{trainset}/{coarse}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/train_end_to_end/{trainset}/{coarse}/fold{fold}.tsv"
    wildcard_constraints:
        coarse=any_of(STUDY.end_to_end.names),
    threads: lambda wildcards: predicting(wildcards).threads
    resources:
        # As in train_coarse.
        gpu=lambda wildcards: GPU
        * predicting(wildcards).gpu
        * predicting(wildcards).nodes,
        processes=lambda wildcards: predicting(wildcards).gpu,
        nodes=lambda wildcards: predicting(wildcards).nodes,
        mpi=lambda wildcards: "" if predicting(wildcards).nodes > 1 else None,
        tensorboard=lambda wildcards: int(predicting(wildcards).tensorboard),
        shelf=CFG.embeddings.folder,
        shelf_mb=SHELF_MB,
    params:
        recipe=lambda wildcards: predicting(wildcards).recipe(),
        content=lambda wildcards: OWN_WEIGHTS[predicting(wildcards).refiner],
        start=lambda wildcards: STUDY.end_to_end.start(
            wildcards.trainset, wildcards.coarse, wildcards.fold
        ),
    message:
        "Train {wildcards.coarse} end to end on {wildcards.trainset}, fold {wildcards.fold}"
    script:
        "../workflow/scripts/train_end_to_end.py"


rule predict_end_to_end:
    input:
        code=code_of("predict_end_to_end"),
        model=model_file("model.safetensors"),
        refiner=model_file("refiner.safetensors"),
        card=model_file("card.json"),
        threshold=model_file("threshold.json"),
        cases="results/{run}/{dataset}/prepared/cases.csv",
        npz="results/{run}/{dataset}/prepared/npz",
        splits=part_table,
    output:
        masks=directory("results/{run}/{dataset}/masks/{coarse}{at}/{part}"),
        tuned=directory("results/{run}/{dataset}/masks/{coarse}-tuned{at}/{part}"),
        probabilities=directory(
            "results/{run}/{dataset}/probabilities/{coarse}{at}/{part}"
        ),
        coarse=directory("results/{run}/{dataset}/masks/{coarse}-coarse{at}/{part}"),
    log:
        "results/{run}/logs/predict_end_to_end/{dataset}/{coarse}{at}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/predict_end_to_end/{dataset}/{coarse}{at}/{part}.tsv"
    wildcard_constraints:
        coarse=any_of(STUDY.end_to_end.names),
        part=any_of(part for part in PARTS if parse_part(part).fold is not None),
    threads: lambda wildcards: predicting(wildcards).threads
    resources:
        gpu=GPU,
        shelf=CFG.embeddings.folder,
        shelf_mb=SHELF_MB,
    params:
        protocol=CFG.splits.protocol,
        flips=lambda wildcards: predicting(wildcards).flips,
        device=CFG.device,
    message:
        "Segment {wildcards.dataset}, {wildcards.part} by {wildcards.coarse}{wildcards.at}"
    script:
        "../workflow/scripts/predict_end_to_end.py"


rule choose_guard:
    input:
        code=code_of("choose_guard"),
        models=lambda wildcards: STUDY.end_to_end.guard_models(
            wildcards.trainset, wildcards.method, wildcards.fold
        ),
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/splits.csv",
    output:
        rule="results/{run}/{trainset}/guards/{method}/fold{fold}.json",
    log:
        "results/{run}/logs/choose_guard/{trainset}/{method}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/choose_guard/{trainset}/{method}/fold{fold}.tsv"
    wildcard_constraints:
        method=any_of(CFG.compare.guarded),
    threads: 4
    resources:
        gpu=GPU,
    params:
        guard=CFG.guard.model_dump(mode="json"),
        reference=lambda wildcards: STUDY.end_to_end.fallback(wildcards.method),
        asked=lambda wildcards: STUDY.end_to_end.asked(wildcards.method),
        device=CFG.device,
        # What the choice depends on stands in the other params. One that asks for `input` is
        # derived, which Snakemake leaves out when it compares params with those of the last run.
        study=lambda wildcards, input: study_dump(),
    message:
        "Choose when {wildcards.method} gives way to {params.reference} on {wildcards.trainset}, fold {wildcards.fold}"
    script:
        "../workflow/scripts/choose_guard.py"


rule guard_masks:
    input:
        code=code_of("guard_masks"),
        rules=lambda wildcards: STUDY.end_to_end.guards(
            wildcards.dataset,
            wildcards.method,
            wildcards.at,
            parse_part(wildcards.part),
        ),
        coarse=lambda wildcards: (
            f"results/{wildcards.run}/{wildcards.dataset}/masks/"
            f"{STUDY.end_to_end.fallback(wildcards.method)}{wildcards.at}/{wildcards.part}"
        ),
        refined="results/{run}/{dataset}/masks/{method}{at}/{part}",
        splits=part_table,
    output:
        masks=directory("results/{run}/{dataset}/masks/{method}-guarded{at}/{part}"),
        table="results/{run}/{dataset}/masks/{method}-guarded{at}/{part}.csv",
    log:
        "results/{run}/logs/guard_masks/{dataset}/{method}{at}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/guard_masks/{dataset}/{method}{at}/{part}.tsv"
    wildcard_constraints:
        method=any_of(CFG.compare.guarded),
    params:
        protocol=CFG.splits.protocol,
    message:
        "Guard {wildcards.method}{wildcards.at} on {wildcards.dataset}, {wildcards.part}"
    script:
        "../workflow/scripts/guard_masks.py"
