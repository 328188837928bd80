rule record_study:
    input:
        code=code_of("record_study"),
    output:
        study="results/{run}/study.json",
    log:
        "results/{run}/logs/record_study/all.log",
    benchmark:
        "results/{run}/benchmarks/record_study/all.tsv"
    localrule: True
    params:
        config=study_dump(),
    message:
        "Record what the study asks for"
    script:
        "../workflow/scripts/record_study.py"


rule plot_scores:
    input:
        code=code_of("plot_scores"),
        scores="results/{run}/report/scores.csv",
        summary="results/{run}/report/summary.csv",
        calibration="results/{run}/report/calibration.csv",
        overlaps="results/{run}/overlaps.csv",
        points=points_summary,
        point_tables=point_tables,
        histories=entries.model_files(STUDY, "history.csv"),
        # Beside the histories; they tell which epoch was kept.
        cards=entries.model_files(STUDY, "card.json"),
    output:
        figures=directory("results/{run}/report/figures"),
    log:
        "results/{run}/logs/plot_scores/all.log",
    benchmark:
        "results/{run}/benchmarks/plot_scores/all.tsv"
    localrule: True
    params:
        histories=entries.history_entries(STUDY),
        reference=STUDY.reference,
    message:
        "Draw box plots, scatters, the cross-dataset matrix and training curves"
    script:
        "../workflow/scripts/plot_scores.py"


rule draw_overlays:
    input:
        code=code_of("draw_overlays"),
        scores="results/{run}/report/scores.csv",
        pictures=entries.overlay_inputs(STUDY),
    output:
        overlays=directory("results/{run}/report/overlays"),
    log:
        "results/{run}/logs/draw_overlays/all.log",
    benchmark:
        "results/{run}/benchmarks/draw_overlays/all.tsv"
    localrule: True
    params:
        entries=entries.overlay_entries(STUDY),
        reference=STUDY.reference,
        gallery=CFG.report.gallery,
        failures=CFG.report.failures,
    message:
        "Draw the best, median and worst cases"
    script:
        "../workflow/scripts/draw_overlays.py"


rule write_tables:
    input:
        code=code_of("write_tables"),
        scores="results/{run}/report/scores.csv",
        summary="results/{run}/report/summary.csv",
        comparisons="results/{run}/report/comparisons.csv",
        oracle_gap="results/{run}/report/oracle_gap.csv",
        calibration="results/{run}/report/calibration.csv",
        overlaps="results/{run}/overlaps.csv",
        points=points_summary,
        zero_shot=entries.zero_shot_tables(STUDY),
        volumes=volumes.report_tables(STUDY),
    output:
        tables=directory("results/{run}/report/tables"),
    log:
        "results/{run}/logs/write_tables/all.log",
    benchmark:
        "results/{run}/benchmarks/write_tables/all.tsv"
    localrule: True
    params:
        reference=STUDY.reference,
    message:
        "Write every table of the report as CSV and LaTeX"
    script:
        "../workflow/scripts/write_tables.py"


rule write_report:
    input:
        code=code_of("write_report"),
        all_code=code_of_all(),
        scores="results/{run}/report/scores.csv",
        summary="results/{run}/report/summary.csv",
        comparisons="results/{run}/report/comparisons.csv",
        calibration="results/{run}/report/calibration.csv",
        oracle_gap="results/{run}/report/oracle_gap.csv",
        points=points_summary,
        zero_shot=entries.zero_shot_tables(STUDY),
        volumes=volumes.report_tables(STUDY),
        montages=volumes.report_pictures(STUDY),
        overlaps="results/{run}/overlaps.csv",
        figures="results/{run}/report/figures",
        overlays="results/{run}/report/overlays",
        tables="results/{run}/report/tables",
        checks=expand(
            "results/{{run}}/{dataset}/check/report.json", dataset=list(CFG.datasets)
        ),
        cards=entries.model_files(STUDY, "card.json"),
        thresholds=entries.model_files(STUDY, "threshold.json", predicting=True),
        failures=expand(
            "results/{{run}}/report/failures-{refiner}.png",
            refiner=STUDY.finetuning.simulating,
        ),
        guards=entries.guard_rules(STUDY),
        weights=study_weights,
    output:
        page=report(
            "results/{run}/report/report.html",
            caption="../workflow/report/report.rst",
            category="Results",
        ),
    log:
        "results/{run}/logs/write_report/all.log",
    benchmark:
        "results/{run}/benchmarks/write_report/all.tsv"
    localrule: True
    params:
        head={
            "title": CFG.report.title,
            "reference": STUDY.reference,
            "guards": entries.guard_rules(STUDY),
            "zero_shot": entries.zero_shot_tables(STUDY),
            **volumes.report_parts(STUDY),
        },
        study=study_dump(),
    message:
        "Write {output.page}"
    script:
        "../workflow/scripts/write_report.py"
