rule split_inner:
    input:
        code=code_of("split_inner"),
        splits="results/{run}/{trainset}/splits.csv",
        overlaps=lambda wildcards: STUDY.finetuning.overlaps(wildcards.trainset) or [],
    output:
        splits="results/{run}/{trainset}/inner/fold{fold}/splits.csv",
    log:
        "results/{run}/logs/split_inner/{trainset}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/split_inner/{trainset}/fold{fold}.tsv"
    localrule: True
    params:
        folds=STUDY.finetuning.inner_folds,
        seed=CFG.splits.seed,
        validation=CFG.splits.validation,
    message:
        "Divide what fold {wildcards.fold} of {wildcards.trainset} trains on into {params.folds} folds"
    script:
        "../workflow/scripts/split_inner.py"


rule train_inner:
    input:
        code=code_of("train_inner"),
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/inner/fold{fold}/splits.csv",
        pretrained=pretrained_weights,
    output:
        model="results/{run}/{trainset}/inner/fold{fold}/{coarse}/fold{inner}/model.safetensors",
        card="results/{run}/{trainset}/inner/fold{fold}/{coarse}/fold{inner}/card.json",
        history="results/{run}/{trainset}/inner/fold{fold}/{coarse}/fold{inner}/history.csv",
    log:
        "results/{run}/logs/train_inner/{trainset}/fold{fold}/{coarse}/fold{inner}.log",
    benchmark:
        "results/{run}/benchmarks/train_inner/{trainset}/fold{fold}/{coarse}/fold{inner}.tsv"
    threads:
        lambda wildcards: CFG.coarse[wildcards.coarse].threads
        + CFG.coarse[wildcards.coarse].workers
    resources:
        # As in train_coarse.
        gpu=lambda wildcards: GPU
        * CFG.coarse[wildcards.coarse].gpu
        * CFG.coarse[wildcards.coarse].nodes,
        processes=lambda wildcards: CFG.coarse[wildcards.coarse].gpu,
        nodes=lambda wildcards: CFG.coarse[wildcards.coarse].nodes,
        mpi=lambda wildcards: "" if CFG.coarse[wildcards.coarse].nodes > 1 else None,
        workers=lambda wildcards: CFG.coarse[wildcards.coarse].workers,
        tensorboard=lambda wildcards: int(CFG.coarse[wildcards.coarse].tensorboard),
    params:
        training=training_params,
        pretrained=lambda wildcards: OWN_STARTS[wildcards.coarse],
        protocol=CFG.splits.protocol,
        device=CFG.device,
    message:
        "Train {wildcards.coarse} within fold {wildcards.fold} of {wildcards.trainset}, inner fold {wildcards.inner}"
    script:
        "../workflow/scripts/train_inner.py"


rule predict_inner:
    input:
        code=code_of("predict_inner"),
        model="results/{run}/{trainset}/inner/fold{fold}/{coarse}/fold{inner}/model.safetensors",
        card="results/{run}/{trainset}/inner/fold{fold}/{coarse}/fold{inner}/card.json",
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/inner/fold{fold}/splits.csv",
    output:
        probabilities=directory(
            "results/{run}/{trainset}/inner/fold{fold}/{coarse}/fold{inner}/probabilities"
        ),
    log:
        "results/{run}/logs/predict_inner/{trainset}/fold{fold}/{coarse}/fold{inner}.log",
    benchmark:
        "results/{run}/benchmarks/predict_inner/{trainset}/fold{fold}/{coarse}/fold{inner}.tsv"
    threads: lambda wildcards: CFG.coarse[wildcards.coarse].threads
    resources:
        gpu=GPU,
    params:
        flips=lambda wildcards: CFG.coarse[wildcards.coarse].flips,
        device=CFG.device,
    message:
        "Predict what {wildcards.coarse} has not seen within fold {wildcards.fold} of {wildcards.trainset}"
    script:
        "../workflow/scripts/predict_inner.py"


rule simulate_failures:
    input:
        code=code_of("simulate_failures"),
        cases="results/{run}/{dataset}/prepared/cases.csv",
        npz="results/{run}/{dataset}/prepared/npz",
    output:
        masks=directory("results/{run}/{dataset}/failures/{refiner}"),
        table="results/{run}/{dataset}/failures/{refiner}.csv",
    log:
        "results/{run}/logs/simulate_failures/{dataset}/{refiner}.log",
    benchmark:
        "results/{run}/benchmarks/simulate_failures/{dataset}/{refiner}.tsv"
    wildcard_constraints:
        refiner=any_of(STUDY.finetuning.simulating),
    threads: 4
    params:
        failures=lambda wildcards: STUDY.finetuning.simulation(wildcards.refiner),
        copies=lambda wildcards: STUDY.finetuning.of(wildcards.refiner).copies,
    message:
        "Simulate failures on {wildcards.dataset} for {wildcards.refiner}"
    script:
        "../workflow/scripts/simulate_failures.py"


rule measure_boxes:
    input:
        code=code_of("measure_boxes"),
        model="results/{run}/{trainset}/models/{coarse}/fold{fold}/model.safetensors",
        card="results/{run}/{trainset}/models/{coarse}/fold{fold}/card.json",
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/splits.csv",
    output:
        errors="results/{run}/{trainset}/models/{coarse}/fold{fold}/box_errors.json",
    log:
        "results/{run}/logs/measure_boxes/{trainset}/{coarse}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/measure_boxes/{trainset}/{coarse}/fold{fold}.tsv"
    threads: lambda wildcards: CFG.coarse[wildcards.coarse].threads
    resources:
        gpu=GPU,
    params:
        flips=lambda wildcards: CFG.coarse[wildcards.coarse].flips,
        device=CFG.device,
    message:
        "Measure how the boxes of {wildcards.coarse} err on {wildcards.trainset}, fold {wildcards.fold}"
    script:
        "../workflow/scripts/measure_boxes.py"


