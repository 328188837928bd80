rule train_coarse:
    input:
        cases="results/{run}/{dataset}/prepared/cases.csv",
        npz="results/{run}/{dataset}/prepared/npz",
        splits="results/{run}/{dataset}/splits.csv",
        pretrained=pretrained_weights,
    output:
        model="results/{run}/{dataset}/models/{coarse}/fold{fold}/model.safetensors",
        card="results/{run}/{dataset}/models/{coarse}/fold{fold}/card.json",
        history="results/{run}/{dataset}/models/{coarse}/fold{fold}/history.csv",
    log:
        "results/{run}/logs/train_coarse/{dataset}/{coarse}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/train_coarse/{dataset}/{coarse}/fold{fold}.tsv"
    threads:
        lambda wildcards: CFG.coarse[wildcards.coarse].threads
        + CFG.coarse[wildcards.coarse].workers
    resources:
        gpu=GPU,
        workers=lambda wildcards: CFG.coarse[wildcards.coarse].workers,
        tensorboard=lambda wildcards: int(CFG.coarse[wildcards.coarse].tensorboard),
    params:
        training=training_params,
        pretrained=lambda wildcards: OWN_STARTS[wildcards.coarse],
        protocol=CFG.splits.protocol,
        device=CFG.device,
    message:
        "Train {wildcards.coarse} on {wildcards.dataset}, fold {wildcards.fold}"
    script:
        "../workflow/scripts/train_coarse.py"


rule predict_coarse:
    input:
        model="results/{run}/{dataset}/models/{coarse}/fold{fold}/model.safetensors",
        card="results/{run}/{dataset}/models/{coarse}/fold{fold}/card.json",
        cases="results/{run}/{dataset}/prepared/cases.csv",
        npz="results/{run}/{dataset}/prepared/npz",
        splits="results/{run}/{dataset}/splits.csv",
    output:
        masks=directory("results/{run}/{dataset}/masks/{coarse}/fold{fold}"),
        probabilities=directory(
            "results/{run}/{dataset}/probabilities/{coarse}/fold{fold}"
        ),
    log:
        "results/{run}/logs/predict_coarse/{dataset}/{coarse}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/predict_coarse/{dataset}/{coarse}/fold{fold}.tsv"
    threads: lambda wildcards: CFG.coarse[wildcards.coarse].threads
    resources:
        gpu=GPU,
    params:
        protocol=CFG.splits.protocol,
        device=CFG.device,
    message:
        "Segment the test cases of {wildcards.dataset}, fold {wildcards.fold}"
    script:
        "../workflow/scripts/predict_coarse.py"
