"""Write every table of the report as CSV and LaTeX."""

from ultrarefiner.jobs import job
from ultrarefiner.report.export import write_tables

with job(snakemake):
    write_tables(
        scores=snakemake.input.scores,
        summary=snakemake.input.summary,
        comparisons=snakemake.input.comparisons,
        oracle_gap=snakemake.input.oracle_gap,
        calibration=snakemake.input.calibration,
        overlaps=snakemake.input.overlaps,
        points=snakemake.input.get("points"),
        zero_shot=snakemake.input.get("zero_shot"),
        volumes=snakemake.input.get("volumes"),
        reference=snakemake.params.reference,
        output=snakemake.output.tables,
    )