rule crop_dataset:
    input:
        code=code_of("crop_dataset"),
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/splits.csv",
        errors=lambda wildcards: STUDY.finetuning.box_errors(
            wildcards.trainset, wildcards.fit
        ),
    output:
        crops=directory("results/{run}/{trainset}/crops/{refiner}/{fit}"),
    log:
        "results/{run}/logs/crop_dataset/{trainset}/{refiner}/{fit}.log",
    benchmark:
        "results/{run}/benchmarks/crop_dataset/{trainset}/{refiner}/{fit}.tsv"
    wildcard_constraints:
        refiner=any_of(STUDY.finetuning.cropping),
    params:
        crop=lambda wildcards: STUDY.finetuning.cropped(wildcards.refiner),
    message:
        "Cut the lesions of {wildcards.trainset}, {wildcards.fit}, out for {wildcards.refiner}"
    script:
        "../workflow/scripts/crop_dataset.py"


rule train_refiner:
    input:
        code=code_of("train_refiner"),
        cases=trained_files("cases.csv"),
        npz=trained_files("npz"),
        splits="results/{run}/{trainset}/splits.csv",
        weights=lambda wildcards: [
            *filter(None, [STUDY.weights_file(wildcards.refiner)]),
            *STUDY.finetuning.branch_files(wildcards.refiner),
        ],
        failures=lambda wildcards: STUDY.finetuning.failures(
            wildcards.trainset, wildcards.refiner
        ),
        predictions=inner_files("probabilities"),
        cards=inner_files("card.json"),
        crops=lambda wildcards: STUDY.finetuning.crops(
            wildcards.trainset, wildcards.refiner, wildcards.fit
        )
        or [],
        shared=lambda wildcards: STUDY.finetuning.overlaps(wildcards.trainset) or [],
        # So that no image is encoded twice. Not ancient: Snakemake 9 does not look whether a job
        # below an ancient input has changed while that input is made anew.
        embeddings=lambda wildcards: STUDY.training_indices(
            wildcards.trainset, wildcards.refiner, wildcards.fit
        ),
    output:
        model="results/{run}/{trainset}/models/{refiner}/{fit}/model.safetensors",
        card="results/{run}/{trainset}/models/{refiner}/{fit}/card.json",
        history="results/{run}/{trainset}/models/{refiner}/{fit}/history.csv",
    log:
        "results/{run}/logs/train_refiner/{trainset}/{refiner}/{fit}.log",
    benchmark:
        "results/{run}/benchmarks/train_refiner/{trainset}/{refiner}/{fit}.tsv"
    wildcard_constraints:
        refiner=any_of(STUDY.finetuning.names),
    threads: lambda wildcards: STUDY.finetuning.of(wildcards.refiner).threads
    resources:
        # As in train_coarse.
        gpu=lambda wildcards: GPU
        * STUDY.finetuning.of(wildcards.refiner).gpu
        * STUDY.finetuning.of(wildcards.refiner).nodes,
        processes=lambda wildcards: STUDY.finetuning.of(wildcards.refiner).gpu,
        nodes=lambda wildcards: STUDY.finetuning.of(wildcards.refiner).nodes,
        mpi=lambda wildcards: (
            "" if STUDY.finetuning.of(wildcards.refiner).nodes > 1 else None
        ),
        tensorboard=lambda wildcards: int(
            STUDY.finetuning.of(wildcards.refiner).tensorboard
        ),
        checkpointing=lambda wildcards: int(
            STUDY.finetuning.of(wildcards.refiner).checkpointing
        ),
        # As in refine_masks: no params, for no result depends on them.
        shelf=CFG.embeddings.folder,
        shelf_mb=SHELF_MB,
    params:
        recipe=lambda wildcards: STUDY.finetuning.recipe(
            wildcards.refiner, wildcards.fit
        ),
        content=lambda wildcards: OWN_REFINER_STARTS[wildcards.refiner],
        start=lambda wildcards: STUDY.training_start(
            wildcards.trainset, wildcards.refiner, wildcards.fit
        ),
    message:
        "Finetune {wildcards.refiner} on {wildcards.trainset}, {wildcards.fit}"
    script:
        "../workflow/scripts/train_refiner.py"


rule draw_failures:
    input:
        code=code_of("draw_failures"),
        cases=f"results/{{run}}/{next(iter(STUDY.trainsets))}/prepared/cases.csv",
        npz=f"results/{{run}}/{next(iter(STUDY.trainsets))}/prepared/npz",
    output:
        sheet="results/{run}/report/failures-{refiner}.png",
    log:
        "results/{run}/logs/draw_failures/{refiner}.log",
    benchmark:
        "results/{run}/benchmarks/draw_failures/{refiner}.tsv"
    wildcard_constraints:
        refiner=any_of(STUDY.finetuning.simulating),
    localrule: True
    params:
        failures=lambda wildcards: STUDY.finetuning.simulation(wildcards.refiner),
    message:
        "Show the failures that {wildcards.refiner} learns from"
    script:
        "../workflow/scripts/draw_failures.py"
