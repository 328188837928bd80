rule analyse_points:
    input:
        code=code_of("analyse_points"),
        images="results/{run}/{dataset}/prepared/images",
        truth="results/{run}/{dataset}/prepared/masks",
        cases="results/{run}/{dataset}/prepared/cases.csv",
        masks=f"results/{{run}}/{{dataset}}/masks/{STUDY.reference}/{{part}}",
        splits=part_table,
        embeddings=full_embeddings,
        weights=refiner_weights,
    output:
        points="results/{run}/{dataset}/points/{refiner}/{part}.csv",
    log:
        "results/{run}/logs/analyse_points/{dataset}/{refiner}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/analyse_points/{dataset}/{refiner}/{part}.tsv"
    wildcard_constraints:
        part=r"fold\d+",
    threads: 4
    resources:
        gpu=GPU,
        # As in refine_masks: no params, for no result depends on them.
        shelf=CFG.embeddings.folder,
        shelf_mb=SHELF_MB,
    params:
        family=lambda wildcards: CFG.refiners[wildcards.refiner].family,
        weights=lambda wildcards: CFG.refiners[wildcards.refiner].weights,
        content=lambda wildcards: OWN_WEIGHTS[wildcards.refiner],
        options=lambda wildcards: STUDY.refiner_options(wildcards.refiner),
        analysis=point_analysis,
        device=CFG.device,
    message:
        "Prompt {wildcards.refiner} with points: {wildcards.dataset}, {wildcards.part}"
    script:
        "../workflow/scripts/analyse_points.py"


rule summarise_points:
    input:
        code=code_of("summarise_points"),
        tables=point_tables,
    output:
        summary="results/{run}/report/points.csv",
    log:
        "results/{run}/logs/summarise_points/all.log",
    benchmark:
        "results/{run}/benchmarks/summarise_points/all.tsv"
    localrule: True
    params:
        bootstrap=CFG.report.bootstrap,
        seed=CFG.report.seed,
    message:
        "Where the points fell, and what wrong ones cost"
    script:
        "../workflow/scripts/summarise_points.py"
