"""Write the report: one file that opens offline."""

from ultrarefiner.jobs import job
from ultrarefiner.provenance import run_provenance
from ultrarefiner.report.page import write_report

with job(snakemake):
    write_report(
        scores=snakemake.input.scores,
        summary=snakemake.input.summary,
        comparisons=snakemake.input.comparisons,
        oracle_gap=snakemake.input.oracle_gap,
        calibration=snakemake.input.calibration,
        overlaps=snakemake.input.overlaps,
        points=snakemake.input.get("points"),
        figures=snakemake.input.figures,
        overlays=snakemake.input.overlays,
        tables=snakemake.input.tables,
        checks=list(snakemake.input.checks),
        cards=list(snakemake.input.cards),
        failures=snakemake.input.get("failures", []),
        **snakemake.params.head,
        provenance=run_provenance(snakemake.params.study, snakemake.input.get("weights", [])),
        output=snakemake.output.page,
    )
