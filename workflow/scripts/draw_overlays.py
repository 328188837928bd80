"""Draw the best, median and worst cases, and those that failed."""

from ultrarefiner.jobs import job
from ultrarefiner.report.overlays import draw_overlays

with job(snakemake):
    draw_overlays(
        scores=snakemake.input.scores,
        entries=snakemake.params.entries,
        reference=snakemake.params.reference,
        count=snakemake.params.gallery,
        failures=snakemake.params.failures,
        output=snakemake.output.overlays,
    )
