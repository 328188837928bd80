rule score_masks:
    input:
        masks="results/{run}/{dataset}/masks/{method}/fold{fold}",
        truth="results/{run}/{dataset}/prepared/masks",
        cases="results/{run}/{dataset}/prepared/cases.csv",
        splits="results/{run}/{dataset}/splits.csv",
    output:
        scores="results/{run}/{dataset}/scores/{method}/fold{fold}.csv",
    log:
        "results/{run}/logs/score_masks/{dataset}/{method}/fold{fold}.log",
    benchmark:
        "results/{run}/benchmarks/score_masks/{dataset}/{method}/fold{fold}.tsv"
    params:
        prompt_source=lambda wildcards: STUDY.methods[wildcards.method].source,
        oracle=lambda wildcards: STUDY.methods[wildcards.method].oracle,
        selection=STUDY.selection,
    message:
        "Score {wildcards.method} on {wildcards.dataset}, fold {wildcards.fold}"
    script:
        "../workflow/scripts/score_masks.py"


rule summarise_scores:
    input:
        tables=score_tables,
    output:
        scores="results/{run}/report/scores.csv",
        summary=report(
            "results/{run}/report/summary.csv",
            caption="../workflow/report/summary.rst",
            category="Results",
        ),
    log:
        "results/{run}/logs/summarise_scores/all.log",
    benchmark:
        "results/{run}/benchmarks/summarise_scores/all.tsv"
    params:
        bootstrap=CFG.report.bootstrap,
        seed=CFG.report.seed,
    message:
        "Mean, spread and interval of every method"
    script:
        "../workflow/scripts/summarise_scores.py"


rule compare_methods:
    input:
        scores="results/{run}/report/scores.csv",
    output:
        comparisons=report(
            "results/{run}/report/comparisons.csv",
            caption="../workflow/report/comparisons.rst",
            category="Results",
        ),
    log:
        "results/{run}/logs/compare_methods/all.log",
    benchmark:
        "results/{run}/benchmarks/compare_methods/all.tsv"
    params:
        reference=STUDY.reference,
        bootstrap=CFG.report.bootstrap,
        seed=CFG.report.seed,
    message:
        "Compare every method with {params.reference}, case by case"
    script:
        "../workflow/scripts/compare_methods.py"
