# Datasets that hold whole volumes: which slices are a volume, masks as volumes, scores in 3D. A study without such
# a dataset has no job of these rules.
rule list_volumes:
    input:
        code=code_of("list_volumes"),
        cases="results/{run}/{dataset}/prepared/cases.csv",
        raw=raw_input,
    output:
        volumes="results/{run}/{dataset}/volumes/volumes.csv",
        slices="results/{run}/{dataset}/volumes/slices.csv",
    log:
        "results/{run}/logs/list_volumes/{dataset}.log",
    benchmark:
        "results/{run}/benchmarks/list_volumes/{dataset}.tsv"
    wildcard_constraints:
        dataset=any_of(volumes.volume_datasets(STUDY)),
    localrule: True
    params:
        layout=lambda wildcards: STUDY.layout(wildcards.dataset),
        root=raw_root,
        options=lambda wildcards: CFG.datasets[wildcards.dataset].options,
    message:
        "List the volumes of {wildcards.dataset}"
    script:
        "../workflow/scripts/list_volumes.py"


rule write_volumes:
    input:
        code=code_of("write_volumes"),
        masks="results/{run}/{dataset}/masks/{method}/{part}",
        volumes="results/{run}/{dataset}/volumes/volumes.csv",
        slices="results/{run}/{dataset}/volumes/slices.csv",
        splits=part_table,
    output:
        volumes=directory("results/{run}/{dataset}/volumes/{method}/{part}"),
    log:
        "results/{run}/logs/write_volumes/{dataset}/{method}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/write_volumes/{dataset}/{method}/{part}.tsv"
    message:
        "Write masks of {wildcards.method} on {wildcards.dataset}, {wildcards.part}, as volumes"
    script:
        "../workflow/scripts/write_volumes.py"


rule score_volumes:
    input:
        code=code_of("score_volumes"),
        masks="results/{run}/{dataset}/masks/{method}/{part}",
        truth="results/{run}/{dataset}/prepared/masks",
        volumes="results/{run}/{dataset}/volumes/volumes.csv",
        slices="results/{run}/{dataset}/volumes/slices.csv",
        splits=part_table,
    output:
        scores="results/{run}/{dataset}/volume_scores/{method}/{part}.csv",
    log:
        "results/{run}/logs/score_volumes/{dataset}/{method}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/score_volumes/{dataset}/{method}/{part}.tsv"
    params:
        labels=lambda wildcards: STUDY.scored_on(shelved(wildcards)),
    message:
        "Score {wildcards.method} on volumes of {wildcards.dataset}, {wildcards.part}"
    script:
        "../workflow/scripts/score_volumes.py"


rule summarise_volumes:
    input:
        code=code_of("summarise_volumes"),
        tables=volumes.score_tables(STUDY),
    output:
        scores="results/{run}/report/volume_scores.csv",
        summary="results/{run}/report/volumes.csv",
        comparisons="results/{run}/report/volume_comparisons.csv",
    log:
        "results/{run}/logs/summarise_volumes/all.log",
    benchmark:
        "results/{run}/benchmarks/summarise_volumes/all.tsv"
    localrule: True
    params:
        # Among them files that tell how long jobs took; they are no inputs, for no result needs them.
        entries=volumes.volume_entries(STUDY),
        pairs=volumes.mode_pairs(STUDY),
        bootstrap=CFG.report.bootstrap,
        seed=CFG.report.seed,
    message:
        "What every method made of volumes, and how fast"
    script:
        "../workflow/scripts/summarise_volumes.py"


rule draw_volumes:
    input:
        code=code_of("draw_volumes"),
        scores="results/{run}/report/volume_scores.csv",
        pictures=volumes.montage_inputs(STUDY),
    output:
        pictures=directory("results/{run}/report/volumes"),
    log:
        "results/{run}/logs/draw_volumes/all.log",
    benchmark:
        "results/{run}/benchmarks/draw_volumes/all.tsv"
    localrule: True
    params:
        entries=volumes.montage_entries(STUDY),
        reference=STUDY.reference,
    message:
        "Draw the best, median and worst volumes"
    script:
        "../workflow/scripts/draw_volumes.py"


rule export_medsam2:
    input:
        code=code_of("export_medsam2"),
        cases="results/{run}/{dataset}/prepared/cases.csv",
        images="results/{run}/{dataset}/prepared/images",
        masks="results/{run}/{dataset}/prepared/masks",
        volumes="results/{run}/{dataset}/volumes/volumes.csv",
        slices="results/{run}/{dataset}/volumes/slices.csv",
        table=part_table,
    output:
        folder=directory("results/{run}/{dataset}/medsam2/{part}"),
    log:
        "results/{run}/logs/export_medsam2/{dataset}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/export_medsam2/{dataset}/{part}.tsv"
    wildcard_constraints:
        part=any_of([*(f"fold{fold}" for fold in range(CFG.splits.folds)), "unseen"]),
    message:
        "Write {wildcards.part} of {wildcards.dataset} as npz files for MedSAM2's training"
    script:
        "../workflow/scripts/export_medsam2.py"
