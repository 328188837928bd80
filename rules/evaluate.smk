rule score_masks:
    input:
        code=code_of("score_masks"),
        masks="results/{run}/{dataset}/masks/{method}/{part}",
        truth="results/{run}/{dataset}/prepared/masks",
        cases="results/{run}/{dataset}/prepared/cases.csv",
        splits=part_table,
    output:
        scores="results/{run}/{dataset}/scores/{method}/{part}.csv",
    log:
        "results/{run}/logs/score_masks/{dataset}/{method}/{part}.log",
    benchmark:
        "results/{run}/benchmarks/score_masks/{dataset}/{method}/{part}.tsv"
    params:
        labels=lambda wildcards: STUDY.scored_on(shelved(wildcards)),
    message:
        "Score {wildcards.method} on {wildcards.dataset}, {wildcards.part}"
    script:
        "../workflow/scripts/score_masks.py"


rule measure_calibration:
    input:
        code=code_of("measure_calibration"),
        truth="results/{run}/{dataset}/prepared/masks",
        predictions=calibration_inputs,
    output:
        calibration="results/{run}/{dataset}/calibration/{coarse}{at}.csv",
    log:
        "results/{run}/logs/measure_calibration/{dataset}/{coarse}{at}.log",
    benchmark:
        "results/{run}/benchmarks/measure_calibration/{dataset}/{coarse}{at}.tsv"
    params:
        parts=calibrated_parts,
        trained_on=trainset_of,
    message:
        "Compare the probabilities of {wildcards.coarse}{wildcards.at} with {wildcards.dataset}"
    script:
        "../workflow/scripts/measure_calibration.py"


rule collect_calibration:
    input:
        code=code_of("collect_calibration"),
        tables=entries.calibration_tables(STUDY),
    output:
        calibration="results/{run}/report/calibration.csv",
    log:
        "results/{run}/logs/collect_calibration/all.log",
    benchmark:
        "results/{run}/benchmarks/collect_calibration/all.tsv"
    localrule: True
    message:
        "Collect the calibration of every coarse model"
    script:
        "../workflow/scripts/collect_calibration.py"


rule summarise_scores:
    input:
        code=code_of("summarise_scores"),
        tables=score_tables,
        overlaps="results/{run}/overlaps.csv",
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
    localrule: True
    params:
        bootstrap=CFG.report.bootstrap,
        seed=CFG.report.seed,
    message:
        "Mean, spread and interval of every method"
    script:
        "../workflow/scripts/summarise_scores.py"


rule compare_methods:
    input:
        code=code_of("compare_methods"),
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
    localrule: True
    params:
        reference=STUDY.reference,
        bootstrap=CFG.report.bootstrap,
        seed=CFG.report.seed,
    message:
        "Compare every method with {params.reference}, case by case"
    script:
        "../workflow/scripts/compare_methods.py"


rule measure_gap:
    input:
        code=code_of("measure_gap"),
        scores="results/{run}/report/scores.csv",
    output:
        oracle_gap="results/{run}/report/oracle_gap.csv",
    log:
        "results/{run}/logs/measure_gap/all.log",
    benchmark:
        "results/{run}/benchmarks/measure_gap/all.tsv"
    localrule: True
    params:
        pairs=STUDY.oracle_pairs,
        reference=STUDY.reference,
        bootstrap=CFG.report.bootstrap,
        seed=CFG.report.seed,
    message:
        "How much of the way to a perfect prompt each refiner has gone"
    script:
        "../workflow/scripts/measure_gap.py"


rule summarise_zero_shot:
    input:
        code=code_of("summarise_zero_shot"),
        scores="results/{run}/report/scores.csv",
        cases=[row["cases"] for row in entries.zero_shot_datasets(STUDY)],
    output:
        zero_shot="results/{run}/report/zero_shot.csv",
    log:
        "results/{run}/logs/summarise_zero_shot/all.log",
    benchmark:
        "results/{run}/benchmarks/summarise_zero_shot/all.tsv"
    localrule: True
    params:
        datasets=entries.zero_shot_datasets(STUDY),
        families=entries.checkpoint_families(STUDY),
        bootstrap=CFG.report.bootstrap,
        seed=CFG.report.seed,
    message:
        "How every method does on datasets that nothing of it has seen"
    script:
        "../workflow/scripts/summarise_zero_shot.py"
