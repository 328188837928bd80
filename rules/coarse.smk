rule train_coarse:
    input:
        code=code_of("train_coarse"),
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/splits.csv",
        pretrained=pretrained_weights,
    output:
        model="results/{run}/{trainset}/models/{coarse}/fold{fold}/model.safetensors",
        card="results/{run}/{trainset}/models/{coarse}/fold{fold}/card.json",
        history="results/{run}/{trainset}/models/{coarse}/fold{fold}/history.csv",
    log:
        "results/{run}/logs/train_coarse/{trainset}/{coarse}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/train_coarse/{trainset}/{coarse}/fold{fold}.tsv"
    wildcard_constraints:
        coarse=any_of(CFG.coarse),
    threads:
        lambda wildcards: CFG.coarse[wildcards.coarse].threads
        + CFG.coarse[wildcards.coarse].workers
    resources:
        # Of all nodes together; on a machine without GPUs there are as many processes all the same.
        gpu=lambda wildcards: GPU
        * CFG.coarse[wildcards.coarse].gpu
        * CFG.coarse[wildcards.coarse].nodes,
        processes=lambda wildcards: CFG.coarse[wildcards.coarse].gpu,
        nodes=lambda wildcards: CFG.coarse[wildcards.coarse].nodes,
        # For several nodes the job starts srun itself, which the key alone (not its value) permits.
        mpi=lambda wildcards: "" if CFG.coarse[wildcards.coarse].nodes > 1 else None,
        workers=lambda wildcards: CFG.coarse[wildcards.coarse].workers,
        tensorboard=lambda wildcards: int(CFG.coarse[wildcards.coarse].tensorboard),
    params:
        training=training_params,
        pretrained=lambda wildcards: OWN_STARTS[wildcards.coarse],
        protocol=CFG.splits.protocol,
        device=CFG.device,
    message:
        "Train {wildcards.coarse} on {wildcards.trainset}, fold {wildcards.fold}"
    script:
        "../workflow/scripts/train_coarse.py"


rule choose_threshold:
    input:
        code=code_of("choose_threshold"),
        model="results/{run}/{trainset}/models/{coarse}/fold{fold}/model.safetensors",
        card="results/{run}/{trainset}/models/{coarse}/fold{fold}/card.json",
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/splits.csv",
    output:
        threshold="results/{run}/{trainset}/models/{coarse}/fold{fold}/threshold.json",
    log:
        "results/{run}/logs/choose_threshold/{trainset}/{coarse}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/choose_threshold/{trainset}/{coarse}/fold{fold}.tsv"
    threads: lambda wildcards: predicting(wildcards).threads
    resources:
        gpu=GPU,
        # As in refine_masks: no params, for no result depends on them.
        shelf=CFG.embeddings.folder,
        shelf_mb=SHELF_MB,
    params:
        flips=lambda wildcards: predicting(wildcards).flips,
        device=CFG.device,
    message:
        "Choose the threshold of {wildcards.coarse} on {wildcards.trainset}, fold {wildcards.fold}"
    script:
        "../workflow/scripts/choose_threshold.py"


rule predict_coarse:
    input:
        code=code_of("predict_coarse"),
        model=model_file("model.safetensors"),
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
    log:
        "results/{run}/logs/predict_coarse/{dataset}/{coarse}{at}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/predict_coarse/{dataset}/{coarse}{at}/{part}.tsv"
    wildcard_constraints:
        coarse=any_of(CFG.coarse),
        part=any_of(part for part in PARTS if parse_part(part).fold is not None),
    threads: lambda wildcards: CFG.coarse[wildcards.coarse].threads
    resources:
        gpu=GPU,
    params:
        protocol=CFG.splits.protocol,
        flips=lambda wildcards: CFG.coarse[wildcards.coarse].flips,
        device=CFG.device,
    message:
        "Segment {wildcards.dataset}, {wildcards.part} by {wildcards.coarse}{wildcards.at}"
    script:
        "../workflow/scripts/predict_coarse.py"


rule ensemble_masks:
    input:
        code=code_of("ensemble_masks"),
        probabilities=member_folders("probabilities"),
        masks=member_folders("masks"),
        cards=member_files("card.json"),
        thresholds=member_files("threshold.json"),
        splits=part_table,
    output:
        mean=directory("results/{run}/{dataset}/masks/{coarse}{at}/{cases}-mean"),
        tuned=directory("results/{run}/{dataset}/masks/{coarse}-tuned{at}/{cases}-mean"),
        probabilities=directory(
            "results/{run}/{dataset}/probabilities/{coarse}{at}/{cases}-mean"
        ),
        vote=directory("results/{run}/{dataset}/masks/{coarse}{at}/{cases}-vote"),
    log:
        "results/{run}/logs/ensemble_masks/{dataset}/{coarse}{at}/{cases}.log",
    benchmark:
        "results/{run}/benchmarks/ensemble_masks/{dataset}/{coarse}{at}/{cases}.tsv"
    wildcard_constraints:
        cases="holdout|unseen",
    message:
        "Let the models of all folds decide on {wildcards.dataset}: {wildcards.coarse}{wildcards.at}"
    script:
        "../workflow/scripts/ensemble_masks.py"
