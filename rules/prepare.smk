rule write_phantom:
    input:
        code=code_of("write_phantom"),
    output:
        raw=directory("results/{run}/{dataset}/phantom"),
    log:
        "results/{run}/logs/write_phantom/{dataset}.log",
    benchmark:
        "results/{run}/benchmarks/write_phantom/{dataset}.tsv"
    params:
        layout=lambda wildcards: STUDY.layout(wildcards.dataset),
        phantom=lambda wildcards: CFG.datasets[wildcards.dataset].phantom.model_dump(),
    message:
        "Draw phantoms in the layout of {params.layout}"
    script:
        "../workflow/scripts/write_phantom.py"


rule check_dataset:
    input:
        code=code_of("check_dataset"),
        raw=raw_input,
        curation=curation_input,
    output:
        report="results/{run}/{dataset}/check/report.json",
    log:
        "results/{run}/logs/check_dataset/{dataset}.log",
    benchmark:
        "results/{run}/benchmarks/check_dataset/{dataset}.tsv"
    priority: 30
    params:
        layout=lambda wildcards: STUDY.layout(wildcards.dataset),
        root=raw_root,
        listing=raw_listing,
        include_empty=lambda wildcards: CFG.datasets[wildcards.dataset].include_empty,
        options=lambda wildcards: CFG.datasets[wildcards.dataset].options,
        curation=lambda wildcards: CFG.datasets[wildcards.dataset].curation,
    message:
        "Look for problems in {params.root}"
    script:
        "../workflow/scripts/check_dataset.py"


rule prepare_dataset:
    input:
        code=code_of("prepare_dataset"),
        raw=raw_input,
        curation=curation_input,
        report="results/{run}/{dataset}/check/report.json",
    output:
        cases="results/{run}/{dataset}/prepared/cases.csv",
        published_folds="results/{run}/{dataset}/prepared/published_folds.csv",
        excluded="results/{run}/{dataset}/prepared/excluded.csv",
        npz=directory("results/{run}/{dataset}/prepared/npz"),
        images=directory("results/{run}/{dataset}/prepared/images"),
        masks=directory("results/{run}/{dataset}/prepared/masks"),
    log:
        "results/{run}/logs/prepare_dataset/{dataset}.log",
    benchmark:
        "results/{run}/benchmarks/prepare_dataset/{dataset}.tsv"
    priority: 20
    params:
        layout=lambda wildcards: STUDY.layout(wildcards.dataset),
        root=raw_root,
        listing=raw_listing,
        include_empty=lambda wildcards: CFG.datasets[wildcards.dataset].include_empty,
        options=lambda wildcards: CFG.datasets[wildcards.dataset].options,
        curation=lambda wildcards: CFG.datasets[wildcards.dataset].curation,
    message:
        "Bring {wildcards.dataset} into one shape"
    script:
        "../workflow/scripts/prepare_dataset.py"


rule find_overlaps:
    input:
        code=code_of("find_overlaps"),
        cases=each_dataset("results/{run}/{dataset}/prepared/cases.csv"),
    output:
        overlaps="results/{run}/overlaps.csv",
        unseen=each_dataset("results/{run}/{dataset}/unseen.csv"),
    log:
        "results/{run}/logs/find_overlaps/all.log",
    benchmark:
        "results/{run}/benchmarks/find_overlaps/all.tsv"
    # Before any training. No training waits for it: one more dataset is no reason to train again, and of a job
    # below an `ancient` input that is made anew Snakemake does not look whether it has changed itself.
    priority: 15
    localrule: True
    resources:
        # No params: it decides what is refused, not what is written, and must not rerun the unions.
        tested=" ".join(STUDY.tested_unseen) or "none",
    params:
        datasets=list(CFG.datasets),
        acknowledged={
            name: row.shares_images_with for name, row in CFG.datasets.items()
        },
        trained=[name for name, row in CFG.datasets.items() if row.role == "train"],
    message:
        "Look for images that datasets share"
    script:
        "../workflow/scripts/find_overlaps.py"


rule split_folds:
    input:
        code=code_of("split_folds"),
        cases="results/{run}/{dataset}/prepared/cases.csv",
        published_folds="results/{run}/{dataset}/prepared/published_folds.csv",
    output:
        splits="results/{run}/{dataset}/splits.csv",
    log:
        "results/{run}/logs/split_folds/{dataset}.log",
    benchmark:
        "results/{run}/benchmarks/split_folds/{dataset}.tsv"
    priority: 10
    localrule: True
    params:
        splits=CFG.splits.recipe(),
        folds_from=lambda wildcards: CFG.datasets[wildcards.dataset].folds,
        official_test=lambda wildcards: STUDY.official_test(wildcards.dataset),
    message:
        "Decide who is in which fold of {wildcards.dataset}"
    script:
        "../workflow/scripts/split_folds.py"


rule join_splits:
    input:
        code=code_of("join_splits"),
        splits=lambda wildcards: expand(
            "results/{run}/{dataset}/splits.csv",
            run=wildcards.run,
            dataset=STUDY.trainsets[wildcards.trainset],
        ),
        overlaps="results/{run}/overlaps.csv",
    output:
        splits="results/{run}/{trainset}/splits.csv",
    log:
        "results/{run}/logs/join_splits/{trainset}.log",
    benchmark:
        "results/{run}/benchmarks/join_splits/{trainset}.tsv"
    wildcard_constraints:
        trainset=any_of(CFG.trainsets),
    localrule: True
    params:
        members=lambda wildcards: STUDY.trainsets[wildcards.trainset],
    message:
        "Join the folds of {params.members} as {wildcards.trainset}"
    script:
        "../workflow/scripts/join_splits.py"


rule export_samed2d:
    input:
        code=code_of("export_samed2d"),
        cases="results/{run}/{dataset}/prepared/cases.csv",
        images="results/{run}/{dataset}/prepared/images",
        masks="results/{run}/{dataset}/prepared/masks",
        table=part_table,
    output:
        folder=directory("results/{run}/{dataset}/samed2d/{part}"),
    log:
        "results/{run}/logs/export_samed2d/{dataset}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/export_samed2d/{dataset}/{part}.tsv"
    wildcard_constraints:
        part=any_of([*(f"fold{fold}" for fold in range(CFG.splits.folds)), "unseen"]),
    message:
        "Write {wildcards.part} of {wildcards.dataset} as SA-Med2D folders"
    script:
        "../workflow/scripts/export_samed2d.py"
